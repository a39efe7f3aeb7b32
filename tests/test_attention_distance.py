"""Attention whose logits depend on the tokens between row and column, and which keys it sees: gates, slopes, sinks."""

import pytest
import torch
from loops import gates, randn
from rows import decays, heads_first, repeated, row_by_row, seq_first, softmax, windowed

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


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
