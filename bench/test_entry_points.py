"""pytest-benchmark cases of the public calls: `python -m pytest bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import ess_kernels as ek

sys.path.insert(0, str(Path(__file__).parent))
import inputs

OPERATORS = {
    "gla-2048-n64": lambda: inputs.gla(2048, 64),
    "gla-1024-n16-8heads": lambda: inputs.gla(1024, 16, heads=8),
    "mamba-512-32channels": lambda: inputs.mamba(512, 32),
    "attention-512": lambda: inputs.attention(512),
}


@pytest.fixture(params=OPERATORS)
def op(request: pytest.FixtureRequest) -> ek.operators.Operator:
    return OPERATORS[request.param]()


def test_tolerance_ess(benchmark, op):
    counts = benchmark(ek.tolerance_ess, op, atol=1e-3)
    assert counts.shape == (*op.batch_shape, op.length - 1)


def test_five_tolerances(benchmark, op):
    counts = benchmark(ek.tolerance_ess, op, atol=[1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    assert bool((counts[1:] >= counts[:-1]).all())


def test_entropy_ess(benchmark, op):
    ess = benchmark(ek.entropy_ess, op)
    assert bool((ess >= 1).all())


def test_singular_values(benchmark, op):
    values = benchmark(ek.singular_values, op, [op.length // 4, op.length // 2], k=8)
    assert values.shape == (*op.batch_shape, 2, 8)


@pytest.mark.parametrize("n", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_small_spectra(benchmark, n, dtype):
    A = torch.randn(64, n, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert benchmark(ek.small_spectra, A).values.shape == (64, n)
