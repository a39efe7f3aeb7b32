"""Slots that are read by a softmax, against loops over their recurrences, and against upstream's functions."""

import math

import torch
from loops import gates, heads_first, loop, qk, randn

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


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
