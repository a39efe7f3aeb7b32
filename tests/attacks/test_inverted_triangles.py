"""Triangles are solved by substitution: what an inverse loses no growth sees, and both sides of a tolerance agree."""

from __future__ import annotations

import pytest
import torch
from silent import huge_and_small, silent_counts

import ess_kernels as ek

BACKENDS = ("native", "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_right_value(backend):
    T = huge_and_small(7 * 18 + 128 + 2, 4, 128, 2, 2.0**18)
    assert int(ek.tolerance_ess(T, 1.0, backend=backend)[1, 69]) == 57


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("power", [10, 18, 25, 32, 40])
def test_low_rank_and_integers(power, rank, backend):
    checked, wrong = silent_counts(huge_and_small(7 * power + rank, 2, 72, rank, 2.0**power), 1.0, backend)
    assert checked > 30 and not wrong


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rtol", [1e-5, 1e-7, 1e-9])
def test_sharp_attention_of_one_dimension(rtol, backend):
    """Softmax of an outer product: rows of few directions, graded over many orders of magnitude."""
    g = torch.Generator().manual_seed(97)
    q, k = (torch.randn(1, 3, 97, 1, dtype=torch.float64, generator=g) for _ in range(2))
    T = ek.operators.attention(3 * q, k).dense()[0]
    for head in T:
        largest = float(torch.linalg.matrix_norm(head.tril(-1), 2))
        checked, wrong = silent_counts(head[None], rtol * largest, backend)
        assert checked > 40 and not wrong
