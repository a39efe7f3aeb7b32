"""Families with diagonal transitions beyond GLA's, against loops over their recurrences and upstream's functions."""

import functools
import math
import types

import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gates(*shape):
    return logsigmoid(randn(*shape))


def qk(length, *, heads=4, size=3):
    return {"q": randn(2, length, heads, size), "k": randn(2, length, heads, size)}


def by_token(length, columns):
    """`T [*batch, L, L]` from `columns(j)`, which yields the entries `T[..., i, j]` for i = j, j + 1, ..."""
    rows = [list(columns(j)) for j in range(length)]
    T = torch.zeros(*rows[0][0].shape, length, length, dtype=torch.float64)
    for j, column in enumerate(rows):
        for step, entry in enumerate(column):
            T[..., j + step, j] = entry
    return T


def loop(q, k, decay):
    """`q_i . D_i ... D_{j+1} k_j` from `[B, T, H, n]`, decays not in logarithms."""

    def column(j):
        state = k[:, j]
        yield (q[:, j] * state).sum(-1)
        for i in range(j + 1, q.shape[1]):
            state = state * decay[:, i]
            yield (q[:, i] * state).sum(-1)

    return by_token(q.shape[1], column)


def heads_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]


class TestRWKV6(OperatorTestCase):
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


class SlotsCase(OperatorTestCase):
    constructor = staticmethod(operators.gsa)
    state_size = 5

    def gates_and_writes(self, s, g):
        return g.exp(), s

    def dense(self, q, k, s, g=None):
        sharing = q.shape[2] // k.shape[2]
        k, s = (x.repeat_interleave(sharing, 2) for x in (k, s))
        g = None if g is None else g.repeat_interleave(sharing, 2)
        decay, s = self.gates_and_writes(s, g)
        state, weights = q.new_zeros(*q.shape[:1], *q.shape[2:], s.shape[-1]), []
        for i in range(q.shape[1]):
            state = state * decay[:, i, :, None] + k[:, i, ..., None] * s[:, i, :, None]
            weights.append(torch.softmax((q[:, i, ..., None] * state).sum(-2) * q.shape[-1] ** -0.5, -1))
        return loop(torch.stack(weights, 1), s, decay)


class TestGSA(SlotsCase):
    allows_minus_inf = ("g",)

    def make_inputs(self, length):
        slots = {"s": randn(2, length, 4, 5), "g": gates(2, length, 4, 5)}
        return {**qk(length), **slots}

    def upstream(self, v, q, k, s, g):
        return upstream_function("fla.ops.gsa.naive", "naive_recurrent_gsa")(q, k, v, s, g)


class TestGSAGroups(SlotsCase):
    """Four query heads read two heads of keys."""

    allows_minus_inf = ("g",)

    def make_inputs(self, length):
        keys = {"k": randn(2, length, 2, 3), "s": randn(2, length, 2, 5), "g": gates(2, length, 2, 5)}
        return {"q": randn(2, length, 4, 3), **keys}

    def upstream(self, v, q, k, s, g):
        # its values have as many heads as its keys: each of two query heads of a group by itself
        naive = upstream_function("fla.ops.gsa.naive", "naive_recurrent_gsa")
        parts = [naive(q[:, :, n::2], k, v[:, :, n::2], s, g)[0] for n in range(2)]
        return torch.stack(parts, 3).flatten(2, 3)


class TestABC(SlotsCase):
    value_layout = "[B, H, T, V]"

    def make_inputs(self, length):
        return {**qk(length), "s": 3 * randn(2, length, 4, 5)}

    def gates_and_writes(self, s, g):
        sums = s.exp().cumsum(1)
        return torch.cat([torch.ones_like(sums[:, :1]), sums[:, :-1]], 1) / sums, s.exp() / sums

    def upstream(self, v, q, k, s):
        q, k, s = heads_first(q, k, s)
        return upstream_function("fla.ops.abc.naive", "naive_recurrent_abc")(q, k, v, s)

    def test_logits_of_any_size(self):
        inputs = self.inputs(9)
        shifted = self.make_operator({**inputs, "s": inputs["s"] + 5000})
        assert_close("T", shifted.dense(), self.dense(**inputs), 1e-9, 1e-9)


class TestLightNet(OperatorTestCase):
    """Upstream has no function that runs on a CPU: the definition, without gates, is the second form."""

    constructor = staticmethod(operators.lightnet)
    scales = ("q",)

    def make_inputs(self, length):
        return qk(length)

    def dense(self, q, k):
        average = k.exp().cumsum(1)
        return torch.einsum("bihn,bjhn->bhij", q / average, k.exp()).tril() * q.shape[-1] ** -0.5

    def test_it_is_upstreams_gla(self):
        """`chunk_lightnet` is `chunk_gla` with keys and gates of `fused_additive_gate`, whose first gate is -inf."""
        inputs = self.inputs(9)
        q, k = inputs["q"], inputs["k"]
        z = k.logcumsumexp(1)
        g = torch.cat([torch.full_like(z[:, :1], -torch.inf), z[:, :-1]], 1) - z
        assert_close("T", operators.lightnet(q, k).dense(), operators.gla(q, (k - z).exp(), g).dense(), 1e-12, 1e-12)

    def test_logits_of_any_size(self):
        inputs = self.inputs(9)
        shifted = operators.lightnet(inputs["q"], inputs["k"] - 5000)
        assert_close("T", shifted.dense(), self.dense(**inputs), 1e-9, 1e-9)


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


class TestCyFA(OperatorTestCase):
    constructor = staticmethod(operators.cyfa)
    options = {"q_norm_eps": 1e-6, "k_norm_eps": 1e-5}
    reads = {"readout": (None, 0), "q_norm_weight": (None, None), "k_norm_weight": (None, None)}
    allows_minus_inf = ("g",)
    state_size = 6

    def make_inputs(self, length):
        tokens = {
            "g": gates(2, length, 4),
            "delta": 4 * randn(2, length, 4),
            "beta": torch.sigmoid(randn(2, length, 4)),
        }
        norms = {f"{name}_norm_weight": 1 + randn(3) / 4 for name in "qk"}
        return {**qk(length), **tokens, "readout": randn(4, 5, 5), **norms}

    def dense(self, q, k, g, delta, beta, readout, q_norm_weight, k_norm_weight):
        """With complex numbers: the places are held by their Fourier transform."""

        def norm(x, weight, eps):
            return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

        q, k = norm(q, q_norm_weight, 1e-6) * 3**-0.5, norm(k, k_norm_weight, 1e-5)
        frequency = torch.arange(3.0).double()
        size = torch.tensor([1.0, 2.0, 2.0]).double().div(5).sqrt()
        turn = torch.exp(2j * math.pi / 5 * frequency * delta.cumsum(1)[..., None])  # [B, T, H, 3]
        waves = torch.exp(2j * math.pi / 5 * frequency * torch.arange(5.0).double()[:, None])
        # the real product of two of these counts frequency 0 once, for its sine is no number of the state
        table = readout @ (size * waves.real) + 1j * (readout @ (size * waves.imag))
        write = size * turn.conj() * beta[..., None]
        decay, state, rows = g.exp(), torch.zeros(2, 4, 3, 3, dtype=torch.complex128)[: q.shape[0], : q.shape[2]], []
        for i in range(q.shape[1]):
            state = decay[:, i, :, None, None] * state + k[:, i, ..., None] * write[:, i, :, None]
            found = (q[:, i, ..., None] * state).sum(-2) * turn[:, i]
            logits = torch.einsum("bhm,hrm->bhr", found.conj(), table).real
            rows.append(torch.einsum("bhr,hrm->bhm", torch.softmax(logits, -1) + 0j, table) * turn[:, i].conj())

        def flat(x):
            return torch.view_as_real(x).flatten(-2)

        return loop(flat(torch.stack(rows, 1)), flat(write), decay[..., None])

    def upstream(self, v, **inputs):
        naive = upstream_function("fla.ops.cyfa.naive", "naive_recurrent_cyfa")
        q, k = inputs.pop("q"), inputs.pop("k")
        return naive(q, k, v, **inputs, q_norm_eps=1e-6, k_norm_eps=1e-5)


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


class TestLFM2(OperatorTestCase):
    constructor = staticmethod(operators.lfm2_conv)
    reads = {"B": (0, 1), "C": (0, 1), "weight": (None, 0)}
    state_size = 2
    scales = ("B", "C", "weight")
    value_layout = "[B, D, T]"

    def make_inputs(self, length):
        return {"B": randn(2, 4, length), "C": randn(2, 4, length), "weight": randn(4, 3)}

    def dense(self, B, C, weight):
        width = weight.shape[1]

        def column(j):
            for i in range(j, min(j + width, B.shape[-1])):
                yield C[..., i] * weight[:, width - 1 - (i - j)] * B[..., j]

        return by_token(B.shape[-1], column)

    def upstream(self, v, B, C, weight):
        convolve = upstream_function("transformers.models.lfm2.modeling_lfm2", "causal_conv1d_fn")
        return C * convolve(B * v, weight, None)


def test_a_whole_layer_of_lfm2():
    """From its own parameters, projections included."""
    module = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    torch.manual_seed(0)
    config = module.Lfm2Config(
        hidden_size=6, conv_L_cache=3, conv_bias=False, layer_types=["conv"], num_hidden_layers=1
    )
    layer = module.Lfm2ShortConv(config, 0).double()
    hidden = randn(2, 9, 6)
    forward = upstream_function(module.__name__, "Lfm2ShortConv.forward")
    B, C, x = (layer.in_proj(hidden).mT).detach().chunk(3, -2)
    op = operators.lfm2_conv(B, C, layer.conv.weight.detach()[:, 0])
    y = layer.out_proj((op.dense() @ x[..., None])[..., 0].mT)
    assert_close("y", y, forward(layer, hidden), 1e-12, 1e-12)


class TestLFM2OfOneTap(TestLFM2):
    state_size = 0

    def make_inputs(self, length):
        return {**super().make_inputs(length), "weight": randn(4, 1)}


class TestDynamicShortConvolution(OperatorTestCase):
    constructor = staticmethod(operators.dynamic_short_convolution)
    reads = {"weight": (0, 1)}
    state_size = 2
    scales = ("weight",)

    def make_inputs(self, length):
        return {"weight": randn(2, 4, length, 3)}

    def upstream(self, v, weight):
        """Inkling-2's module with these taps for all channels of a head, but for the input and the factor it adds."""
        module = "transformers.models.inkling2.modeling_inkling2"
        width, channels = weight.shape[-1], v.shape[3]
        scaled = weight.transpose(1, 2) * (2 * width + 1) ** 0.5
        scaled[..., 0] -= 1
        stub = types.SimpleNamespace(
            conv_kernel_size=width,
            num_heads=4,
            static_weight=torch.zeros(width, 4 * channels, dtype=torch.float64),
            weight_proj=lambda taps: taps,
        )
        forward = upstream_function(module, "Inkling2DynamicShortConvolution.forward")
        return forward(stub, v.flatten(2), scaled).unflatten(-1, (4, channels))

    def dense(self, weight):
        def column(j):
            for i in range(j, min(j + weight.shape[-1], weight.shape[2])):
                yield weight[:, :, i, i - j]

        return by_token(weight.shape[2], column)


class TestDynamicShortConvolutionOfOneTap(TestDynamicShortConvolution):
    state_size = 0

    def make_inputs(self, length):
        return {"weight": randn(2, 4, length, 1)}


# --- fewer heads of q and k than of gates ---------------------------------------------------------------------------


def repeated(*tensors):
    return [x.repeat_interleave(2, 2) for x in tensors]


class TestGroupedGLA(OperatorTestCase):
    constructor = staticmethod(operators.gla)
    allows_minus_inf = ("g",)
    decays = ("g",)
    scales = ("q", "k")

    def make_inputs(self, length):
        return {**qk(length, heads=2), "g": gates(2, length, 4, 3)}

    def dense(self, q, k, g):
        q, k = repeated(q, k)
        return loop(q * 3**-0.5, k, g.exp())


class TestGroupedSimpleGLA(OperatorTestCase):
    constructor = staticmethod(operators.simple_gla)
    allows_minus_inf = ("g",)
    decays = ("g",)
    scales = ("q", "k")

    def make_inputs(self, length):
        return {**qk(length, heads=2), "g": gates(2, length, 4)}

    def dense(self, q, k, g):
        q, k = repeated(q, k)
        return loop(q * 3**-0.5, k, g.exp()[..., None])


class TestGroupedSimpleGLAFixed(OperatorTestCase):
    constructor = staticmethod(operators.simple_gla)
    reads = {"g_gamma": (None, 0)}
    allows_minus_inf = ("g_gamma",)
    decays = ("g_gamma",)

    def make_inputs(self, length):
        return {**qk(length, heads=2), "g_gamma": gates(4)}

    def dense(self, q, k, g_gamma):
        q, k = repeated(q, k)
        return loop(q * 3**-0.5, k, g_gamma.exp()[:, None].expand(q.shape))


def four_value_heads(constructor, **options):
    def construct(q, k):
        return constructor(q, k, num_v_heads=2 * q.shape[2], **options)

    return staticmethod(construct)


class TestGroupedRetention(OperatorTestCase):
    constructor = four_value_heads(operators.retention)
    scales = ("q", "k")

    def make_inputs(self, length):
        return qk(length, heads=2)

    def dense(self, q, k):
        q, k = repeated(q, k)
        gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(4)]).double()
        return loop(q * 3**-0.5, k, gamma[:, None].expand(q.shape))


class TestGroupedLinearAttention(OperatorTestCase):
    constructor = four_value_heads(operators.linear_attention, normalize=True)

    def make_inputs(self, length):
        return {name: x.abs() + 0.1 for name, x in qk(length, heads=2).items()}

    def dense(self, q, k):
        q, k = repeated(q, k)
        T = torch.einsum("bihn,bjhn->bhij", q, k).tril() * 3**-0.5
        return T / (T.sum(-1, keepdim=True) + 1e-10)
