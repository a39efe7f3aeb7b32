"""Calls, and chunks of calls, in which no head is left for the kernels: all are bad, or have transitions that grow.

`OperatorTestCase` asks the same of every family; here are the inputs that were found, and the backends that are slow.
"""

import pytest
import torch

import ess_kernels as ek
from ess_kernels.testing import assert_close

BACKENDS = ("auto", "torch", "reference", "triton")


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


def gla(heads=1, length=6, n=3):
    g = torch.Generator().manual_seed(length)
    q, k = torch.randn(2, 1, length, heads, n, generator=g).double()
    return q, k, -torch.rand(1, length, heads, n, generator=g).double()


def check(op, backend):
    positions = range(1, op.length)
    counts, certificate = ek.tolerance_ess(op, 0.05, backend=backend, certificate=True)
    expected = ek.reference.reference_tolerance_ess(op, 0.05)
    # beside values of 1e200 a tolerance of 0.05 is a matter of rounding; bad heads are unresolved too
    decided = ~certificate.unresolved | (expected < 0)
    assert torch.equal(counts[decided], expected[decided])
    wanted = ek.reference.reference_entropy_ess(op)
    assert_close("entropy", ek.entropy_ess(op, backend=backend), wanted, rtol=1e-4)
    values = ek.reference.reference_singular_values(op)
    found = ek.singular_values(op, positions, values.shape[-1], backend)
    assert_close("values", found, values, rtol=1e-9, atol=1e-12 * float(values.nan_to_num(0.0).amax()))


def test_the_only_head_is_bad():
    q, k = torch.randn(2, 1, 20, 1, 8)
    g = -torch.rand(1, 20, 1, 8)
    q[0, 3] = torch.nan
    assert bool((ek.tolerance_ess(ek.operators.gla(q, k, g)) == -1).all())
    assert bool(ek.entropy_ess(ek.operators.gla(q, k, g)).isnan().all())


def test_the_only_head_grows(backend):
    q, k, g = gla()
    check(ek.operators.gla(q, k, -g), backend)


def test_every_head_is_bad_or_grows(backend):
    q, k, g = gla(heads=3)
    g[..., :2, :] *= -1
    k[..., 2, :] = torch.inf
    check(ek.operators.gla(q, k, g), backend)


def test_the_only_channel_of_a_scan_grows(backend):
    steps, A = torch.rand(1, 1, 6).double(), torch.rand(1, 2).double()
    B, C = torch.randn(2, 1, 2, 6).double()
    check(ek.operators.selective_scan(steps, A, B, C), backend)


@pytest.mark.parametrize("entry", [torch.nan, 1e200], ids=["bad", "grows"])
@pytest.mark.parametrize("backend", [*BACKENDS[:3], pytest.param("triton", marks=pytest.mark.slow)])
def test_the_only_recurrence_with_matrices(backend, entry):
    A, B, C = (torch.randn(1, 6, *tail).double() for tail in ((2, 2), (2,), (2,)))
    A[0, 3, 0, 0] = entry
    check(ek.operators.recurrence(A, B, C, diagonal=False), backend)


@pytest.mark.parametrize("backend", [*BACKENDS[:3], pytest.param("triton", marks=pytest.mark.slow)])
def test_rounding_errors_of_growing_transitions_are_no_states(backend):
    """T by itself has full rank: its rounding errors, times the largest number in it, exceed any tolerance."""
    g = torch.Generator().manual_seed(0)
    A, B, C = (torch.randn(2, 16, *tail, generator=g).double() for tail in ((2, 2), (2,), (2,)))
    A[:, 5, 0, 0] = 1e200
    op = ek.operators.recurrence(A, B, C, diagonal=False)
    counts = ek.tolerance_ess(op, [1e-3, 0.0], backend=backend)
    assert bool((counts <= ek.aggregate.cap(op)).all())
    assert bool((counts[0] == 2).any())
    assert not bool(ek.singular_values(op, [8], 6, backend)[..., 2:].any())


def test_one_bad_head_among_eight_in_chunks_of_one_head(monkeypatch):
    q, k, g = gla(heads=8, length=20)
    q[0, 7, 4, 1] = torch.nan
    op = ek.operators.gla(q, k, g)
    whole = ek.tolerance_ess(op)
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "1")
    assert torch.equal(ek.tolerance_ess(op), whole)
    assert (whole == -1).any(-1).nonzero().tolist() == [[0, 4]]
    check(op, "auto")


def test_a_randomized_count_of_bad_heads():
    q, k, g = gla(heads=2)
    found = ek.randomized_ess(ek.operators.gla(q * torch.nan, k, g), [2, 3], atol=0.05)
    assert bool((found.count == -1).all()) and not bool(found.certified.any())
