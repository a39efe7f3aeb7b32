"""What the metrics have in common: how they are called, and in which order and shape positions are answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._readable import must_be_dispatched
from .operators.packing import pack
from .operators.structure import Operator

Result = TypeVar("Result")


def call(custom_op: Callable[..., Result], function: Callable[..., Result], op: Operator, *arguments: Any) -> Result:
    """`function(op, *arguments)` without a gradient; by its custom op where numbers cannot be read in place."""
    if not must_be_dispatched("op", op.inputs):
        with torch.no_grad():
            return function(op, *arguments)
    pieces = pack(op)
    if pieces is None:
        if not torch.compiler.is_compiling():
            raise NotImplementedError(f"op: a {type(op).__name__} needs ordinary tensors, with numbers in memory")
        from ._uncompiled import unknown_operator

        return unknown_operator(function, op, *arguments)
    return custom_op(*pieces, *arguments)


def distinct_positions(op: Operator, positions: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
    """Distinct positions on the operator's device, and for each position asked for its number among them, or None."""
    if positions is None:
        return torch.arange(1, max(op.length, 1), device=op.device), None
    wanted = torch.tensor(positions, dtype=torch.int64, device="cpu")
    distinct, back = wanted.unique(return_inverse=True)
    return distinct.to(op.device), back.to(op.device)


def asked(x: Tensor, back: Tensor | None, dim: int = -1) -> Tensor:
    """Results at distinct positions along `dim`, in the order and as often as they were asked for."""
    return x if back is None else x.index_select(dim, back)


def caps(op: Operator, positions: Sequence[int] | None) -> Tensor:
    """The largest rank at each of the positions, of a shape that broadcasts to results."""
    wanted = range(1, op.length) if positions is None else positions
    return op.rank_cap(torch.tensor(wanted, dtype=torch.int64, device=op.device))


def how_many(op: Operator, positions: Sequence[int] | None) -> int:
    return max(op.length - 1, 0) if positions is None else len(positions)


def largest_rank(op: Operator, positions: Sequence[int] | None) -> int:
    """The largest `min(state_size, m i, p (L - i))` of the positions, 0 where there are none."""
    rows, columns = op.block
    if positions is None and rows == columns:
        cap = op.length // 2 * rows
    elif positions is None:
        # the position where columns and rows are equally many, or the next one
        before = rows * op.length // (rows + columns)
        cap = torch.sym_max(columns * before, rows * (op.length - before - 1))
    else:
        cap = max((min(columns * i, rows * (op.length - i)) for i in positions), default=0)
    return cap if op.state_size is None else min(cap, op.state_size)
