"""Singular values of many small matrices by kernels, against LAPACK in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ess_kernels import environment
from ess_kernels.engine.parallel import product_values
from ess_kernels.testing import assert_close

pytest.importorskip("triton")

from ess_kernels.backends.triton.spectra import values as spectra
from ess_kernels.backends.triton.spectra.bidiagonal import reduce_in_registers
from ess_kernels.backends.triton.spectra.leading import reduce_leading
from ess_kernels.backends.triton.spectra.sturm import counts_of_squares, padded_length, values_of_squares

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float64]
HUGE = {torch.float32: 1e38, torch.float64: 1e300}
TINY = {torch.float32: 1e-45, torch.float64: 1e-323}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def kinds(n: int) -> dict[str, Tensor]:
    U, V = orthogonal(n, 1), orthogonal(n, 2)

    def with_values(s: Tensor) -> Tensor:
        return U * s.to(DEVICE) @ V

    k = torch.arange(n, dtype=torch.float64)
    zero = torch.zeros(n, n, dtype=torch.float64, device=DEVICE)
    one_column = zero.clone()
    one_column[:, n // 2] = 1
    return {
        "random": random(n, n),
        "condition 1e12": with_values(10 ** (-12 * k / max(n - 1, 1))),
        "graded rows": random(n, n) * (10 ** (-12 * k / n))[:, None].to(DEVICE),
        "rank deficient": random(n, 3, seed=3) @ random(3, n, seed=4),
        "repeated": with_values(1.0 + (k < n // 2)),
        "orthogonal": U,
        "identity": torch.eye(n, dtype=torch.float64, device=DEVICE),
        "zero": zero,
        "roots": random(n, n, seed=5).triu() @ random(n, n, seed=6).triu().mT,
        "one column": one_column,
    }


def reference(A: Tensor) -> Tensor:
    """In float64, of matrices of the order of 1; entries may be of any size."""
    scale = A.abs().amax((1, 2)).double().clamp_min(5e-324)
    half = torch.exp2(torch.frexp(scale).exponent.div(2, rounding_mode="floor").double())
    return torch.linalg.svdvals(A.double() / half[:, None, None] / half[:, None, None]) * half[:, None] * half[:, None]


def assert_values(found: Tensor, A: Tensor) -> None:
    expected = reference(A)
    assert found.dtype == A.dtype and found.shape == expected.shape
    assert (found.diff() <= 0).all()
    ulp = torch.finfo(A.dtype).eps * expected[:, :1].clamp_min(torch.finfo(A.dtype).tiny)
    error = ((found.double() - expected).abs() / ulp).amax(1)
    assert (error <= 4 + 0.5 * min(A.shape[1:])).all(), error


def assert_counts(found: Tensor, values: Tensor, tau: Tensor, slack: float) -> None:
    """Right where no value lies within `slack` of the largest of the tolerance."""
    tau = tau[:, None, None]
    least, most = ((values > tau + sign * slack * values[:, :1]).sum(-1) for sign in (1, -1))
    assert ((least <= found) & (found <= most)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kinds_of_matrices(dtype: torch.dtype) -> None:
    A = torch.stack(list(kinds(6).values())).to(dtype)
    values = spectra.singular_values(A)
    assert_values(values, A)
    assert (values[list(kinds(6)).index("zero")] == 0).all()
    tau = torch.tensor([1e-3, 0.1, 0.999, 1.5, 100.0], dtype=torch.float64, device=DEVICE)
    counts = spectra.counts_above(A, tau)
    assert counts.dtype == torch.int64
    assert_counts(counts, reference(A), tau, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "m, n", [(1, 1), (1, 4), (2, 2), (3, 3), (5, 5), (3, 7), (15, 2), (90, 3), (2, 70), (40, 10), (17, 17)]
)
def test_shapes(m: int, n: int, dtype: torch.dtype) -> None:
    A = random(1 if min(m, n) > 7 else 3, m, n, dtype=dtype)
    assert_values(spectra.singular_values(A), A)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [33, 64, 100, 129, 200, 256])
def test_large(n: int, dtype: torch.dtype) -> None:
    A = random(1, n, n, dtype=dtype)
    A[0] *= 10 ** (-6 * torch.arange(n, device=DEVICE).to(dtype) / n)
    assert_values(spectra.singular_values(A), A)


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_in_memory(dtype: torch.dtype) -> None:
    """The kernel for large matrices, on small ones."""
    n, steps = 20, 17
    A = random(1, n, n, dtype=dtype)
    squares = A.new_zeros(1, padded_length(n))
    left = A.clone()
    reduce_leading(left, squares, steps)
    reduce_in_registers(left, squares, None, steps)
    ones = A.new_ones(1)
    assert_values(values_of_squares(squares, ones, n), A)
    tau = torch.tensor([1.0, 5.0], dtype=torch.float64, device=DEVICE)
    assert_counts(counts_of_squares(squares, ones, n, tau).T, reference(A), tau, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_any_size(dtype: torch.dtype) -> None:
    A = random(6, 4, 4, dtype=dtype).clamp(-3, 3)
    for k, scale in enumerate((HUGE[dtype], HUGE[dtype] ** 0.5, HUGE[dtype] ** -0.5, 1 / HUGE[dtype], TINY[dtype])):
        A[k] = A[k] / 4 * scale
    assert_values(spectra.singular_values(A), A)
    # tolerances around the largest value, where they are not rounded to it
    largest = reference(A)[:, 0]
    assert (spectra.counts_above(A, largest * 0.75).diagonal()[:4] >= 1).all()
    assert (spectra.counts_above(A, largest * 1.25).diagonal()[:4] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tall_entries_of_any_size(dtype: torch.dtype) -> None:
    A = random(2, 80, 3, dtype=dtype)
    A[0] *= HUGE[dtype] / 1e3
    A[1] *= 1 / HUGE[dtype]
    assert_values(spectra.singular_values(A), A)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product(dtype: torch.dtype) -> None:
    A, right = random(3, 5, 4, dtype=dtype), random(3, 6, 4, dtype=dtype, seed=1)
    # this product overflows
    A[1] = HUGE[dtype]
    right[1] = HUGE[dtype]
    found = spectra.singular_values(A, right)
    twin = product_values(torch.linalg.svdvals, A, right)
    assert found[1].isnan().all()
    assert_close("values", found, twin, rtol=0, atol=100 * torch.finfo(dtype).eps)
    counts = spectra.counts_above(A, torch.tensor([1.0, 1e3]).to(DEVICE), right)
    assert counts[:, 1].tolist() == [-1, -1]
    assert (counts[:, 0] == (twin[0] > torch.tensor([[1.0], [1e3]]).to(DEVICE)).sum(-1)).all()


def test_empty() -> None:
    tau = torch.tensor([0.1, 1.0], device=DEVICE)
    for batch, m, n in ((0, 3, 4), (2, 0, 4), (0, 90, 70)):
        A = torch.zeros(batch, m, n, device=DEVICE)
        assert spectra.singular_values(A).shape == (batch, min(m, n))
        assert spectra.counts_above(A, tau).tolist() == [[0] * batch] * 2


def test_slices_and_strides_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    A = random(3, 4, 6, dtype=torch.float32)
    whole = spectra.singular_values(A)
    monkeypatch.setenv(environment.MEMORY_BUDGET, "200")
    assert (spectra.singular_values(A.mT.contiguous().mT) == whole).all()
    assert (spectra.counts_above(A, torch.tensor([1.0]).to(DEVICE))[0] == (whole > 1).sum(-1)).all()


def test_entropy_of_equal_values() -> None:
    A = torch.stack([orthogonal(6, 1), torch.zeros(6, 6, dtype=torch.float64, device=DEVICE)])
    assert_close("entropy", spectra.entropy(spectra.singular_values(A)), torch.tensor([6.0, 0.0]))


def test_refuses_large() -> None:
    with pytest.raises(ValueError, match=r"min\(m, n\) <= 256"):
        spectra.singular_values(torch.zeros(1, 257, 300))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [16, 31, 64, 128, 256])
def test_many(n: int, dtype: torch.dtype) -> None:
    """Programs side by side: what the interpreter cannot show."""
    few = random(16, n, n, dtype=dtype)
    A = few.repeat(500, 1, 1)
    found = spectra.singular_values(A)
    assert_values(found[:16], few)
    assert (found.view(500, 16, n) == found[:16]).all()


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    A = torch.zeros(2**31 // 64**2 + 3, 64, 64, device=DEVICE)
    A[-1] = random(64, 64, dtype=torch.float32)
    assert_values(spectra.singular_values(A[-4:].clone())[-1:], A[-1:])
    assert (spectra.singular_values(A)[-1] == spectra.singular_values(A[-1:].clone())[0]).all()
