"""Scales that the entropy's bounds rest on, and inputs whose values lie where nodes are few."""

from contextlib import nullcontext

import pytest
import torch

import ess_kernels as ek
from ess_kernels.backends.native.choice import as_set, library
from ess_kernels.backends.native.matrix import NativeMatrix
from ess_kernels.engine.cost import Cost
from ess_kernels.engine.tiled import NORM_STEPS, Matrix, schur_bound
from ess_kernels.reference import reference_entropy_ess
from ess_kernels.testing.cases import powers

needs_native = pytest.mark.skipif(library().handle is None, reason="there is no compiled library")
BACKENDS = ["torch", pytest.param("native", marks=needs_native)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal_to(v: torch.Tensor, length: int = 96) -> torch.Tensor:
    """A `T` `[1, L, L]` whose large singular directions are orthogonal to `v` `[L]`, where a power iteration starts."""
    T = 1e-3 * randn(length, length).tril(-1)
    large = torch.zeros(length, length, dtype=torch.float64)
    large[length // 2 :, : length // 2] = randn(length // 2, length // 2, seed=1)
    v = torch.where(torch.arange(length) < length // 2, v, 0.0)
    large = large - (large @ v)[:, None] * v / v.square().sum()
    return (T - (T @ v)[:, None] * v / v.square().sum() + large).tril(-1)[None]


def starts(length: int = 96) -> dict[str, torch.Tensor]:
    seeded = torch.randn(length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {
        "seed 0": seeded,
        "ones": torch.ones(length).double(),
        "alternating": (-1.0) ** torch.arange(length).double(),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", starts())
def test_directions_orthogonal_to_a_start(name, backend):
    T = orthogonal_to(starts()[name])
    entropy, certificate = ek.entropy_ess(T, backend=backend, certificate=True)
    wanted = reference_entropy_ess(T)
    assert bool(((entropy - wanted).abs() <= certificate.error * wanted).all())
    assert float(certificate.error.max()) < 1e-4


OPERATORS = {
    "signs that cancel": lambda L: randn(1, L, L),
    "positive": lambda L: randn(1, L, L).abs(),
    "one entry": lambda L: torch.nn.functional.pad(torch.ones(1, 1, 1), (0, L - 1, L - 1, 0)).double(),
    "graded": lambda L: randn(1, L, L) * powers(0, -200, L)[:, None] * powers(-150, 0, L),
    "diagonal blocks": lambda L: torch.block_diag(*randn(4, L // 4, L // 4))[None],
    "hardly coupled": lambda L: (torch.block_diag(*[torch.ones(L // 4, L // 4)] * 4) + 1e-300).double()[None],
    "zero": lambda L: torch.zeros(1, L, L).double(),
}


def bound_of(T):
    A = T.abs()
    return schur_bound(A.new_ones(*A.shape[:2], 1), lambda v: A.mT @ (A @ v))


@pytest.fixture(params=[Matrix, pytest.param(NativeMatrix, marks=needs_native)])
def kind(request):
    with as_set() if request.param is NativeMatrix else nullcontext():
        yield request.param


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("L", [4, 40, 100])
def test_scales_are_upper_bounds(name, L, kind):
    engine = kind(OPERATORS[name](L).clone(), torch.ones(1, dtype=torch.bool), 1 << 28, Cost())
    norm = torch.linalg.matrix_norm(engine.T, 2).square()
    assert bool((bound_of(engine.T) >= norm * (1 - 1e-12)).all())
    assert bool((engine.squared_norm >= norm * (1 - 1e-12)).all())
    for i in range(1, L, 7):
        H = engine.T[:, i:, :i]
        assert bool((engine.bound_of_squares() >= torch.linalg.matrix_norm(H, 2).square()).all())
        torch.testing.assert_close(engine.squared_norms[:, i], H.square().sum((1, 2)), rtol=1e-12, atol=1e-300)


def test_the_bound_of_positive_operators_is_near():
    T = torch.softmax(2 * randn(2, 300, 16) @ randn(2, 16, 300, seed=1) / 4, -1).tril(-1)
    T = T / T.sum(-1, keepdim=True).clamp_min(1e-300)
    norm = torch.linalg.matrix_norm(T, 2).square()
    assert NORM_STEPS <= 8 and bool((bound_of(T) <= 1.1 * norm).all())


def far_down() -> dict[str, torch.Tensor]:
    L = 160
    one = torch.ones(L, 1).double() @ (1 + torch.rand(1, L, generator=torch.Generator().manual_seed(0))).double()
    left, right = (torch.linalg.qr(randn(L, L, seed=seed)).Q for seed in (4, 5))
    return {
        "rank one": one,
        "rank one and a little": one + 1e-9 * randn(L, L),
        "one large, many 1e-7": one + 1e-7 * randn(L, L),
        "values down to 1e-10": (left * powers(0, -10, L)) @ right,
        "rows that fall to 1e-64": randn(L, L) * powers(0, -64, L)[:, None],
        "a sink": torch.cat([torch.ones(L, 1).double(), 1e-6 * torch.rand(L, L - 1).double()], 1),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", far_down())
def test_values_far_below_the_largest(name, backend):
    T = far_down()[name].tril(-1)[None]
    entropy, certificate = ek.entropy_ess(T, backend=backend, certificate=True)
    wanted = reference_entropy_ess(T)
    assert float(certificate.error.max()) <= 1e-4
    assert bool(((entropy - wanted).abs() <= (certificate.error + 1e-12) * wanted).all())
