"""Inputs that used to cost one singular value decomposition a position: now none does, at most a few."""

import math

import pytest
import torch

import ess_kernels as ek
from ess_kernels.backends.native import NativeBackend
from ess_kernels.engine.cost import Cost

L = 288  # more positions than singular values are affordable at
FEW = 40


def randn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(q, k):
    return ek.operators.attention(q[None, None], k[None, None], scale=1 / math.sqrt(q.shape[1]))


def heads():
    q, k = randn(L, 64, seed=1), randn(L, 64, seed=2)
    sink = k.clone()
    sink[0] = 1
    angle = torch.arange(L, dtype=torch.float64)[:, None] * 1e4 ** -(torch.arange(32) / 32).double()
    rope = torch.cat([angle.cos(), angle.sin()], -1)
    both = rope.clone()
    both[0] = 3
    return {
        "benchmark": attention(2 * q, k),
        "plain": attention(q, k),
        "sink": attention(q + 2, sink),
        "local": attention(8 * rope + 0.1 * randn(L, 64, seed=3), rope),
        "sink and local": attention(8 * rope + 1, both),
        "shift": ek.operators.dense(torch.diag(torch.ones(L - 1, dtype=torch.float64), -1)),
        "one and 1e-9 many": ek.operators.dense(randn(L, 1, seed=4) @ randn(1, L, seed=5) + 1e-9 * randn(L, L, seed=6)),
    }


@pytest.fixture
def exact(monkeypatch):
    """How many positions were found by singular values."""
    noted = []
    monkeypatch.setattr(Cost, "note", lambda self, count, work: noted.append(count))
    return noted


TOLERANCES = [{"atol": 1e-5}, {"atol": 1e-9}, {"rtol": 1e-2}, {"atol": 0.0}, {"atol": 1.0}]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("tolerance", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", sorted(heads()))
def test_hardly_any_position_takes_singular_values(name, tolerance, backend, exact, monkeypatch):
    if backend == "native" and NativeBackend().unavailable() is not None:
        pytest.skip("not built")
    # what a sequence many times as long would have to spend
    monkeypatch.setattr("ess_kernels.engine.unsquared.AFFORDABLE", 0.0)
    ek.tolerance_ess(heads()[name], **tolerance, backend=backend)
    assert sum(exact) <= FEW


def test_ties_at_every_position_are_unresolved_and_not_computed_one_by_one(exact, monkeypatch):
    monkeypatch.setattr("ess_kernels.engine.unsquared.AFFORDABLE", 0.0)
    counts, certificate = ek.tolerance_ess(heads()["shift"], 1.0, certificate=True, backend="torch")
    assert bool(certificate.unresolved.all()) and bool((counts <= 1).all())
    assert sum(exact) <= FEW


@pytest.mark.parametrize("name", ["benchmark", "plain", "sink", "local"])
def test_what_is_well_conditioned_is_resolved(name):
    for tolerance in ({"atol": 1e-5}, {"atol": 1e-9}, {"rtol": 1e-2}):
        _, certificate = ek.tolerance_ess(heads()[name], **tolerance, certificate=True, backend="torch")
        assert not bool(certificate.unresolved.any())
