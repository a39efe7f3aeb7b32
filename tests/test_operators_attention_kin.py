"""Attention's kin, which have no small state, against loops over rows and upstream's functions."""

import pytest
import torch
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.operators import packing
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function
from ess_kernels.testing.upstream import float64_for_float32


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gates(*shape):
    return logsigmoid(randn(*shape))


def repeated(x, heads, axis=2):
    """One head of `x` for each of the heads that share it."""
    return x.repeat_interleave(heads // x.shape[axis], axis)


def row_by_row(batch_shape, length, row):
    """`T [*batch, L, L]` of weights `row(b, h, i)` `[<= L]` for the first columns of a row."""
    T = torch.zeros(*batch_shape, length, length, dtype=torch.float64)
    for b in range(batch_shape[0]):
        for h in range(batch_shape[1]):
            for i in range(length):
                weights = row(b, h, i)
                T[b, h, i, : len(weights)] = weights
    return T


def softmax(z, sink=None):
    """Of logits of which some are -inf, with one more in the denominator; all -inf is all zeros."""
    total = z.exp().sum() + (0 if sink is None else sink.exp())
    return z.exp() / (total if total > 0 else 1)


def windowed(z, window_size):
    """All but the last logits of a row hidden."""
    hidden = max(0, len(z) - window_size)
    return torch.cat([torch.full((hidden,), -torch.inf).double(), z[hidden:]])


def decays(g, i):
    """The sum of `g[j+1 .. i]` for every j up to i, added up one by one."""
    return torch.stack([sum((g[r] for r in range(j + 1, i + 1)), g.new_zeros(())) for j in range(i + 1)])


def seq_first(q, k, **more):
    """Attention's layout as fla's, for its naive functions."""
    return [x.transpose(1, 2) for x in (q, k, *more.values())]


def heads_first(length, heads=4, kv=2, size=3):
    return {"q": randn(2, heads, length, size), "k": randn(2, kv, length, size)}


def tokens_first(length, heads=4, kv=2, size=3, keys=("k",)):
    """Queries and what has the keys' shape, `[B, T, H, K]`."""
    return {"q": randn(2, length, heads, size), **{name: randn(2, length, kv, size) for name in keys}}


class TestForgettingAttention(OperatorTestCase):
    constructor = staticmethod(operators.attention)
    reads = dict.fromkeys("qkg", (0, 1))
    allows_minus_inf = ("g",)
    state_size = None

    def make_inputs(self, length):
        return {**heads_first(length), "g": gates(2, 4, length)}

    def dense(self, q, k, g):
        k = repeated(k, 4, 1)

        def row(b, h, i):
            return softmax(k[b, h, : i + 1] @ q[b, h, i] / 3**0.5 + decays(g[b, h], i))

        return row_by_row(q.shape[:2], q.shape[2], row)

    def upstream(self, v, q, k, g):
        naive = upstream_function("fla.ops.forgetting_attn.naive", "naive_forgetting_attn")
        q, k, g = seq_first(q, k, g=g)
        return naive(q, repeated(k, 4), v, g)

    def test_a_closed_gate_cuts_what_lies_before(self):
        inputs = self.inputs(9)
        inputs["g"][:, :, [0, 5]] = -torch.inf
        op = operators.attention(**inputs)
        T = op.dense()
        assert (T[..., 5:, :5] == 0).all() and T.isfinite().all()
        counts = ek.tolerance_ess(op, 1e-6)
        assert (counts[..., 4] == 0).all() and (counts[..., 3] > 0).all()
        cut = {name: x[..., 5:, :] if name != "g" else x[..., 5:] for name, x in inputs.items()}
        assert torch.equal(ek.tolerance_ess(operators.attention(**cut), 1e-6), counts[..., 5:])
        g = inputs["g"].requires_grad_()
        operators.attention(**{**inputs, "g": g}).dense().square().sum().backward()
        assert g.grad.isfinite().all()

    def test_gates_far_from_the_row_cost_no_digits(self):
        """A difference of sums over the whole past would be wrong by 1e-8 here."""
        inputs = self.inputs(9)
        near = operators.attention(**inputs, window_size=3).dense()
        inputs["g"][:, :, :3] -= 1e8
        far = operators.attention(**inputs, window_size=3).dense()
        assert_close("T", far[..., 5:, :], near[..., 5:, :], rtol=1e-15)


class TestAttentionWithSinks(OperatorTestCase):
    """As gpt-oss and fla have them: a sink of -inf is none."""

    constructor = staticmethod(operators.attention)
    options = {"window_size": 4}
    reads = {"q": (0, 1), "k": (0, 1), "g": (0, 1), "sinks": (None, 0)}
    allows_minus_inf = ("g", "sinks")
    state_size = None

    def make_inputs(self, length):
        return {**heads_first(length), "g": gates(2, 4, length), "sinks": randn(4)}

    def dense(self, q, k, g, sinks):
        k = repeated(k, 4, 1)

        def row(b, h, i):
            z = windowed(k[b, h, : i + 1] @ q[b, h, i] / 3**0.5 + decays(g[b, h], i), 4)
            return softmax(z, sinks[h])

        return row_by_row(q.shape[:2], q.shape[2], row)

    def upstream(self, v, q, k, g, sinks):
        naive = upstream_function("fla.ops.attn.naive", "naive_parallel_attn")
        q, k, g = seq_first(q, k, g=g)
        return naive(q, repeated(k, 4), v, window_size=4, g=g, sink_bias=sinks)

    @pytest.mark.parametrize("backend", ["torch", "native", "triton"])
    def test_no_sink(self, backend):
        """Without gates too, where backends have kernels of their own for the weights."""
        inputs = {name: x for name, x in self.inputs(9).items() if name != "g"}
        op = operators.attention(**inputs)
        if backend not in self._backends(op):
            pytest.skip(f"backend {backend} is not usable here")
        some = inputs["sinks"].clone()
        some[1] = -torch.inf
        found = ek.singular_values(operators.attention(**{**inputs, "sinks": some}), range(1, 9), backend=backend)
        without = ek.singular_values(operators.attention(inputs["q"], inputs["k"]), range(1, 9))
        with_sinks = ek.singular_values(op, range(1, 9))
        assert_close("no sink", found[:, 1], without[:, 1], 0, 1e-14)
        assert_close("other heads", found[:, [0, 2, 3]], with_sinks[:, [0, 2, 3]], 0, 1e-14)


class TestALiBi(OperatorTestCase):
    constructor = staticmethod(operators.attention)
    reads = {"q": (0, 1), "k": (0, 1), "alibi_slopes": (None, 0)}
    state_size = None

    def make_inputs(self, length):
        return {**heads_first(length), "alibi_slopes": torch.exp2(-2.0 * torch.arange(1, 5)).double()}

    def dense(self, q, k, alibi_slopes):
        k = repeated(k, 4, 1)

        def row(b, h, i):
            distance = i - torch.arange(i + 1)
            return softmax(k[b, h, : i + 1] @ q[b, h, i] / 3**0.5 - alibi_slopes[h] * distance)

        return row_by_row(q.shape[:2], q.shape[2], row)

    value_layout = "[B, H, T, V]"

    def upstream(self, v, q, k, alibi_slopes):
        """Bloom's bias, whose slopes for four heads are these, is a constant a row off: softmax does not see it."""
        build = upstream_function("transformers.models.bloom.modeling_bloom", "build_alibi_tensor")
        length = q.shape[2]
        bias = build(torch.ones(2, length), 4, torch.float64).view(2, 4, 1, length)
        z = q @ repeated(k, 4, 1).mT / 3**0.5 + bias
        return z.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("backend", ["torch", "native", "triton"])
def test_backends_with_kernels_for_softmax_see_gates_and_slopes(backend):
    case = TestForgettingAttention()
    inputs = {**case.inputs(9), "alibi_slopes": torch.tensor([0.5, 0.1, 2.0, 1.0]).double()}
    op = operators.attention(**inputs)
    if backend not in case._backends(op):
        pytest.skip(f"backend {backend} is not usable here")
    values = ek.singular_values(op, range(1, 9), backend=backend)
    wanted = ek.singular_values(operators.dense(op.dense()), range(1, 9), backend="reference")
    assert_close("values", values, wanted, 0, 1e-14)


@pytest.mark.parametrize("window_size", [(3, 0), [3, 0], (-1, -1)])
def test_a_pair_of_windows_is_told_how_to_become_one(window_size):
    with pytest.raises(TypeError, match=r"^window_size: .*left = w - 1"):
        operators.attention(**heads_first(5), window_size=window_size)


def test_top_k_attention_is_a_mask():
    """DSA and MoBA choose keys; what is chosen is data, and `attn_mask` takes it."""
    q, k = heads_first(9).values()
    index_scores = randn(2, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    chosen = torch.zeros(2, 1, 9, 9).bool().scatter_(-1, index_scores.topk(3, -1).indices, True)
    T = operators.attention(q, k, attn_mask=chosen).dense()
    z = (q @ repeated(k, 4, 1).mT / 3**0.5).masked_fill(~(chosen & torch.ones(9, 9).tril().bool()), -torch.inf)
    assert_close("T", T, z.softmax(-1), rtol=1e-13)


def loop_over_states(queries, keys, transitions, i):
    """`q_i . A_i ... A_{j+1} k_j` for every j up to i, `transitions(t)` a matrix."""
    found = []
    for j in range(i + 1):
        state = keys[j]
        for t in range(j + 1, i + 1):
            state = transitions(t) @ state
        found.append(queries[i] @ state)
    return torch.stack(found)


class TestPathAttention(OperatorTestCase):
    constructor = staticmethod(operators.path_attention)
    allows_minus_inf = ("g",)
    state_size = None
    value_layout = "[B, T, H, V]"

    def make_inputs(self, length):
        inputs = tokens_first(length, keys=("k", "w"))
        inputs["w"] /= inputs["w"].norm(dim=-1, keepdim=True)
        return {**inputs, "beta": 2 * torch.rand(2, length, 2).double(), "g": gates(2, length, 4)}

    def dense(self, q, k, w, beta, g):
        k, w, beta = (repeated(x, 4) for x in (k, w, beta))

        def row(b, h, i):
            def transition(t):
                return torch.eye(3).double() - beta[b, t, h] * torch.outer(w[b, t, h], w[b, t, h])

            return softmax((loop_over_states(q[b, :, h], k[b, :, h], transition, i) + decays(g[b, :, h], i)) / 3**0.5)

        return row_by_row((2, 4), q.shape[1], row)

    def upstream(self, v, q, k, w, beta, g):
        naive = upstream_function("fla.ops.path_attn.naive", "naive_path_attn")
        k, w, beta = (repeated(x, 4) for x in (k, w, beta))
        return naive(q, k, v, w, beta, g, 3**-0.5, 8)

    value_channels = 3

    def test_many_blocks(self):
        """Rows of any band, over more tokens than a block has, and keys that repeat with beta 2 and 1."""
        torch.manual_seed(0)
        inputs = {name: x[:1, :, :2] for name, x in self.make_inputs(75).items()}
        inputs["w"][:, 20:60] = inputs["w"][:, 20:21]
        inputs["beta"][:, 20:40], inputs["beta"][:, 40:60] = 2.0, 1.0
        op = operators.path_attention(**inputs)
        T = op.dense_heads(op.all_heads())
        for start, stop in ((0, 33), (31, 32), (32, 64), (40, 75), (74, 75)):
            assert_close("rows", op.rows(op.all_heads(), start, stop), T[:, start:stop, :stop], 1e-12, 1e-15)
        states = [inputs["q"][0, :, h] for h in range(2)]
        for h in range(2):
            w, beta = inputs["w"][0, :, h], inputs["beta"][0, :, h]
            for i in (0, 31, 32, 50, 74):
                z = torch.empty(i + 1).double()
                left = states[h][i]
                for j in range(i, -1, -1):
                    z[j] = left @ inputs["k"][0, j, h]
                    left = left - beta[j] * (left @ w[j]) * w[j]
                row = softmax((z + decays(inputs["g"][0, :, h], i)) / 3**0.5)
                assert_close(f"row {i}", T[h, i, : i + 1], row, 1e-12)

    def test_a_scale_below_zero_would_open_closed_gates(self):
        with pytest.raises(ValueError, match=r"^scale: .*positive"):
            operators.path_attention(**self.inputs(3), scale=-1.0)


class TestPathAttentionWithoutGates(OperatorTestCase):
    constructor = staticmethod(operators.path_attention)
    options = {"scale": 0.7}
    state_size = None

    def make_inputs(self, length):
        return {name: x for name, x in TestPathAttention().make_inputs(length).items() if name != "g"}

    def dense(self, q, k, w, beta):
        gates = q.new_zeros(q.shape[:3])
        return TestPathAttention().dense(0.7 * 3**0.5 * q, k, w, beta, gates)


class TestStickbreaking(OperatorTestCase):
    constructor = staticmethod(operators.stickbreaking_attention)
    state_size = None
    attend_current = False

    def make_inputs(self, length):
        return tokens_first(length)

    def dense(self, q, k):
        k = repeated(k, 4)

        def row(b, h, i):
            weights, left = torch.zeros(i + 1).double(), torch.ones(()).double()
            for j in range(i if self.attend_current else i - 1, -1, -1):
                share = torch.sigmoid(q[b, i, h] @ k[b, j, h] / 3**0.5)
                weights[j] = left * share
                left = left * (1 - share)
            return weights

        return row_by_row((2, 4), q.shape[1], row)

    def upstream(self, v, q, k):
        naive = upstream_function("fla.ops.stickbreaking_attn.naive", "naive_stickbreaking_attn")
        return naive(q, repeated(k, 4), v, attend_current=self.attend_current)


class TestStickbreakingWithItsOwnToken(TestStickbreaking):
    options = {"attend_current": True}
    attend_current = True

    def test_scores_of_any_size(self):
        q, k = self.inputs(9).values()
        T = operators.stickbreaking_attention(1e4 * q, k, attend_current=True).dense()
        assert T.isfinite().all() and (T.sum(-1) <= 1 + 1e-14).all() and (T.amax(-1) > 0).any()
        assert_close("T", T, self.dense(1e4 * q, k), 1e-9)


class TestWallAttention(OperatorTestCase):
    """Upstream's reference function needs a GPU; the second form adds up the decays of every pair of tokens."""

    constructor = staticmethod(operators.wall_attention)
    options = {"window_size": 5}
    reads = {"sinks": (None, 0)}
    allows_minus_inf = ("g", "g_scalar", "sinks")
    state_size = None

    def make_inputs(self, length):
        inputs = tokens_first(length)
        return {**inputs, "g": gates(2, length, 4, 3), "g_scalar": gates(2, length, 4), "sinks": randn(4)}

    def dense(self, q, k, g, g_scalar, sinks):
        k = repeated(k, 4)

        def row(b, h, i):
            channels = torch.stack([decays(g[b, :, h, n], i) for n in range(3)], -1).exp()
            z = (channels * k[b, : i + 1, h]) @ q[b, i, h] / 3**0.5 + decays(g_scalar[b, :, h], i)
            return softmax(windowed(z, 5), sinks[h])

        return row_by_row((2, 4), q.shape[1], row)

    def test_one_gate_for_all_channels_is_attention_to_decayed_keys(self):
        q, k = tokens_first(40, kv=4).values()
        g = gates(2, 40, 4, 1).expand(2, 40, 4, 3)
        T = operators.wall_attention(q, k, g=g).dense()
        logits = operators.gla(q, k, g).dense()
        hidden = torch.ones(40, 40).triu(1).bool()
        assert_close("T", T, logits.masked_fill(hidden, -torch.inf).softmax(-1), 1e-12)


class TestParallax(OperatorTestCase):
    constructor = staticmethod(operators.parallax)
    options = {"window_size": 4}
    state_size = None
    value_channels = 3

    def make_inputs(self, length):
        q, r, k = tokens_first(length, kv=4, keys=("r", "k")).values()
        return {"q": q, "r": r, "k": k[:, :, :2].clone()}

    def dense(self, q, r, k):
        k = repeated(k, 4)

        def row(b, h, i):
            p = softmax(windowed(k[b, : i + 1, h] @ q[b, i, h] / 3**0.5, 4))
            s = k[b, : i + 1, h] @ r[b, i, h]
            return p + p * (p @ s) - p * s

        return row_by_row((2, 4), q.shape[1], row)

    def upstream(self, v, q, r, k):
        naive = upstream_function("fla.ops.parallax.naive", "naive_parallax")
        return naive(q, r, repeated(k, 4), v, window_size=4)


class TestDeltaFormer(OperatorTestCase):
    constructor = staticmethod(operators.deltaformer)
    state_size = None
    value_channels = 3

    def make_inputs(self, length):
        return {**tokens_first(length, kv=4), "beta": 2 * torch.rand(2, length, 4).double()}

    def dense(self, q, k, beta):
        def row(b, h, i):
            """What attention mixes are combinations of the values: row t of `u`."""
            u = torch.eye(i + 1).double()
            for t in range(1, i + 1):
                u[t] = u[t] - beta[b, t, h] * softmax(k[b, :t, h] @ q[b, t, h] / 3**0.5) @ u[:t].clone()
            return softmax(k[b, : i + 1, h] @ q[b, i, h] / 3**0.5) @ u

        return row_by_row((2, 4), q.shape[1], row)

    def upstream(self, v, q, k, beta):
        return upstream_function("fla.ops.deltaformer.naive", "naive_deltaformer_attn")(q, k, v, beta)

    def test_no_beta_is_one(self):
        inputs = self.inputs(9)
        q, k = inputs["q"], inputs["k"]
        ones = torch.ones_like(inputs["beta"])
        assert torch.equal(operators.deltaformer(q, k).dense(), operators.deltaformer(q, k, beta=ones).dense())


class TestLogLinearAttention(OperatorTestCase):
    constructor = staticmethod(operators.log_linear_attention)
    lengths = (9, 12, 16)
    state_size = 3 * 4
    allows_minus_inf = ("g",)
    scales = ("q", "k", "level_scales")
    other_sizes = ("level_scales",)

    def make_inputs(self, length):
        inputs = {name: randn(2, length, 2, 3) for name in "qk"}
        return {**inputs, "g": gates(2, length, 4), "level_scales": randn(2, length, 4, 5)}

    def dense(self, q, k, g, level_scales):
        q, k = repeated(q, 4), repeated(k, 4)

        def row(b, h, i):
            # buckets of a Fenwick tree: the lowest bit of what is left, from the token back
            scale, stop, entries = {}, i, [level_scales[b, i, h, 0]]
            while stop:
                size = stop & -stop
                scale |= dict.fromkeys(range(stop - size, stop), level_scales[b, i, h, size.bit_length()])
                stop -= size
            entries = torch.stack([scale[j] for j in range(i)] + entries)
            return entries * (k[b, : i + 1, h] @ q[b, i, h]) * decays(g[b, :, h], i).exp()

        return row_by_row((2, 4), q.shape[1], row)

    def upstream(self, v, q, k, g, level_scales):
        return upstream_function("fla.ops.log_linear_attn.naive", "naive_log_linear_attn")(q, k, v, g, level_scales)

    def test_counts_know_the_state_size(self):
        """Rounding errors of T have any rank; a count at tolerance 0 does not."""
        inputs = self.inputs(16)
        wide = {
            name: torch.cat([x] * 6, 1) if name != "level_scales" else randn(2, 96, 4, 8) for name, x in inputs.items()
        }
        op = operators.log_linear_attention(**wide)
        assert op.state_size == 3 * 7
        i = torch.arange(1, 96)
        buckets = torch.tensor([3 * bin(n).count("1") for n in i.tolist()])
        counts = ek.tolerance_ess(op, rtol=1e-9)
        assert (counts <= torch.minimum(buckets, torch.minimum(i, 96 - i))).all()
        assert (ek.tolerance_ess(op, 0.0) <= op.rank_cap(i)).all()

    def test_too_few_levels(self):
        inputs = self.inputs(9)
        with pytest.raises(ValueError, match=r"^level_scales: expected at least 5 levels for 9 tokens, got 4"):
            operators.log_linear_attention(**{**inputs, "level_scales": inputs["level_scales"][..., :4]})


def some_blocks(k):
    """Three choices of each key head, alike in every row: none, one after most rows, one named twice."""
    choices = torch.tensor([[-1, 1, 3], [0, 2, 0]])
    return choices[torch.arange(k.shape[2]) % 2].expand(*k.shape[:2], -1, -1)


def sparse(q, k, *, g_cmp, g_slc, g_swa, cu_seqlens=None, attention_mask=None):
    return operators.nsa(
        q,
        k,
        g_cmp=g_cmp,
        g_slc=g_slc,
        g_swa=g_swa,
        block_indices=some_blocks(k),
        block_size=3,
        window_size=4,
        cu_seqlens=cu_seqlens,
        attention_mask=attention_mask,
    )


class TestNSA(OperatorTestCase):
    """Upstream's reference function needs a GPU; the second form is a loop over rows and blocks."""

    constructor = staticmethod(sparse)
    state_size = None

    def make_inputs(self, length):
        more = {name: torch.sigmoid(randn(2, length, 4)) for name in ("g_cmp", "g_slc", "g_swa")}
        return {**tokens_first(length), **more}

    def dense(self, q, k, g_cmp, g_slc, g_swa):
        length = q.shape[1]
        indices, keys = some_blocks(k), repeated(k, 4)

        def row(b, h, i):
            weights = torch.zeros(i + 1).double()
            query = q[b, i, h] / 3**0.5
            complete = (i + 1) // 3
            if complete:
                means = torch.stack([keys[b, 3 * c : 3 * c + 3, h].mean(0) for c in range(complete)])
                for c, weight in enumerate(softmax(means @ query)):
                    weights[3 * c : 3 * c + 3] += g_cmp[b, i, h] * weight / 3
            chosen = [3 * c + t for c in indices[b, i, h // 2].tolist() if c >= 0 for t in range(3) if 3 * c + t <= i]
            if chosen:
                shares = softmax(keys[b, chosen, h] @ query)
                for j, weight in zip(chosen, shares):
                    weights[j] += g_slc[b, i, h] * weight
            weights += g_swa[b, i, h] * softmax(windowed(keys[b, : i + 1, h] @ query, 4))
            return weights

        return row_by_row((2, 4), length, row)

    def test_the_chosen_blocks_alone_are_upstream(self):
        """What of upstream's function runs on a CPU, where every row sees something of its choice."""
        naive = upstream_function("fla.ops.nsa.naive", "naive_nsa_selection")
        q, k = tokens_first(9).values()
        indices = torch.randint(-1, 4, (2, 9, 2, 3))
        indices[..., 0] = torch.arange(9)[:, None] // 3
        op = operators.nsa(q, k, g_cmp=None, g_slc=None, g_swa=None, block_indices=indices, block_size=3, window_size=0)
        one_hot = torch.eye(9).double()[None, :, None].expand(2, 9, 4, 9)
        found = naive(q, repeated(k, 4), one_hot, repeated(indices, 4), 3, 3**-0.5)
        assert_close("T", op.dense(), found.transpose(1, 2), 1e-12)

    @pytest.mark.parametrize(
        "change, error, match",
        [
            ({"block_indices": torch.zeros(2, 9, 2, 3)}, TypeError, r"^block_indices: expected an int32 .*float32"),
            ({"block_indices": torch.zeros(2, 9, 4, 3).long()}, ValueError, r"^block_indices: .*\[2, 9, 4, 3\]"),
            ({"block_size": 0}, ValueError, "^block_size"),
            ({"window_size": (3, 0)}, TypeError, "^window_size"),
            ({"g_swa": None}, ValueError, "^g_swa: expected a tensor"),
        ],
    )
    def test_bad_input(self, change, error, match):
        inputs = {**self.inputs(9), "block_indices": torch.zeros(2, 9, 2, 3).long(), "block_size": 3, "window_size": 4}
        with pytest.raises(error, match=match):
            operators.nsa(**{**inputs, **change})


def differential(q, k, w):
    """One softmax less another, which is sharper."""
    return operators.sum_of(operators.attention(q, k), operators.attention(q, k, scale=2.0), weights=(1.0, w))


class TestDifferentialAttention(OperatorTestCase):
    constructor = staticmethod(differential)
    reads = {"q": (0, 1), "k": (0, 1), "w": (None, 0)}
    state_size = None

    def make_inputs(self, length):
        return {**heads_first(length), "w": -torch.rand(4).double()}

    def dense(self, q, k, w):
        def row(b, h, i):
            scores = repeated(k, 4, 1)[b, h, : i + 1] @ q[b, h, i]
            return softmax(scores / 3**0.5) + w.expand(4)[h] * softmax(2 * scores)

        return row_by_row((2, 4), q.shape[2], row)


def test_differential_attention_is_that_of_diffllama():
    modeling = pytest.importorskip("transformers.models.diffllama.modeling_diffllama")
    config = modeling.DiffLlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_dropout=0.0
    )
    config._attn_implementation = "eager"
    layer = modeling.DiffLlamaAttention(config, layer_idx=3).double().eval()
    q, k = heads_first(8, size=8).values()
    one_hot = torch.eye(8).double().repeat(1, 2).expand(2, 8, 16)  # both halves of the values are the same
    for name, projected in (("q_proj", q), ("k_proj", k), ("v_proj", one_hot.unflatten(-1, (2, 8)).transpose(1, 2))):
        setattr(layer, name, Given(projected.transpose(1, 2).flatten(2)))
    layer.groupnorm = layer.o_proj = torch.nn.Identity()
    hidden = torch.full((8, 8), -torch.inf).double().triu(1)[None, None]
    no_rotation = torch.ones(2, 8, 8).double(), torch.zeros(2, 8, 8).double()
    with float64_for_float32(), torch.no_grad():
        output = layer(randn(2, 8, 32), no_rotation, hidden)[0]
        lam = (layer.lambda_q1 * layer.lambda_k1).sum().exp() - (layer.lambda_q2 * layer.lambda_k2).sum().exp()
        lam = lam + layer.lambda_init
    found = output.unflatten(-1, (2, 16))[..., :8].transpose(1, 2) / (1 - layer.lambda_init)
    halves = zip(q.chunk(2, 1), k.chunk(2, 1))
    op = operators.sum_of(*(operators.attention(*half) for half in halves), weights=(1.0, -lam))
    assert_close("T", op.dense(), found, 1e-12)


class Given(torch.nn.Module):
    """A projection whose outputs are known."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _):
        return self.output


def side_by_side(q, k, g, w):
    gla = operators.gla(q, k, g)
    return operators.sum_of(gla, operators.attention(q.transpose(1, 2), k.transpose(1, 2)), weights=[0.5, w])


class TestMixersSideBySide(OperatorTestCase):
    constructor = staticmethod(side_by_side)
    reads = {"w": (0, 1)}
    allows_minus_inf = ("g",)
    state_size = None

    def make_inputs(self, length):
        return {**tokens_first(length, kv=4), "g": gates(2, length, 4, 3), "w": randn(2, 4, length)}

    def dense(self, q, k, g, w):
        def row(b, h, i):
            channels = torch.stack([decays(g[b, :, h, n], i) for n in range(3)], -1).exp()
            keys, query = k[b, : i + 1, h], q[b, i, h] / 3**0.5
            share = w[b, h] if w.dim() == 2 else w[b, h, i]
            return 0.5 * (channels * keys) @ query + share * softmax(keys @ query)

        return row_by_row((2, 4), q.shape[1], row)


def test_a_sum_of_any_operators_is_the_sum_of_their_matrices():
    torch.manual_seed(0)
    q, k = tokens_first(70, kv=4).values()
    gate, beta = gates(2, 70, 4, 3), 2 * torch.rand(2, 70, 4).double()
    ops = [
        operators.rwkv6(q, k, gate, randn(4, 3)),
        operators.delta_rule(q, k, beta, use_qk_l2norm_in_kernel=True),
        operators.dense(randn(2, 4, 70, 70)),
        operators.recurrence(randn(2, 4, 70, 3, 3) / 3, randn(2, 4, 70, 3), randn(2, 4, 70, 3), diagonal=False),
    ]
    weights = [randn(()), randn(4), randn(2, 1, 70), -2.0]
    op = operators.sum_of(*ops, weights=weights)
    each = [w if isinstance(w, float) else w[..., None] for w in (weights[0][None], weights[1][:, None], *weights[2:])]
    T = sum(w * part.dense() for w, part in zip(each, ops))
    assert_close("T", op.dense(), T, 1e-11, 1e-12)
    everything = op.dense_heads(op.all_heads())
    for start, stop in ((0, 10), (30, 40), (64, 70)):
        assert_close("rows", op.rows(op.all_heads(), start, stop), everything[:, start:stop, :stop], 1e-11)
    assert op.state_size is None
    finite = operators.sum_of(*ops[:2], weights=(1, 1))
    assert finite.state_size == 6
    assert (ek.tolerance_ess(finite, 0.0) <= 6).all()
    again = operators.sum_of(finite, ops[2], weights=(1.0, 0.5))
    assert_close("T", again.dense(), ops[0].dense() + ops[1].dense() + 0.5 * ops[2].dense(), 1e-11)


@pytest.mark.parametrize(
    "ops, weights, error, match",
    [
        ([], [], ValueError, "^ops: .*none"),
        ([0], [1.0], TypeError, "^ops: .*int at 0"),
        (["T", "longer"], [1, 1], ValueError, r"^ops: expected length 5 .* got length 6"),
        (["T", "blocks"], [1, 1], TypeError, "^ops: .*Blocked at 1"),
        (["T"], 1.0, TypeError, "^weights: .*float"),
        (["T"], [1.0, 2.0], ValueError, "^weights: expected 1 of them.* got 2"),
        (["T"], [float("nan")], ValueError, r"^weights\[0\]: .*nan"),
        (["T"], [torch.zeros(3)], ValueError, r"^weights\[0\]: .*\[3\]"),
        (["T"], [torch.zeros(2, 4)], ValueError, r"^weights\[0\]: .*\[2, 4\]"),
        (["T"], [torch.zeros(2).long()], TypeError, r"^weights\[0\]: .*int64"),
    ],
)
def test_sums_that_make_no_sense(ops, weights, error, match):
    known = {
        "T": operators.dense(randn(2, 5, 5)),
        "longer": operators.dense(randn(2, 6, 6)),
        "blocks": operators.dense(randn(2, 10, 10), block=2),
    }
    with pytest.raises(error, match=match):
        operators.sum_of(*(known.get(op, op) for op in ops), weights=weights)


def attention_by_tiles(q, k):
    attention = operators.attention(q, k)

    def rows(heads, start, stop):
        good = torch.where(attention.finite(heads), 1.0, torch.nan)
        return good[:, None, None] * attention.rows(heads, start, stop)

    return operators.tiles(rows, length=q.shape[2], batch_shape=q.shape[:2], device=q.device)


class TestTiles(OperatorTestCase):
    constructor = staticmethod(attention_by_tiles)
    reads = {"q": (0, 1), "k": (0, 1)}
    state_size = None
    make_inputs = staticmethod(heads_first)

    def dense(self, q, k):
        hidden = torch.ones(q.shape[2], q.shape[2]).triu(1).bool()
        return (q @ repeated(k, q.shape[1], 1).mT / 3**0.5).masked_fill(hidden, -torch.inf).softmax(-1)

    def test_an_operator_survives_packing(self):
        assert packing.pack(self.make_operator(self.inputs(9))) is None
        assert packing.pack(operators.sum_of(self.make_operator(self.inputs(9)), weights=[1.0])) is None

    def test_a_compiled_graph_says_that_it_cannot_hold_a_function(self):
        op = self.make_operator(self.inputs(9))
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: x + ek.entropy_ess(op), backend="eager")
        assert torch.equal(compiled(torch.ones(())), 1 + ek.entropy_ess(op))
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"only operators of ess_kernels\.operators|graph"):
            torch.compile(lambda x: x + ek.entropy_ess(op), backend="eager", fullgraph=True)(torch.ones(()))

    def test_a_gradient_of_the_entropy(self):
        inputs = {name: x.requires_grad_() for name, x in self.inputs(5).items()}
        found = torch.autograd.grad(ek.entropy_ess(self.make_operator(inputs)).sum(), inputs.values())
        wanted = torch.autograd.grad(ek.entropy_ess(operators.attention(**inputs)).sum(), inputs.values())
        for x, y in zip(found, wanted):
            assert_close("gradient", x, y, 1e-9)


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"rows": 3}, TypeError, "^rows: .*int"),
        ({"rows": lambda heads, start, stop: 3}, TypeError, "^rows.*int"),
        ({"rows": lambda heads, start, stop: torch.zeros(1, stop - start, stop).long()}, TypeError, "^rows.*int64"),
        ({"rows": lambda heads, start, stop: torch.zeros(5, 5)}, ValueError, r"^rows: .*\[5, 5\]"),
        ({"length": -1}, ValueError, "^length"),
        ({"batch_shape": 3}, TypeError, "^batch_shape"),
        ({"batch_shape": (2, 0.5)}, TypeError, "^batch_shape"),
        ({"device": "nowhere"}, RuntimeError, "^device"),
    ],
)
def test_tiles_that_make_no_sense(change, error, match):
    good = {"rows": lambda heads, start, stop: torch.zeros(len(heads), stop - start, stop), "length": 5}
    with pytest.raises(error, match=match):
        operators.tiles(**{**good, "batch_shape": (2,), "device": "cpu", **change})


def kin_of(q, k):
    """Every family of these queries and keys `[1, T, H, K]`, everything else harmless."""
    ones, zeros = torch.ones(1, q.shape[1], q.shape[2]).double(), torch.zeros_like(q)
    gate, heads = {"g_cmp": ones, "g_slc": ones, "g_swa": ones}, (q.transpose(1, 2), k.transpose(1, 2))
    return {
        "attention": operators.attention(*heads, g=-ones.transpose(1, 2), window_size=2),
        "path": operators.path_attention(q, k, w=zeros, beta=ones),
        "growing path": operators.path_attention(q, k, w=zeros + 2, beta=ones),
        "stick-breaking": operators.stickbreaking_attention(q, k),
        "wall": operators.wall_attention(q, k, g=zeros, window_size=2),
        "parallax": operators.parallax(q, zeros, k, window_size=2),
        "parallax, corrections": operators.parallax(zeros, q, k, window_size=2),
        "deltaformer": operators.deltaformer(q, k),
        "log-linear": operators.log_linear_attention(q, k, g=-ones, level_scales=torch.ones(1, 9, 2, 5).double()),
        "nsa": operators.nsa(q, k, **gate, block_indices=torch.zeros(1, 9, 2, 1).int(), block_size=4, window_size=2),
        "sum": operators.sum_of(operators.attention(*heads, window_size=2), operators.gla(q, k, zeros), weights=[1, 1]),
    }


@pytest.mark.parametrize("name", kin_of(randn(1, 9, 2, 3), randn(1, 9, 2, 3)))
def test_scores_that_overflow_mark_their_head(name):
    """Also those that a window hides and softmax would make plausible."""
    q, k = randn(1, 9, 2, 3), randn(1, 9, 2, 3)
    large_q, large_k = q.clone(), k.clone()
    large_q[:, 8, 1], large_k[:, 0, 1] = 1e160, 1e160
    clean, spoilt = kin_of(q, k)[name], kin_of(large_q, large_k)[name]
    for backend in ("torch", "native", "reference"):
        if backend in TestForgettingAttention()._backends(spoilt):
            counts, wanted = (ek.tolerance_ess(op, 1e-2, backend=backend) for op in (spoilt, clean))
            assert (counts[0, 1] == -1).all()
            assert torch.equal(counts[0, 0], wanted[0, 0])
    # large numbers alone are no bad data
    large_k[:, 0, 1] = k[:, 0, 1]
    assert bool(kin_of(1e-30 * large_q, k)[name].finite(torch.arange(2)).all())
