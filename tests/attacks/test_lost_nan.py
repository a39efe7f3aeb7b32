"""A pivot of exactly zero makes the growth NaN or infinite: no maximum on the way to the certificate forgets that."""

from __future__ import annotations

import pytest
import torch
from silent import as_block, huge_and_small, integers, silent_counts

import ess_kernels as ek

BACKENDS = ("native", "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_right_value(backend):
    T = as_block(huge_and_small(18, 4, 100, 1, 2.0**30))
    assert ek.tolerance_ess(T, 1.0, positions=[31, 32, 33], backend=backend)[0].tolist() == [31, 32, 33]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("power", [20, 27, 30, 34, 40])
def test_integer_blocks(power, backend):
    """Pivots that are zero to the last bit, wherever a block's rows and columns are eliminated."""
    checked, wrong = silent_counts(as_block(huge_and_small(power, 2, 44, 1, 2.0**power)), 1.0, backend)
    assert checked > 40 and not wrong


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rtol", [5e-11, 1e-8])
def test_data_without_ties(rtol, backend):
    g = torch.Generator().manual_seed(3)
    u, v = (torch.randn(2, 40, 3, dtype=torch.float64, generator=g) for _ in range(2))
    T = as_block(u @ v.mT + 1e-9 * torch.randn(2, 40, 40, dtype=torch.float64, generator=g))
    largest = float(torch.linalg.matrix_norm(T, 2).amax())
    checked, wrong = silent_counts(T, rtol * largest, backend)
    assert checked > 40 and not wrong


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("states", [3, 8, 16, 24, 64])
def test_recurrences_of_integers(states, backend):
    """Tolerances on singular values of blocks: zero pivots outside a block, in its rows and in its columns."""
    g = torch.Generator().manual_seed(states)
    q, k = (integers(g, 1, 70, 2, states) for _ in range(2))
    op = ek.operators.gla(q, k, torch.zeros_like(q), scale=1.0)
    T = op.dense()[0]
    for tau in (1.0, 2.0, 3.0**0.5):
        counts, certificate = ek.tolerance_ess(op, tau, backend=backend, certificate=True)
        for i in range(1, 70):
            s = torch.linalg.svdvals(T[:, i:, :i])
            far = (s - tau).abs().amin(-1) > 1e-10 * s[:, 0] + certificate.width[0, :, i - 1] * tau
            far &= ~certificate.unresolved[0, :, i - 1]
            assert torch.equal(counts[0, far, i - 1], (s > tau).sum(-1)[far]), i
