"""Counts of a dense operator at a few positions, each eliminated by itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import operators as ops
from ess_kernels.engine import few_dense
from ess_kernels.engine.few_dense import lower_product, pays, pivoted
from ess_kernels.operators import Operator
from ess_kernels.testing.cases import build, names, powers, randn, truth

BACKENDS = ("torch", "native")


@pytest.mark.parametrize("m", [1, 2, 3, 7, 40])
def test_positive_eigenvalues_and_updates_by_pivots(m: int):
    for definite in (False, True):
        A = randn(m, m)
        A = A @ A.T - 0.3 * m * torch.eye(m).double() if definite else A + A.T
        above, growth, least = pivoted(A.tril())
        assert above == int((torch.linalg.eigvalsh(A) > 0).sum())
        assert growth == pytest.approx(updates_of(A), rel=1e-9)
        assert least > 0


def updates_of(A: Tensor) -> float:
    """The largest sum of absolute updates of a diagonal entry, from the factors with their rows in order."""
    m = len(A)
    LD, pivots, _ = torch.linalg.ldl_factor_ex(A)
    L, weights = LD.tril(-1), LD.diagonal().abs().clone()
    k = 0
    while k < m:
        two = int(pivots[k]) < 0
        last, other = k + two, abs(int(pivots[k])) - 1
        if two:
            beside = float(L[k + 1, k].abs())
            L[k + 1, k] = 0.0
            weights[k] += beside
            weights[k + 1] += beside
        rows = [last, other]
        L[rows, :k] = L[rows[::-1], :k]
        k = last + 1
    return float((L.square() @ weights).max())


def test_the_lower_triangle_of_a_product():
    side = randn(300, 20)
    torch.testing.assert_close(lower_product(side).tril(), (side @ side.T).tril())


def test_what_pays():
    assert not pays([32], 64)
    assert pays([512], 1024) and pays([100] * 20, 1024) and not pays([512] * 4, 1024)


def long_operators(length: int) -> dict[str, Operator]:
    q, k = randn(2, 1, 1, length, 16).unbind(0)
    t = torch.arange(length, dtype=torch.float64)
    return {
        "dense": ops.dense(randn(length, length) * powers(0, -8, length)),
        "attention": ops.attention(q, k),
        "sink": ops.attention(q, k, sinks=torch.tensor([8.0], dtype=torch.float64)),
        "convolution": ops.convolution((1 / (1 + t))[None]),
        "huge": ops.dense(1e200 * randn(length, length)),
        "tiny": ops.dense(1e-200 * randn(length, length)),
        "low rank": ops.dense(randn(length, 5) @ randn(5, length)),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_are_those_of_the_definition(backend: str):
    L = 520
    for name, op in long_operators(L).items():
        T = op.dense_heads(op.all_heads())[0].tril(-1)
        unit = float(T.abs().max())
        positions = [3, 260, 500]
        assert pays(positions, L)
        values = [torch.linalg.svdvals(T[i:, :i] / unit) for i in positions]
        for share in (1e-1, 1e-3, 1e-6, 0.0, math.inf):
            tau = share * unit
            counts, certificate = ek.tolerance_ess(op, atol=tau, positions=positions, backend=backend, certificate=True)
            for p, s in enumerate(values):
                slack = float(certificate.width.flatten()[p]) * share + 1e-13 * float(s[0]) if share < math.inf else 0
                found = int(counts.flatten()[p])
                assert int((s > share + slack).sum()) <= found <= int((s > share - slack).sum()), (name, share, p)
        tie = float(values[1][5]) * unit
        counts, certificate = ek.tolerance_ess(op, atol=tie, positions=positions, backend=backend, certificate=True)
        if values[1][5] > 1e-9 * values[1][0]:
            assert int(counts.flatten()[1]) in (5, 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_heads_lists_and_orders(backend: str):
    T = randn(3, 520, 520) * powers(0, -4, 520)
    alone = ek.tolerance_ess(T, atol=[0.1, 1.0], positions=[400, 7, 7], backend=backend)
    T[1, 10, 5] = torch.nan  # in no H of these positions, but in the head
    T[2, 5, 10] = torch.inf  # above the diagonal
    found = ek.tolerance_ess(T, atol=[0.1, 1.0], positions=[400, 7, 7], backend=backend)
    assert found.shape == (2, 3, 3) and (found[:, 1] == -1).all()
    assert torch.equal(found[:, ::2], alone[:, ::2])
    every = ek.tolerance_ess(T, atol=[0.1, 1.0], backend=backend)
    assert torch.equal(found, every[..., [399, 6, 6]])


TILED = [name for name in names() if name.split(":")[0] in ("attention", "convolution", "dense")]


@pytest.mark.thorough
@pytest.mark.parametrize("name", TILED)
def test_every_case(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_dense, "SHORTEST", 2)
    monkeypatch.setattr(few_dense, "STAIRCASE", math.inf)
    op, values = build(name), truth(name).values
    good = op.finite(op.all_heads())
    if op.length < 3 or not bool(good.any()) or not bool(values[good].isfinite().all()):
        return
    most = float(values[good].max())
    for share in (1e-1, 1e-3, 1e-6):
        counts, certificate = ek.tolerance_ess(op, atol=share * most, backend="torch", certificate=True)
        shape = (op.num_heads, -1)
        known = ~certificate.unresolved.reshape(shape)[good]
        tau = share * most * (1 + torch.tensor([1e-7, -1e-7], dtype=torch.float64))
        rounding = 1e-13 * values[good][..., :1]
        least, upmost = (values[good] > tau[0] + rounding).sum(-1), (values[good] > tau[1] - rounding).sum(-1)
        counts = counts.reshape(shape)[good]
        assert ((least <= counts) & (counts <= upmost))[known].all()
