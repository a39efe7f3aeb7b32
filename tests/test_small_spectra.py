"""`small_spectra`: values, counts and entropies of many small matrices, and of products."""

import math

import pytest
import torch

import ess_kernels as ek
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import orthogonal, powers, randn

BACKENDS = ["torch", "reference"]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 6, 6), (7, 1, 1), (0, 4, 4), (2, 300, 5)])
def test_small_spectra(backend, dtype, shape):
    torch.manual_seed(13)
    A = torch.randn(*shape, dtype=dtype)
    found = ek.small_spectra(A, atol=[0.5, 1.5], entropy=True, backend=backend)
    wanted = torch.linalg.svdvals(A)
    assert isinstance(found, ek.SmallSpectra) and found._fields == ("values", "counts", "entropy")
    assert found.values.dtype == dtype and found.values.shape == wanted.shape
    eps = torch.finfo(dtype).eps
    assert_close("values", found.values, wanted, rtol=20 * eps, atol=20 * eps)
    assert found.counts.dtype == torch.int64 and found.counts.shape == (2, *shape[:-2])
    assert torch.equal(found.counts, torch.stack([(wanted > t).sum(-1) for t in (0.5, 1.5)]))
    p = wanted.double() / wanted.double().sum(-1, keepdim=True)
    assert found.entropy.shape == shape[:-2]
    assert_close("entropy", found.entropy.double(), torch.special.entr(p).sum(-1).exp(), rtol=100 * eps)
    one = ek.small_spectra(A, atol=0.5, backend=backend)
    assert torch.equal(one.counts, found.counts[0]) and one.entropy is None
    assert ek.small_spectra(A, backend=backend).counts is None
    assert ek.small_spectra(A, atol=[0.5], backend=backend).counts.shape == (1, *shape[:-2])


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_small_spectra_of_a_product(backend):
    torch.manual_seed(14)
    A, right = randn(3, 6, 4), randn(3, 6, 4)
    found = ek.small_spectra(A, right=right, entropy=True, backend=backend)
    assert found.values.shape == (3, 6)
    assert_close("values", found.values, torch.linalg.svdvals(A @ right.mT), rtol=1e-12, atol=1e-13)
    # not through squares: half of the digits would be gone
    graded = orthogonal(8) * powers(0, -12, 8)
    values = ek.small_spectra(graded[None], right=orthogonal(8)[None], backend=backend).values
    assert_close("graded", values[0], powers(0, -12, 8), rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_small_matrices(backend, value):
    torch.manual_seed(15)
    A, right = randn(4, 5, 3), randn(4, 5, 3)
    clean = ek.small_spectra(A, right=right, atol=[0.1, 1.0], entropy=True, backend=backend)
    spoilt, other = A.clone(), right.clone()
    spoilt[1, 2, 2], other[3, 0, 0] = value, value
    found = ek.small_spectra(spoilt, right=other, atol=[0.1, 1.0], entropy=True, backend=backend)
    assert bool(found.values[[1, 3]].isnan().all()) and bool(found.entropy[[1, 3]].isnan().all())
    assert bool((found.counts[:, [1, 3]] == -1).all())
    assert torch.equal(found.values[[0, 2]], clean.values[[0, 2]])
    assert torch.equal(found.entropy[[0, 2]], clean.entropy[[0, 2]])
    assert torch.equal(found.counts[:, [0, 2]], clean.counts[:, [0, 2]])


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_a_small_product_that_overflows_is_bad(backend):
    A = torch.full((2, 3, 3), 1e200, dtype=torch.float64)
    A[0] = 1.0
    found = ek.small_spectra(A, right=A, atol=0.1, entropy=True, backend=backend)
    assert found.counts.tolist() == [1, -1]
    assert bool(found.values[1].isnan().all()) and bool(found.entropy[1].isnan())


def test_small_spectra_of_zero():
    found = ek.small_spectra(torch.zeros(2, 3, 3), atol=0.0, entropy=True)
    assert bool((found.values == 0).all()) and found.counts.tolist() == [0, 0] and found.entropy.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"A": torch.zeros(3)}, ValueError, ["A", "[..., m, n]", "(3,)"]),
        ({"A": torch.zeros(257, 257)}, ValueError, ["A", "256", "257"]),
        ({"A": torch.zeros(3, 3).half()}, TypeError, ["A", "float16"]),
        ({"A": torch.zeros(3, 3).long()}, TypeError, ["A", "int64"]),
        ({"A": [[1.0]]}, TypeError, ["A", "list"]),
        ({"A": torch.zeros(3, 3), "right": torch.zeros(3, 4)}, ValueError, ["right", "3", "4"]),
        ({"A": torch.zeros(3, 3), "right": torch.zeros(3, 3).double()}, ValueError, ["right", "float64"]),
        ({"A": torch.zeros(2, 3, 3), "right": torch.zeros(3, 3)}, ValueError, ["right"]),
        ({"A": torch.zeros(3, 3), "right": 1.0}, TypeError, ["right", "float"]),
        ({"A": torch.zeros(3, 3), "atol": -1.0}, ValueError, ["atol", "-1"]),
        ({"A": torch.zeros(3, 3), "backend": "lapack"}, ValueError, ["backend", "lapack"]),
    ],
)
def test_small_spectra_refuses(arguments, error, words):
    with pytest.raises(error) as caught:
        ek.small_spectra(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value
