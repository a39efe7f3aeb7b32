"""RWKV, HGRN and RG-LRU against loops over their recurrences, and against upstream's functions."""

import functools

import pytest
import torch
from loops import by_token, gates, heads_first, loop, randn
from torch.nn.functional import softplus

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


class TestRWKV6(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.rwkv6)
    reads = {"u": (None, 0)}
    allows_minus_inf = ("w",)
    decays = ("w",)
    scales = ("r", "k")
    diagonal_only = ("u",)
    value_layout = "[B, H, T, V]"

    def make_inputs(self, length):
        inputs = {name: randn(2, length, 4, 3) for name in "rk"}
        return {**inputs, "w": gates(2, length, 4, 3), "u": randn(4, 3)}

    def dense(self, r, k, w, u):
        def column(j):
            yield (r[:, j] * u * k[:, j]).sum(-1) / 3**0.5
            state = k[:, j]
            for i in range(j + 1, r.shape[1]):
                yield (r[:, i] * state).sum(-1) / 3**0.5
                state = state * w[:, i].exp()

        return by_token(r.shape[1], column)

    def upstream(self, v, r, k, w, u):
        r, k, w = heads_first(r, k, w)
        return upstream_function("fla.ops.rwkv6.recurrent_naive", "naive_recurrent_rwkv6")(r, k, v, w, u)

    def test_no_answer_depends_on_the_bonus(self):
        inputs = self.inputs(9)
        op = self.make_operator({**inputs, "u": torch.full_like(inputs["u"], torch.nan)})
        assert torch.equal(op.dense().tril(-1), self.make_operator(inputs).dense().tril(-1))
        assert bool(op.dense().diagonal(dim1=-2, dim2=-1).isnan().all())
        assert bool(op.finite(op.all_heads()).all())


class TestRWKV4(OperatorTestCase):
    constructor = staticmethod(operators.rwkv4)
    reads = {"k": (0, 2), "w": (None, 0), "u": (None, 0)}
    state_size = 1
    value_layout = "[B, T, D]"

    def make_inputs(self, length):
        return {"k": 2 * randn(2, length, 4), "w": randn(4), "u": randn(4)}

    def dense(self, k, w, u):
        def column(j):
            yield (u + k[:, j]).exp()
            for i in range(j + 1, k.shape[1]):
                yield (k[:, j] - (i - j - 1) * w.exp()).exp()

        T = by_token(k.shape[1], column)
        return T / T.sum(-1, keepdim=True)

    def upstream(self, v, k, w, u):
        return upstream_function("transformers.models.rwkv.modeling_rwkv", "rwkv_linear_attention_cpu")(w, u, k, v)

    def test_keys_of_any_size(self):
        """Shifted keys change nothing, and a token among far smaller ones leaves rows that are still right."""
        inputs = self.inputs(9)
        shifted = operators.rwkv4(inputs["k"] + 5000, w=inputs["w"], u=inputs["u"])
        assert_close("T", shifted.dense(), self.dense(**inputs), 1e-9, 1e-9)
        k, w, u = torch.full((1, 12, 1), -3000.0).double(), torch.tensor([6.0]).double(), torch.zeros(1).double()
        k[0, 0, 0] = 0
        T = operators.rwkv4(k, w=w, u=u).dense()[0, 0]
        # a decay of exp(-403) a token: the first token outweighs the next ones, and then it is gone
        assert T[7, 0] == 1 and T[11, 0] == 0
        assert T[11, 10] == pytest.approx(0.5, rel=1e-12) == T[11, 11]
        assert_close("row sums", T.sum(-1), torch.ones(12))


class TestHGRN(OperatorTestCase):
    constructor = staticmethod(operators.hgrn)
    allows_minus_inf = ("g",)
    decays = ("g",)
    state_size = 1
    value_layout = "[B, T, D]"

    def make_inputs(self, length):
        return {"g": gates(2, length, 4)}

    def dense(self, g):
        one = torch.ones_like(g)[..., None]
        return loop(one, one, g.exp()[..., None])

    def upstream(self, v, g):
        return upstream_function("fla.ops.hgrn.naive", "naive_recurrent_hgrn")(v, g)


class TestHGRN2(OperatorTestCase):
    constructor = staticmethod(operators.hgrn2)
    options = {"scale": 0.5}
    allows_minus_inf = ("g",)
    scales = ("q",)

    def make_inputs(self, length):
        return {"q": randn(2, length, 4, 3), "g": gates(2, length, 4, 3)}

    def dense(self, q, g):
        return loop(0.5 * q, 1 - g.exp(), g.exp())

    def upstream(self, v, q, g):
        # it has no scale of its own but K^-1/2
        return upstream_function("fla.ops.gla.naive", "naive_recurrent_gla")(0.5 * 3**0.5 * q, 1 - g.exp(), v, g)


def with_resets(a):
    reset = torch.arange(a.shape[1]).expand(a.shape[:2]) % 4 == 0
    return operators.rg_lru(a, reset=reset)


class TestRGLRU(OperatorTestCase):
    constructor = staticmethod(operators.rg_lru)
    state_size = 1

    def make_inputs(self, length):
        return {"a": torch.exp(-8 * torch.sigmoid(randn(2, length, 4)) * softplus(randn(4) - 3))}

    def dense(self, a):
        one = torch.ones_like(a)[..., None]
        return loop(one, (1 - a**2).sqrt()[..., None], a[..., None])


class TestRGLRUWithResets(TestRGLRU):
    constructor = staticmethod(with_resets)
    value_layout = "[B, T, D]"

    def dense(self, a):
        T = super().dense(a)
        start = torch.arange(a.shape[1]) // 4 * 4
        row = torch.arange(a.shape[1])
        T = torch.where(row < start[:, None], 0.0, T)
        first = (row % 4 == 0) & (row <= row[:, None])
        return torch.where(first, T / (1 - a**2).sqrt().transpose(1, 2)[:, :, None], T)

    def upstream(self, v, a):
        scan = upstream_function(
            "transformers.models.recurrent_gemma.modeling_recurrent_gemma", "RecurrentGemmaRglru._rnn_scan"
        )
        reset = torch.arange(a.shape[1])[None, :, None] % 4 == 0
        return scan(None, v * torch.where(reset, 1.0, (1 - a**2).sqrt()), a, reset, None, torch.float64)

    def test_the_whole_layer(self):
        """`RecurrentGemmaRglru.forward`, from its own parameters; the input gate belongs to the values."""
        module = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
        config = module.RecurrentGemmaConfig(lru_width=4, num_attention_heads=2, hidden_size=4)
        torch.manual_seed(0)
        layer = module.RecurrentGemmaRglru(config).double()
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        x = randn(2, 9, 4)
        layer._rnn_scan = functools.partial(layer._rnn_scan, acc_dtype=torch.float64)
        forward = upstream_function(module.__name__, "RecurrentGemmaRglru.forward")
        y = forward(layer, x, torch.arange(9).expand(2, -1) % 4)

        def gate(weight, bias):
            z = torch.einsum("blhi,hij->blhj", x.unflatten(-1, (2, 2)), weight) + bias
            return torch.sigmoid(z).flatten(-2)

        recurrent = gate(layer.recurrent_gate_weight, layer.recurrent_gate_bias)
        a = torch.exp(-8 * recurrent * softplus(layer.recurrent_param))
        values = x * gate(layer.input_gate_weight, layer.input_gate_bias)
        mixed = with_resets(a).dense() @ values.transpose(1, 2)[..., None]
        assert_close("y", mixed[..., 0].transpose(1, 2), y, 1e-12, 1e-12)
