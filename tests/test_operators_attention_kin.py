"""Attention's kin with weights of their own, against loops over rows and upstream's functions."""

import pytest
import torch
from loops import gates, randn
from rows import decays, repeated, row_by_row, softmax, tokens_first, windowed

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


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
    speaks_for_its_kind = True
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
        if backend in TestPathAttention()._backends(spoilt):
            counts, wanted = (ek.tolerance_ess(op, 1e-2, backend=backend) for op in (spoilt, clean))
            assert (counts[0, 1] == -1).all()
            assert torch.equal(counts[0, 0], wanted[0, 0])
    # large numbers alone are no bad data
    large_k[:, 0, 1] = k[:, 0, 1]
    assert bool(kin_of(1e-30 * large_q, k)[name].finite(torch.arange(2)).all())
