"""Compressed operators by Triton's kernels: what they answer is what the engine in PyTorch answers."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from twins import descend_twin

import ess_kernels as ek
from ess_kernels import backends
from ess_kernels.backends.triton.recurrence import block_states, boundary, passes
from ess_kernels.compressing import compressed
from ess_kernels.operators.dense import as_operator
from ess_kernels.testing.cases import randn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, the two kernels that run once a block and tolerance take most of the time."""
    if DEVICE == "cpu":
        monkeypatch.setattr(passes, "eliminate", boundary.eliminate_in_torch)
        monkeypatch.setattr(passes, "descend", descend_twin)


def in_blocks(T: torch.Tensor, block: int) -> ek.Compressed:
    return compressed(as_operator(T.to(DEVICE)), 1e-12 * float(T.abs().nan_to_num(0.0).max()), None, block)


def low_rank(*shape: int, rank: int) -> torch.Tensor:
    return randn(*shape, rank) @ randn(*shape[:-1], rank, shape[-1])


def check(op: ek.Compressed, tolerances: list[float]) -> None:
    (one, first), (two, second) = (
        ek.tolerance_ess(op, atol=tolerances, backend=x, certificate=True) for x in ("torch", "triton")
    )
    sure = ~(first.unresolved | second.unresolved)
    assert torch.equal(one[sure], two[sure]) and torch.equal(one == -1, two == -1)
    assert (~second.unresolved | first.unresolved).double().mean() > 0.97
    (one, first), (two, second) = (ek.entropy_ess(op, backend=x, certificate=True) for x in ("torch", "triton"))
    assert torch.equal(first.unresolved, second.unresolved) and torch.equal(one.isnan(), two.isnan())
    known = ~first.unresolved
    assert ((one - two).abs() <= (first.error + second.error) * one + 1e-12)[known].all()
    assert (second.error[known] <= (1.1 * first.error[known]).clamp_min(1e-4)).all()


@pytest.mark.parametrize(
    ("length", "block", "rank"), [(2, 64, 1), (3, 16, 1), (16, 16, 2), (33, 16, 3), (70, 64, 4), (70, 32, 20)]
)
def test_lengths(length: int, block: int, rank: int, twins: None):
    """Fewer tokens than a block, one block, last blocks of one token and of more; at tolerances far down as well."""
    op = in_blocks(low_rank(length, rank=rank), block)
    assert block_states.takes(op.parts[0], length, 256)
    check(op, [1.0, 1e-5, 1e-10])


@pytest.mark.thorough
def test_kinds_of_heads(twins: None):
    """Edges that nothing crosses, nothing at all, a bad head, and ties: each as if it were alone."""
    T = low_rank(5, 40, rank=3)
    T[0] = torch.block_diag(randn(16, 16), randn(16, 16), randn(8, 8))
    T[1] = 0.0
    T[2, 30, 2] = torch.nan
    T[3] = torch.diag_embed(torch.ones(39, dtype=torch.float64), -1)
    op = in_blocks(T, 16)
    check(op, [0.5, 1.0 + 1e-9, 1e-6])
    counts = ek.tolerance_ess(op, atol=0.5, backend="triton")
    assert (counts[2] == -1).all() and (counts[3] == 1).all() and not counts[1].any()
    assert ek.singular_values(op, [7, 16], backend="triton")[1].eq(0).all()
    soft = [ek.soft_ess(op, 0.1, backend=x) for x in ("torch", "triton")]
    torch.testing.assert_close(*soft, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.thorough
def test_kernels():
    op = in_blocks(low_rank(20, rank=2), 16)
    check(op, [1.0, 1e-5])


def test_blocks_without_kernels_are_refused():
    op = in_blocks(low_rank(40, rank=3), 13)
    with pytest.raises(RuntimeError, match=r"'triton' cannot be used for entropy_ess: .* in blocks of 64 tokens"):
        ek.entropy_ess(op, backend="triton")
    T = low_rank(2, 60, rank=3)
    T[1] = randn(60, 60)  # of more than 16 states: that head is left to PyTorch
    some = in_blocks(T, 16)
    kinds = [block_states.takes(parts, 60, 256) for parts in some.parts]
    assert kinds == [True, False] and backends.choose("triton", "tolerance_ess", some).name == "triton"
