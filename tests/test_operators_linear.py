"""Kin of linear attention, against loops over their recurrences, and against upstream's functions."""

import math
import types

import pytest
import torch
from loops import by_token, gates, heads_first, loop, qk, randn
from torch.nn.functional import logsigmoid, softplus

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


class TestBased(OperatorTestCase):
    constructor = staticmethod(operators.based)
    state_size = 10
    value_layout = "[B, H, T, V]"
    module, polynomial = "based", staticmethod(lambda a: 1 + a + a**2 / 2)

    def make_inputs(self, length):
        return qk(length)

    def dense(self, q, k):
        T = self.polynomial(torch.einsum("bihn,bjhn->bhij", q, k) * q.shape[-1] ** -0.5).tril()
        return T / (T.sum(-1, keepdim=True) + 1e-6)

    def upstream(self, v, q, k):
        q, k = heads_first(q, k)
        return upstream_function(f"fla.ops.{self.module}.naive", f"naive_parallel_{self.module}")(q, k, v)


class TestReBased(TestBased):
    constructor = staticmethod(operators.rebased)
    state_size = 6
    module, polynomial = "rebased", staticmethod(lambda a: a**2)


class TestMesaNet(OperatorTestCase):
    constructor = staticmethod(operators.mesa_net)
    reads = {"lamb": (None, 0)}
    allows_minus_inf = ("g",)
    scales = ("q",)
    value_channels = 3
    state_size = 3

    def make_inputs(self, length):
        tokens = {"g": gates(2, length, 4), "beta": torch.sigmoid(randn(2, length, 4))}
        return {**qk(length), **tokens, "lamb": 0.5 + torch.rand(4, 3, dtype=torch.float64)}

    def dense(self, q, k, g, beta, lamb):
        state, rows = torch.diag_embed(torch.zeros_like(lamb)), []
        for i in range(q.shape[1]):
            own = beta[:, i, :, None, None] * k[:, i, :, :, None] * k[:, i, :, None]
            state = g[:, i, :, None, None].exp() * state + own
            rows.append((torch.linalg.inv(state + torch.diag_embed(lamb)) @ q[:, i, ..., None])[..., 0])
        return loop(torch.stack(rows, 1), beta[..., None] * k, g.exp()[..., None])

    def upstream(self, v, q, k, g, beta, lamb):
        return upstream_function("fla.ops.mesa_net.naive", "naive_mesa_net_exact")(q, k, v, g, lamb, beta)


class TestMesaNetNormalized(TestMesaNet):
    options = {"use_qk_l2norm_in_kernel": True}
    scales = ()

    def dense(self, q, k, **others):
        return super().dense(*(x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k)), **others)

    def upstream(self, v, q, k, **others):
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
        return super().upstream(v, q, k, **others)


class TestLightningAttention(OperatorTestCase):
    """The slopes of fla; its function is `chunk_simple_gla` with them."""

    constructor = staticmethod(operators.lightning_attention)
    options = {"layer_idx": 3, "num_layers": 12}
    scales = ("q", "k")

    def make_inputs(self, length):
        return qk(length)

    def dense(self, q, k):
        decay = torch.exp(-8 / 4 * (1 - 3 / 12) * torch.arange(4.0).double())
        return loop(q * 3**-0.5, k, decay[:, None].expand(q.shape))


def minimax(q, k):
    slopes = 2.0 ** (-8 / 4 * torch.arange(1, 5).double()) * (1 - 3 / (12 - 1 + 1e-5) + 1e-5)
    return operators.simple_gla(q, k, g_gamma=-slopes, scale=1.0)


class TestMiniMax(OperatorTestCase):
    """MiniMax's lightning attention as `simple_gla` with its slopes, against a whole layer of transformers."""

    constructor = staticmethod(minimax)
    scales = ("q", "k")

    def make_inputs(self, length):
        return qk(length)

    def dense(self, q, k):
        slopes = [2 ** (-8 * (h + 1) / 4) * (1 - 3 / (12 - 1 + 1e-5) + 1e-5) for h in range(4)]
        return loop(q, k, torch.tensor(slopes, dtype=torch.float64).neg().exp()[:, None].expand(q.shape))

    def upstream(self, v, q, k):
        """The layer from its projection on, without activation, norm and output gate."""
        layer = "MiniMaxLightningAttention"
        module = "transformers.models.minimax.modeling_minimax"
        length, size, width = q.shape[1], q.shape[3], max(q.shape[3], v.shape[3])

        def wide(x):  # its queries, keys and values have one size
            return torch.nn.functional.pad(x, (0, width - x.shape[-1]))

        stub = types.SimpleNamespace(
            layer_idx=3, num_hidden_layers=12, num_attention_heads=4, head_dim=width, block_size=4,
            qkv_proj=lambda x: torch.cat([wide(q), wide(k), wide(v)], -1).flatten(2),
            act_fn=lambda x: x,
            norm=lambda x: x,
            output_gate=lambda x: torch.full((), 100.0),  # a sigmoid of one
            out_proj=lambda x: x,
        )  # fmt: skip
        stub.slope_rate = upstream_function(module, f"{layer}.get_slope_rate")(stub)
        decays = upstream_function(module, f"{layer}.decay_factors")(stub, stub.slope_rate)
        stub.query_decay, stub.key_decay, stub.diagonal_decay = decays
        assert size <= width
        hidden = torch.zeros(q.shape[0], length, 1)
        o, _ = upstream_function(module, f"{layer}.forward")(stub, hidden, None, None)
        return o.unflatten(-1, (4, width))[..., : v.shape[3]]


class TestMLSTM(OperatorTestCase):
    constructor = staticmethod(operators.mlstm)
    reads = dict.fromkeys("qkif", (0, 1))
    value_layout = "[B, H, T, V]"

    def make_inputs(self, length):
        tokens = {name: randn(2, 4, length, 3) for name in "qk"}
        return {**tokens, "i": 2 * randn(2, 4, length), "f": 1 + randn(2, 4, length)}

    def dense(self, q, k, i, f):
        q, k, i, f = heads_first(q, k, i, f)
        T = loop(q * 3**-0.5, k * i.exp()[..., None], torch.sigmoid(f)[..., None])
        largest, before = [], torch.zeros_like(i[:, 0])
        for t in range(i.shape[1]):
            before = torch.maximum(before + logsigmoid(f[:, t]), i[:, t])
            largest.append(before)
        largest = torch.stack(largest, -1)[..., None]
        return T / (T.sum(-1, keepdim=True).abs().clamp_min(1) + 1e-6 * largest.exp())

    def upstream(self, v, q, k, i, f):
        naive = upstream_function("transformers.models.xlstm.modeling_xlstm", "mlstm_recurrent_sequence_native")
        return naive(q, k, v, i, f, dtype_state=torch.float64)

    def test_input_gates_of_any_size(self):
        """A thousand more in every input gate: the floor of 1 no longer matters, and no exponential overflows."""
        inputs = self.inputs(9)
        T = self.make_operator({**inputs, "i": inputs["i"] + 1000}).dense()
        once_more = self.make_operator({**inputs, "i": inputs["i"] + 2000}).dense()
        assert_close("T", once_more, T, 1e-9, 1e-9)
        assert bool((self.make_operator({**inputs, "i": inputs["i"] - 2000}).dense() == 0).all())


class TestMamba3(OperatorTestCase):
    """Against a second form, the state turned instead of reads and writes: upstream's function needs a GPU."""

    constructor = staticmethod(operators.mamba3)
    reads = {
        **dict.fromkeys(("ADT", "DT", "Trap"), (0, 1)),
        **dict.fromkeys(("Q_bias", "K_bias"), (None, 0)),
    }
    allows_minus_inf = ("ADT",)
    decays = ("ADT",)
    state_size = 5

    def make_inputs(self, length):
        groups = {name: randn(2, length, 2, 5) for name in "QK"}
        steps = {"ADT": gates(2, 4, length), "DT": softplus(randn(2, 4, length)), "Trap": randn(2, 4, length)}
        biases = {f"{name}_bias": randn(4, 5) for name in "QK"}
        return {**groups, **steps, **biases, "Angles": randn(2, length, 4, 2)}

    def dense(self, Q, K, ADT, DT, Trap, Q_bias, K_bias, Angles):
        def per_head(x, bias):  # complex numbers for pairs, the fifth coordinate does not turn
            x = x.repeat_interleave(2, 2) + bias
            return torch.cat([torch.complex(x[..., 0:4:2], x[..., 1:4:2]), x[..., 4:] + 0j], -1)

        q, k = per_head(Q, Q_bias), per_head(K, K_bias)
        decay, dt, trap = (x.transpose(1, 2) for x in (ADT.exp(), DT, torch.sigmoid(Trap)))
        speed = math.pi * torch.tanh(Angles) * dt[..., None]
        turn = torch.exp(-1j * torch.cat([speed, torch.zeros_like(speed[..., :1])], -1))

        def column(j):
            # the state at rest turns backwards, so that queries and keys need not turn
            state, last = torch.zeros_like(k[:, j]), None
            for i in range(j, Q.shape[1]):
                moved = decay[:, i, :, None] * turn[:, i]
                state = moved * state
                if last is not None:
                    state = state + ((1 - trap[:, i]) * dt[:, i])[..., None] * moved * last
                last = k[:, i] if i == j else torch.zeros_like(k[:, i])
                state = state + (trap[:, i] * dt[:, i])[..., None] * last
                yield (q[:, i].conj() * state).sum(-1).real

        return by_token(Q.shape[1], column)

    def test_several_inputs_are_refused(self):
        inputs = self.inputs(3)
        with pytest.raises(NotImplementedError, match=r"^Q: .*MIMO"):
            operators.mamba3(**{**inputs, "Q": inputs["Q"][:, :, None]})
