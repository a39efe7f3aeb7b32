"""Singular values and counts of many small matrices by compiled kernels, against LAPACK in float64 and against mpmath.

Bounds are those that `csrc/include/ess_spectra.h` states.
"""

from __future__ import annotations

import ctypes

import mpmath
import pytest
import torch
from covering import covering
from identical import levels, running
from torch import Tensor

import ess_kernels as ek
from ess_kernels.backends.native import abi, library, spectra

if library().handle is None:
    pytest.skip(f"native library: {library().reason}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("pinned")
DTYPES = [torch.float32, torch.float64]
HUGE = {torch.float32: 2.0**126, torch.float64: 2.0**1022}
TINY = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lapack_types(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The sixteen types on which LAPACK's DCHKBD tests singular values, and a few of our own; float64 `[n, n]`.

    Those "near overflow" and "near underflow" are scaled by the square roots of the largest and least numbers.
    """
    limits = torch.finfo(dtype)
    ulp, over, under = limits.eps, limits.max**0.5, limits.tiny**0.5
    k = torch.arange(n, dtype=torch.float64)
    even = 1 - k / max(n - 1, 1) * (1 - ulp)
    geometric = ulp ** (k / max(n - 1, 1))
    clustered = torch.where(k == 0, 1.0, ulp)
    U, V = torch.linalg.qr(random(n, n, seed=1)).Q, torch.linalg.qr(random(n, n, seed=2)).Q
    sign = random(n, seed=3).sign()
    entries = 2 * uniform(n, n, seed=4) - 1

    def dense(s: Tensor) -> Tensor:
        return U * s @ V

    spread = torch.exp(2 * torch.log(torch.tensor(ulp)).double() * (2 * uniform(2 * n, seed=5) - 1))
    bidiagonal = torch.diag(spread[:n]) + torch.diag(spread[n : 2 * n - 1], 1)
    # the largest entries of the last type reach ulp^-2
    bidiagonal /= spread.max() if spread.max() > over else 1
    graded = random(n, n, seed=6) * ulp ** (k / n)[:, None]
    return {
        "zero": torch.zeros(n, n, dtype=torch.float64),
        "identity": torch.eye(n, dtype=torch.float64),
        "diagonal, even": torch.diag(even * sign),
        "diagonal, geometric": torch.diag(geometric * sign),
        "diagonal, clustered": torch.diag(clustered * sign),
        "diagonal, near overflow": torch.diag(even * over),
        "diagonal, near underflow": torch.diag(even * under),
        "dense, even": dense(even),
        "dense, geometric": dense(geometric),
        "dense, clustered": dense(clustered),
        "dense, near overflow": dense(even) * over,
        "dense, near underflow": dense(even) * under,
        "random": entries,
        "random, near overflow": entries * over,
        "random, near underflow": entries * under,
        "bidiagonal, log-uniform": bidiagonal,
        "graded rows": graded,
        "graded backwards": graded.flip(0),
        "rank deficient": random(n, (n + 1) // 2, seed=7) @ random((n + 1) // 2, n, seed=8),
        "one column": torch.where(k == n // 2, 1.0, 0.0).expand(n, n).contiguous(),
        "repeated": dense(1.0 + (k < n // 2)),
        "orthogonal": U,
        "ones": torch.ones(n, n, dtype=torch.float64),
    }


def reference(A: Tensor) -> Tensor:
    """By LAPACK in float64, of matrices scaled to the order of 1."""
    scale = A.abs().amax((1, 2)).double().clamp_min(5e-324)
    half = torch.exp2(torch.frexp(scale).exponent.div(2, rounding_mode="floor").double())[:, None, None]
    return torch.linalg.svdvals(A.double() / half / half) * half[..., 0] * half[..., 0]


def bound(A: Tensor) -> float:
    """In units of eps s_1. LAPACK's own error in float64 is of the same order."""
    return 4 + min(A.shape[1:]) / 2


def assert_values(found: Tensor, A: Tensor) -> None:
    expected = reference(A)
    assert found.dtype == A.dtype and found.shape == expected.shape
    assert (found >= 0).all() and (found.diff() <= 0).all()
    # numbers below the normal ones have fewer digits
    ulp = torch.finfo(A.dtype).eps * expected[:, :1] + TINY[A.dtype]
    error = ((found.double() - expected).abs() / ulp).amax(1)
    assert (error <= bound(A)).all(), error


def assert_counts(found: Tensor, values: Tensor, tau: Tensor, slack: float) -> None:
    """Right where no value lies within `slack` of the largest of a tolerance; `tau` `[batch, M]`."""
    least, most = ((values[:, None] > tau[..., None] + sign * slack * values[:, :1, None]).sum(-1) for sign in (1, -1))
    assert ((least <= found) & (found <= most)).all()


@covering(each=2, level=levels(), n=[1, 2, 3, 7, 16, 33, 64], dtype=DTYPES, indirect=["level"])
def test_lapack_types(level: str, n: int, dtype: torch.dtype) -> None:
    types = lapack_types(n, dtype)
    A = torch.stack(list(types.values())).to(dtype)
    values = spectra.singular_values(A)
    assert_values(values, A)
    assert (values[list(types).index("zero")] == 0).all()
    expected = reference(A)
    tau = expected[:, :1] * torch.tensor([2.0, 0.75, 0.1, 1e-3, 1e-5], dtype=torch.float64)
    counts = spectra.counts_above(A, None, tau)
    assert counts.dtype == torch.int64
    assert_counts(counts, expected, tau, (bound(A) + 1) * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_stages(level: str, dtype: torch.dtype) -> None:
    """Larger than what any level reduces in one stage, and no multiple of the band."""
    m, n = 201, 193
    types = lapack_types(n, dtype)
    A = torch.stack([types[name] for name in ("zero", "dense, clustered", "graded rows", "rank deficient", "ones")])
    A = torch.cat([A.to(dtype), random(6, n, n, dtype=dtype)])
    tall = random(2, m, n, dtype=dtype)
    values = spectra.singular_values(A)
    assert_values(values, A)
    assert_values(spectra.singular_values(tall), tall)
    order = torch.tensor([7, 1, 9, 0])
    assert (spectra.singular_values(A[order]) == values[order]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [128, 256])
def test_large_lapack_types(n: int, dtype: torch.dtype) -> None:
    A = torch.stack(list(lapack_types(n, dtype).values())).to(dtype)
    assert_values(spectra.singular_values(A), A)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "m, n",
    [(1, 4), (4, 1), (3, 7), (9, 7), (15, 2), (2, 70), (500, 3), (40, 33), (51, 61), (90, 60), (300, 49), (20, 257)],
)
def test_shapes(level: str, m: int, n: int, dtype: torch.dtype) -> None:
    A = random(5, m, n, dtype=dtype)
    assert_values(spectra.singular_values(A), A)


@pytest.mark.parametrize("n", [4, 9, 20])
def test_against_mpmath(n: int) -> None:
    A = torch.stack([random(n, n), *(x for x in lapack_types(n, torch.float64).values())])[[0, 8, 9, 13, 17]]
    for found, matrix in zip(spectra.singular_values(A), A, strict=True):
        with mpmath.workdps(40):
            exact = mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False)
        largest = float(exact[0])
        errors = [abs(float(x - mpmath.mpf(y))) for x, y in zip(exact, found.tolist(), strict=True)]
        assert max(errors) <= bound(A) / 2 * 2**-52 * largest


@pytest.mark.parametrize("dtype", DTYPES)
def test_bidiagonals_to_high_relative_accuracy(dtype: torch.dtype) -> None:
    """Sweeps alone: values far below eps s_1 are right as well where the reduction has nothing to do."""
    n, eps = 12, torch.finfo(dtype).eps
    decay = (0.05 if dtype == torch.float32 else 0.005) ** torch.arange(n, dtype=torch.float64)
    A = (torch.diag(decay) + torch.diag(0.5 * decay[1:], 1)).to(dtype)[None]
    with mpmath.workdps(60):
        exact = mpmath.svd_r(mpmath.matrix(A[0].tolist()), compute_uv=False)
    found = spectra.singular_values(A)[0].tolist()
    for x, y in zip(exact, found, strict=True):
        assert abs(float(x) / y - 1) < 50 * eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 16])
def test_bidiagonals_of_wide_range(level: str, n: int, dtype: torch.dtype) -> None:
    """Squares underflow; in float32 a sweep fails for one in a thousand, and bisection steps in."""
    decades = 12 if dtype == torch.float32 else 28
    entries = 10 ** (-decades * uniform(2500, 2, n, seed=n))
    entries /= entries.amax((1, 2), keepdim=True)
    A = (torch.diag_embed(entries[:, 0]) + torch.diag_embed(entries[:, 1, : n - 1], 1)).to(dtype)
    assert_values(spectra.singular_values(A), A)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "m, k, n",
    [
        (5, 6, 4),  # of rank 4
        (6, 5, 9),
        (3, 4, 700),
        (300, 20, 30),  # tall
        (30, 400, 50),
        (300, 280, 7),  # larger than 256 on both sides
        (64, 64, 64),
        (1, 3, 1),
    ],
)
def test_products(level: str, m: int, k: int, n: int, dtype: torch.dtype) -> None:
    A, right = random(5, m, n, dtype=dtype), random(5, k, n, dtype=dtype, seed=1)
    exact = torch.linalg.svdvals(A.double() @ right.double().mT)
    found = spectra.singular_values(A, right)
    assert found.shape == exact.shape
    scale = torch.finfo(dtype).eps * A.double().flatten(1).norm(dim=1) * right.double().flatten(1).norm(dim=1)
    assert ((found - exact).abs().amax(1) <= (8 + n) * scale).all()
    assert ((found - exact).abs() <= 50 * torch.finfo(dtype).eps * exact[:, :1]).all()
    tau = exact[:, :1] * torch.tensor([0.5, 0.01], dtype=torch.float64)
    assert_counts(spectra.counts_above(A, right, tau), exact, tau, 50 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [3, 300])
def test_products_of_factors_that_miss_each_other(m: int, dtype: torch.dtype) -> None:
    """Entries of the product are far smaller than those of the factors: their squares alone would vanish."""
    small = 1e-30 if dtype == torch.float32 else 1e-200
    A, right = torch.zeros(1, m, 3, dtype=dtype), torch.zeros(1, 2, 3, dtype=dtype)
    A[0, 0, 0], A[0, 1, 1], A[0, m - 1, 2] = small, small / 2, 1
    right[0, 0, 0], right[0, 1, 1] = 1, 1
    expected = torch.tensor([[small, small / 2]], dtype=dtype)
    torch.testing.assert_close(spectra.singular_values(A, right), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@covering(each=2, level=levels(), n=[1, 2, 7, 16, 20, 50, 100], dtype=DTYPES, indirect=["level"])
def test_neighbours_and_threads_change_nothing(level: str, n: int, dtype: torch.dtype) -> None:
    types = torch.stack(list(lapack_types(n, dtype).values())).to(dtype)
    A = torch.cat([types, random(20, n, n, dtype=dtype)])
    tau = A.double().flatten(1).norm(dim=1)[:, None] * torch.tensor([0.5, 0.1, 1e-9], dtype=torch.float64)
    values, counts = spectra.singular_values(A), spectra.counts_above(A, None, tau)
    order = torch.randperm(len(A), generator=torch.Generator().manual_seed(0))
    assert (spectra.singular_values(A[order]) == values[order]).all()
    assert (spectra.counts_above(A[order], None, tau[order]) == counts[order]).all()
    for b in (0, 9, 17, 30):
        assert (spectra.singular_values(A[b : b + 1]) == values[b]).all()
    for threads in (2, 3):
        with running(threads=threads):
            assert (spectra.singular_values(A) == values).all()
            assert (spectra.counts_above(A, None, tau) == counts).all()
            assert (spectra.singular_values(A[:17]) == values[:17]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(level: str, dtype: torch.dtype) -> None:
    A = random(9, 40, 18, dtype=dtype)
    values = spectra.singular_values(A)
    assert (spectra.singular_values(A.mT.contiguous().mT) == values).all()
    assert (spectra.singular_values(A.mT) == values).all()
    spread = A.new_zeros(40, 18, 2, 9)
    spread[:, :, 1] = A.permute(1, 2, 0)
    assert (spectra.singular_values(spread[:, :, 1].permute(2, 0, 1)) == values).all()
    assert (spectra.singular_values(A[3:4].expand(20, -1, -1)) == values[3]).all()
    right = random(9, 5, 18, dtype=dtype, seed=1)
    product = spectra.singular_values(A, right)
    assert (spectra.singular_values(A.mT.contiguous().mT, right.mT.contiguous().mT) == product).all()
    assert (spectra.singular_values(right, A) == product).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_change_nothing(dtype: torch.dtype) -> None:
    for n in (6, 49):
        A = random(1, n, n, dtype=dtype) / 64
        values = spectra.singular_values(A)
        for scale in (HUGE[dtype] / 16, 2.0**20, 1 / HUGE[dtype] * 2.0**40):
            assert (spectra.singular_values(A * scale) == values * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_any_size(level: str, dtype: torch.dtype) -> None:
    A = random(6, 4, 4, dtype=dtype).clamp(-3, 3) / 4
    for k, scale in enumerate(
        (HUGE[dtype] / 32, HUGE[dtype] ** 0.5, HUGE[dtype] ** -0.5, 1 / HUGE[dtype], TINY[dtype])
    ):
        A[k] *= scale
        A[k, 0, 0] = scale
    assert_values(spectra.singular_values(A), A)
    assert_values(spectra.singular_values(A.repeat(1, 20, 1)), A.repeat(1, 20, 1))
    largest = reference(A)[:, :1]
    counts = spectra.counts_above(A, None, largest * torch.tensor([0.75, 1.25], dtype=torch.float64))
    assert (counts[:4, 0] >= 1).all() and (counts[:4, 1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [5, 90])
def test_bad_matrices_stay_alone(level: str, m: int, dtype: torch.dtype) -> None:
    A = random(9, m, 6, dtype=dtype)
    expected = spectra.singular_values(A)
    tau = torch.tensor([0.5], dtype=torch.float64)
    counts = spectra.counts_above(A, None, tau)
    A[2, 4, 1], A[5, 0, 5], A[6] = torch.nan, -torch.inf, HUGE[dtype] * 1.9
    finite = torch.tensor([b not in (2, 5, 6) for b in range(9)])
    values = spectra.singular_values(A)
    assert values[~finite].isnan().all()
    assert (values[finite] == expected[finite]).all()
    found = spectra.counts_above(A, None, tau)
    assert (found[~finite] == -1).all()
    assert (found[finite] == counts[finite]).all()
    right = random(9, 7, 6, dtype=dtype)
    right[7] = torch.nan
    assert spectra.singular_values(A, right)[[2, 5, 6, 7]].isnan().all()
    assert (spectra.counts_above(A, right, tau)[[2, 5, 6, 7]] == -1).all()


def test_products_that_overflow() -> None:
    A = torch.full((2, 3, 2), 1e300, dtype=torch.float64)
    A[1] = 1e-300
    assert spectra.singular_values(A, A).isnan().all(1).tolist() == [True, False]
    # what overflows is the result, not what happens on the way
    assert spectra.singular_values(A, A.flip(0))[:, 0].tolist() == pytest.approx([6.0, 6.0])


def test_tolerances() -> None:
    A = torch.stack([torch.eye(3), torch.zeros(3, 3), torch.diag(torch.tensor([4.0, 2.0, 0.0]))]).double()
    tau = torch.tensor([-1.0, 0.0, 1.0, 2.0, 1e300, torch.inf], dtype=torch.float64)
    counts = spectra.counts_above(A, None, tau)
    assert counts.tolist() == [[3, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [3, 2, 2, 1, 0, 0]]
    assert spectra.counts_above(A, None, tau[:0]).shape == (3, 0)


def test_empty() -> None:
    tau = torch.tensor([0.1, 1.0], dtype=torch.float64)
    for batch, m, n in ((0, 3, 4), (2, 0, 4), (0, 90, 70), (2, 3, 0)):
        A = torch.zeros(batch, m, n)
        assert spectra.singular_values(A).shape == (batch, min(m, n))
        assert spectra.counts_above(A, None, tau).tolist() == [[0, 0]] * batch
    A = torch.zeros(2, 3, 0)
    assert spectra.singular_values(A, torch.zeros(2, 4, 0)).tolist() == [[0.0] * 3] * 2


def test_public_call() -> None:
    A = random(2, 3, 6, 5)
    A[1, 1, 0, 0] = torch.nan
    found = ek.small_spectra(A, atol=[0.5, 1.0], entropy=True, backend="native")
    assert found.values.shape == (2, 3, 5)
    assert found.values[1, 1].isnan().all() and found.counts[:, 1, 1].tolist() == [-1, -1]
    expected = ek.small_spectra(A, atol=[0.5, 1.0], entropy=True, backend="torch")
    assert (found.counts == expected.counts).all()
    torch.testing.assert_close(found.entropy, expected.entropy, equal_nan=True, rtol=1e-12, atol=0)
    assert (ek.small_spectra(A[0]).values == found.values[0]).all()


def test_refuses() -> None:
    with pytest.raises(ValueError, match="size"):
        spectra.singular_values(torch.zeros(1, 257, 300))
    with pytest.raises(ValueError, match="size"):
        spectra.singular_values(torch.zeros(1, 3, 4), torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match="size"):
        spectra.singular_values(torch.zeros(1, 3, 4, dtype=torch.float16))


def test_error_codes() -> None:
    handle = library().handle
    null, size, workspace, level = 1, 2, 5, 6
    data, values = (ctypes.c_double * 4)(1, 0, 0, 2), (ctypes.c_double * 2)(-7, -7)
    tau, counts = (ctypes.c_double * 1)(1.5), (ctypes.c_int64 * 1)(-7)

    def address(x: ctypes.Array) -> int:
        return ctypes.addressof(x)

    def job(**changes: object) -> abi.Spectra:
        left = abi.Matrices(address(data), 2, 2, 4, 2, 1)
        made = abi.Spectra(8, 0, 1, left, abi.Matrices(rows=-1), address(values), 1, address(tau), address(counts))
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    good = abi.Run(1, 0, None, 0)
    needed = handle.ess_spectra_workspace(good, job())
    assert needed > 0
    memory = torch.zeros(needed + 128, dtype=torch.uint8)
    aligned = memory.data_ptr() + -memory.data_ptr() % 64

    def both(run: abi.Run | None, asked: abi.Spectra | None) -> int:
        code = handle.ess_spectra(run, asked)
        assert handle.ess_spectra_workspace(run, asked) == -code
        return code

    ready = abi.Run(1, 0, aligned, needed)
    assert both(None, job()) == null
    assert both(ready, None) == null
    for name in ("tau", "counts"):
        assert both(ready, job(**{name: None})) == null
    assert both(ready, job(left=abi.Matrices(None, 2, 2, 4, 2, 1))) == null
    assert both(ready, job(right=abi.Matrices(None, 2, 2, 4, 2, 1))) == null
    for changes in (
        {"element_bytes": 2},
        {"reserved": 1},
        {"batch": -1},
        {"tolerances": -1},
        {"left": abi.Matrices(address(data), -1, 2, 4, 2, 1)},
        {"left": abi.Matrices(address(data), 257, 257, 4, 2, 1)},
        {"right": abi.Matrices(address(data), 2, 3, 4, 2, 1)},
        {"right": abi.Matrices(address(data), 257, 2**50, 4, 2, 1)},
    ):
        assert both(ready, job(**changes)) == size
    assert both(abi.Run(0, 0, aligned, needed), job()) == size
    assert both(abi.Run(1, 9, aligned, needed), job()) == level
    for run in (good, abi.Run(1, 0, aligned + 8, needed), abi.Run(1, 0, aligned, needed - 1)):
        assert handle.ess_spectra(run, job()) == workspace
    assert list(values) == [-7, -7] and counts[0] == -7
    assert handle.ess_spectra(ready, job()) == 0
    assert list(values) == [2, 1] and counts[0] == 1
    assert handle.ess_spectra(ready, job(batch=0, left=abi.Matrices(None, 2, 2, 4, 2, 1))) == 0
