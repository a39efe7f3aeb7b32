"""Fewer heads of q and k than of gates or values: value head h reads those of head `h // (HV // H)`."""

import torch
from loops import gates, loop, qk

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase


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
