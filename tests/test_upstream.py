"""How upstream's functions are asked for their matrix: in float64, and a mixer that is not linear must not pass."""

import sys
import types

import pytest
import torch

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, upstream_function
from ess_kernels.testing.upstream import ValueLayout, matrix_of

LAYOUTS = ["[B, T, H, V]", "[B, H, T, V]", "[B, D, T]", "[B, T, D]", "[D, T]", "[T, V]"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [None, 2])
def test_the_matrix_of_a_matrix(layout, channels):
    axes = ValueLayout(layout)
    if channels and not axes.has_channels:
        pytest.skip("one value a token")
    batch = (2, 3)[: len(axes.batch_axes)]
    T = torch.randn(*batch, 5, 5).double()
    mixed = matrix_of(lambda v: axes.from_canonical(T @ axes.to_canonical(v)), axes, batch, 5, channels)
    assert torch.equal(mixed, T)


@pytest.fixture
def package(monkeypatch):
    """A package with one function, as upstream would have it."""
    module = types.ModuleType("a_package")
    monkeypatch.setitem(sys.modules, "a_package", module)
    return module


def test_casts_to_float32_are_casts_to_float64(package):
    package.mix = lambda v: (v.float() + v.to(torch.float32) + v.to(torch.float) + torch.zeros(()), torch.ones(1))
    v = torch.full((1,), 1 + 1e-12, dtype=torch.float64)
    mixed, ones = upstream_function("a_package", "mix")(v)
    assert torch.equal(mixed, 3 * v) and ones.dtype == torch.float64
    assert torch.float32 is torch.zeros(1).dtype and v.float().dtype == torch.float32 == torch.float


def test_a_failing_function_leaves_the_dtypes_as_they_were(package):
    def mix(v):
        raise RuntimeError

    package.mix = mix
    with pytest.raises(RuntimeError):
        upstream_function("a_package", "mix")(torch.ones(1))
    assert torch.zeros(1).dtype is torch.float32 is torch.float


class Family(OperatorTestCase):
    constructor = staticmethod(operators.linear_attention)
    options = {"scale": 1.0}

    def make_inputs(self, length):
        return {name: torch.randn(2, length, 3, 2).double() for name in "qk"}

    def dense(self, q, k):
        return torch.einsum("bihn,bjhn->bhij", q, k).tril()

    def upstream(self, v, q, k):
        return self.mix(v, self.dense(q, k))


MIXERS = {
    "linear": lambda v, T: torch.einsum("bhij,bjhv->bihv", T, v),
    "wrong by 1e-11": lambda v, T: torch.einsum("bhij,bjhv->bihv", T * (1 + 1e-11), v),
    "not linear": lambda v, T: torch.einsum("bhij,bjhv->bihv", T, torch.where((v == 0) | (v == 1), v, v.sin())),
    "not zero for zeros": lambda v, T: torch.einsum("bhij,bjhv->bihv", T, v) + 1e-9 * (v.abs().amax() == 0),
}


@pytest.mark.parametrize("name", MIXERS)
def test_only_the_right_matrix_passes(name):
    case = Family()
    case.mix = MIXERS[name]
    if name == "linear":
        case.test_upstream_is_linear_and_has_this_matrix()
    else:
        with pytest.raises(AssertionError, match="not linear" if name.startswith("not") else "^T:"):
            case.test_upstream_is_linear_and_has_this_matrix()
