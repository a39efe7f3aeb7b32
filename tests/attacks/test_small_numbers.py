"""Numbers just above the smallest normal ones: kernels that take those below for zero must not be given them."""

import pytest
import torch

import ess_kernels as ek

FAMILIES = ["gla", "selective scan", "dense transitions", "dense", "attention"]


def operator(family, read, write):
    """An operator with units taken into its reads and writes, of which most are normal numbers."""
    torch.manual_seed(0)
    if family == "gla":
        q, k, g = torch.randn(3, 1, 24, 2, 3, dtype=torch.float64)
        return ek.operators.gla(q * read, k * write, -g.abs() / 8)
    if family == "selective scan":
        delta, A = torch.rand(1, 2, 24, dtype=torch.float64), -torch.rand(2, 3, dtype=torch.float64)
        B, C = torch.randn(2, 1, 3, 24, dtype=torch.float64)
        return ek.operators.selective_scan(delta, A, B * write, C * read)
    if family == "dense transitions":
        A = 0.4 * torch.randn(2, 24, 3, 3, dtype=torch.float64)
        B, C = torch.randn(2, 2, 24, 3, dtype=torch.float64)
        return ek.operators.recurrence(A, B * write, C * read, diagonal=False)
    if family == "dense":
        return ek.operators.dense(torch.randn(2, 24, 24, dtype=torch.float64) * read * write)
    q, k = torch.randn(2, 1, 2, 24, 4, dtype=torch.float64)
    return ek.operators.attention(q * read, k * write)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("exponent", [-950, -1010, -1016, -1020, -1022])
def test_entropies_are_within_their_bounds(family, exponent, backend):
    status = next(b for b in ek.show_config().backends if b.name == backend)
    if not status.usable:
        pytest.skip(status.reason)
    for read, write in ((2.0**exponent, 1.0), (1.0, 2.0**exponent), (2.0**exponent, 2.0**100)):
        # the same operator in units of its own: powers of two change no ESS, but what is lost below the normal numbers
        op = operator(family, read, write)
        expected = ek.entropy_ess(op, backend="reference")
        ess, certificate = ek.entropy_ess(op, backend=backend, certificate=True)
        error = (ess - expected).abs() / expected.clamp_min(1.0)
        assert bool((error <= certificate.error + 1e-9).all()), (read, write, float(error.max()))
