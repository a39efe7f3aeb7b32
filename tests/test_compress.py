"""Compressed operators: how near they are to the original, and that every metric answers for them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import backends
from ess_kernels import operators as ops
from ess_kernels.engine.certainty import entropy_of_values
from ess_kernels.operators import Operator
from ess_kernels.operators.structure import Tiled
from ess_kernels.operators.tile_sources import TilesOfRows, tile_source
from ess_kernels.testing.cases import build, names, rand, randn

# operators of every kind whose spectra are hard
HARD = [
    "attention: sharp",
    "convolution: falling",
    "dense: rank 16 plus noise",
    "gla: decay by channel",
    "gla: tiny times tiny",
    "gla: rows fall far",
    "gla: huge",
    "recurrence: dense",
]

# in the interpreter of Triton's kernels every case takes seconds
ENGINES = [status.name for status in backends.describe() if status.usable and status.name in ("torch", "native")]


def hard_cases() -> list[str]:
    known = set(names())
    assert set(HARD) <= known, set(HARD) - known
    return HARD


def lower_heads(op: Operator) -> Tensor:
    return op.dense_heads(op.all_heads()).tril(-1)


def norm_of(T: Tensor) -> float:
    return float(torch.linalg.matrix_norm(T, 2).max()) if T.numel() else 0.0


def differences(op: Operator, found: ek.Compressed) -> tuple[Tensor, Tensor, float]:
    """Singular values of `T - T~` `[N, L]`, the bounds `[3, N]`, and the norm of `T`, all in units of that norm."""
    T = lower_heads(op)
    norm = norm_of(T) or 1.0
    rest = (T - lower_heads(found)) / norm
    bounds = torch.stack([found.spectral_error, found.frobenius_error, found.nuclear_error]).reshape(3, -1) / norm
    return torch.linalg.svdvals(rest), bounds, norm


def check_bounds(op: Operator, share: float, block: int) -> None:
    found = ek.compress(op, share * norm_of(lower_heads(op)), block=block)
    values, bounds, _ = differences(op, found)
    assert (values[:, 0] <= bounds[0]).all()
    assert (torch.linalg.vector_norm(values, dim=1) <= bounds[1]).all()
    assert (values.sum(1) <= bounds[2]).all()
    assert (bounds[0] <= share * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", hard_cases())
@pytest.mark.parametrize(("share", "block"), [(1e-1, 8), (1e-4, 13), (1e-9, 8)])
def test_errors_are_bounded(name: str, share: float, block: int):
    check_bounds(build(name).inner, share, block)


@pytest.mark.thorough
@pytest.mark.parametrize("name", names())
def test_errors_of_every_operator_are_bounded(name: str):
    op = build(name).inner
    if op.length < 2 or not bool(op.finite(op.all_heads()).all()) or not math.isfinite(norm_of(lower_heads(op))):
        return
    for share in (1e-1, 1e-4, 1e-9):
        for block in (8, 13):
            check_bounds(op, share, block)


def test_the_bound_is_attained():
    """One late row reads each block through a direction that is dropped: the errors are all of its own, and add up."""
    length, c = 128, 8
    T = torch.zeros(length, length, dtype=torch.float64)
    T[length - 1, : length - c : c] = 1e-3
    for e in range(c, length - c + 1, c):
        T[e, e - c + 1] = 1.0  # a strong direction, which is kept
    edges = length // c - 1
    found = ek.compress(T, 1e-3 * math.sqrt(edges) * 1.001, block=c)
    error = norm_of(T - found.dense().tril(-1))
    assert error == pytest.approx(1e-3 * math.sqrt(edges), rel=1e-9)
    assert error <= float(found.spectral_error) <= error * (1 + 1e-5)  # rounding errors are inside the bound


def test_no_error_keeps_everything_and_a_rank_limit_is_kept():
    T = randn(40, 40)
    assert norm_of(T.tril(-1) - ek.compress(T, 0.0, block=8).dense()) < 1e-13
    found = ek.compress(T, 0.0, max_rank=3, block=8)
    assert int(found.ranks.max()) == 3
    assert norm_of(T.tril(-1) - found.dense()) <= float(found.spectral_error)
    assert int(ek.compress(T, 0.0, max_rank=0, block=8).ranks.max()) == 0


def test_sizes():
    T = randn(2, 3, 50, 50)
    found = ek.compress(T, 1e-3, block=16)
    assert found.ranks.shape == (2, 3, 3) and found.ranks.dtype == torch.int64
    assert found.spectral_error.shape == found.nuclear_error.shape == found.frobenius_error.shape == (2, 3)
    assert found.dense().shape == T.shape
    assert found.state_size is None and found.length == 50
    for length in (0, 1, 2, 16, 17):
        T = randn(length, length)
        found = ek.compress(T, 1e-9, block=16)
        assert found.dense().shape == (length, length)
        assert torch.equal(ek.tolerance_ess(found, atol=1e-3), ek.tolerance_ess(T, atol=1e-3))
    assert ek.compress(randn(0, 7, 7), 1e-3).dense().shape == (0, 7, 7)


@pytest.mark.parametrize("name", hard_cases())
@pytest.mark.parametrize("backend", ENGINES)
def test_metrics_answer_for_it(name: str, backend: str):
    op = build(name).inner
    norm = norm_of(lower_heads(op))
    found = ek.compress(op, 1e-3 * norm, block=8)
    T, L = lower_heads(found) / norm, op.length
    values = [torch.linalg.svdvals(T[:, i:, :i]) for i in range(1, L)]
    for tau in (1e-1, 1e-3, 1e-6):
        counts, certificate = ek.tolerance_ess(found, atol=tau * norm, backend=backend, certificate=True)
        least, most = (
            torch.stack([(s > tau * (1 + side * 1e-6) + side * 1e-12).sum(-1) for s in values], -1) for side in (1, -1)
        )
        counts, known = counts.reshape(-1, L - 1), ~certificate.unresolved.reshape(-1, L - 1)
        assert ((least <= counts) & (counts <= most))[known].all()
        assert known.double().mean() > 0.8
    positions = [1, L // 2, L - 1]
    got = ek.singular_values(found, positions, backend=backend).reshape(len(T), 3, -1) / norm
    for p, i in enumerate(positions):
        k = values[i - 1].shape[-1]
        torch.testing.assert_close(got[:, p, :k], values[i - 1], rtol=0, atol=1e-12)
        assert not got[:, p, k:].any()
    ess, certificate = ek.entropy_ess(found, backend=backend, certificate=True)
    known = ~certificate.unresolved.reshape(-1, L - 1)
    truth = torch.stack([entropy_of_values(s) for s in values], -1)
    torch.testing.assert_close(ess.reshape(-1, L - 1)[known], truth[known], rtol=1e-4, atol=0)
    sums = ek.nuclear_norm(found, backend=backend).reshape(-1, L - 1) / norm
    torch.testing.assert_close(sums, torch.stack([s.sum(-1) for s in values], -1), rtol=1e-4, atol=1e-12)
    soft = ek.soft_ess(found, 0.1 * norm, backend=backend).reshape(-1, L - 1)
    truth = torch.stack([(s.square() / (s.square() + 0.01)).sum(-1) for s in values], -1)
    torch.testing.assert_close(soft, truth, rtol=0, atol=1e-4)


def test_bad_heads_have_no_answer_and_leave_others_alone():
    T = randn(3, 40, 40)
    alone = ek.compress(T[::2], 1e-3, block=8)
    T[1, 20, 3] = torch.nan
    found = ek.compress(T, 1e-3, block=8)
    assert found.spectral_error.isnan().tolist() == [False, True, False]
    assert torch.equal(found.spectral_error[::2], alone.spectral_error)
    counts, ess = ek.tolerance_ess(found), ek.entropy_ess(found)
    assert (counts[1] == -1).all() and ess[1].isnan().all()
    assert ek.singular_values(found, [3, 20])[1].isnan().all()
    assert torch.equal(counts[::2], ek.tolerance_ess(alone)) and torch.equal(ess[::2], ek.entropy_ess(alone))


TILED = [name for name in names() if name.startswith(("attention", "convolution", "dense", "gated_conv"))]


@pytest.mark.parametrize("name", TILED)
def test_tiles_are_those_of_rows(name: str):
    op = build(name).inner
    heads = op.all_heads()[op.finite(op.all_heads())]
    L = op.length
    if not len(heads) or L < 8 or not isinstance(op, Tiled):
        return
    T, own, cut = op.dense_heads(heads).tril(-1), tile_source(op, heads), TilesOfRows(op, heads)
    largest = T.abs().flatten(1).amax(1)
    assert (largest <= own.largest() * (1 + 1e-12)).all()
    token = torch.arange(L)
    for rows, columns in (
        (slice(0, L), slice(0, L)),
        (slice(L // 2, L), slice(1, L // 2)),
        (slice(L // 2, L - 2), slice(L // 4, L // 3)),
        (slice(3, L), slice(2, 3)),
        (slice(L // 2, L // 2 + 3), slice(L // 2, L // 2 + 3)),
    ):
        below = token[rows, None] > token[columns]
        for source in (own, cut):
            tile = torch.where(below, source.tile(rows, columns), 0.0)
            error = (tile - T[:, rows, columns]).abs().flatten(1).amax(1)
            assert (error <= 1e-13 * largest).all(), (source, rows, columns)


def test_long_convolutions_compress_and_random_attention_does_not():
    t = torch.arange(600, dtype=torch.float64)
    power = ek.compress(ops.convolution((1 / (1 + t))[None]), 1e-6)
    assert int(power.ranks.max()) <= 16
    q, k = randn(2, 1, 1, 600, 16).unbind(0)
    attention = ek.compress(ops.attention(q, k), 1e-5)
    assert int(attention.ranks[0, 0, 4]) > 200


def test_families_without_tiles_of_their_own_are_held_or_made_again(monkeypatch: pytest.MonkeyPatch):
    op = build("stickbreaking: plain" if "stickbreaking: plain" in names() else "attention: sharp").inner
    held = ek.compress(op, 1e-3, block=8)
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "1K")
    again = ek.compress(op, 1e-3, block=8)
    torch.testing.assert_close(held.dense(), again.dense(), rtol=0, atol=1e-12)


def test_the_reference_takes_it():
    found = ek.compress(rand(20, 20), 1e-3, block=8)
    assert torch.equal(ek.tolerance_ess(found, backend="reference"), ek.tolerance_ess(found, backend="torch"))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"error": -1.0}, ValueError, "error"),
        ({"error": math.nan}, ValueError, "error"),
        ({"error": "1"}, TypeError, "error"),
        ({"error": 1e-3, "max_rank": -1}, ValueError, "max_rank"),
        ({"error": 1e-3, "max_rank": 1.5}, TypeError, "max_rank"),
        ({"error": 1e-3, "block": 0}, ValueError, "block"),
        ({"error": 1e-3, "block": True}, TypeError, "block"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        ek.compress(rand(10, 10), **arguments)


def test_several_rows_a_token_are_refused():
    with pytest.raises(ValueError, match="op"):
        ek.compress(ops.dense(rand(12, 12), block=3), 1e-3)
