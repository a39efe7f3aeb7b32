"""Metrics of packed and padded batches: the answers of single sequences, put where their positions are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._readable import check_plain
from .operators.dense import as_operator
from .operators.separate import SeparateSequences
from .operators.sequences import Bounds
from .operators.side_by_side import batches, side_by_side
from .operators.structure import Operator


def answer_by_sequence(
    op: SeparateSequences,
    positions: Sequence[int] | None,
    answer: Callable[[Operator, list[int]], Sequence[Tensor]],
    dtypes: Sequence[torch.dtype],
    *,
    several: int | None = None,
    values: int | None = None,
    together: bool = False,
) -> list[Tensor]:
    """What `answer(operator, positions)` says of each sequence, at its own positions; 0 at those of no sequence.

    Args:
        op: the batch.
        positions: of the batch, in any order, repeats kept; None: 1..L-1.
        answer: gives a tensor for each of the `dtypes`, `[*batch, P]`.
        several: the size of a further first axis of every tensor; None: it has none.
        values: that of a further last axis.
        together: whether recurrences of different lengths may be one operator. A count is then not cut off at the
            largest rank of its own sequence.

    Returns:
        Tensors `[several, *batch, P, values]`.
    """
    wanted = _Wanted(op, positions)
    rows, heads, count = op.sequences.rows, op.heads_in_row, wanted.count
    size = (rows, count, 1 if several is None else several, heads, 1 if values is None else values)
    results = [torch.zeros(size, dtype=dtype, device=op.device) for dtype in dtypes]
    sequences = [sequence for sequence in op.sequences.every() if wanted.local(sequence)]
    groups = op.groups(sequences, wanted.local)
    for batch in batches(groups) if together else [[group] for group in groups]:
        asked = wanted.of_any(group.sequences[0] for group in batch)
        one = side_by_side([group.op for group in batch])
        found = [_heads_second(x, one.num_heads, several is not None, values is not None) for x in answer(one, asked)]
        first = 0
        for group in batch:
            row, places, its = wanted.where(group.sequences, asked, op.device)
            for result, x in zip(results, found, strict=True):
                mine = group.by_sequence(x[:, first : first + group.op.num_heads, its], 1)
                result[row, places] = mine.permute(1, 3, 0, 2, 4)
            first += group.op.num_heads
    shape = [*([] if several is None else [several]), *op.batch_shape, count, *([] if values is None else [values])]
    return [x.permute(2, 0, 3, 1, 4).reshape(shape) for x in results]


def _heads_second(x: Tensor, heads: int, several: bool, values: bool) -> Tensor:
    """`[several, *batch, P, values]`, with or without the first and the last axis, as `[several, heads, P, values]`."""
    x = x if several else x[None]
    x = x if values else x[..., None]
    return x.reshape(len(x), heads, *x.shape[-2:])


class _Wanted:
    """Which positions of each sequence are asked for.

    Attributes:
        count: of all positions.
    """

    def __init__(self, op: Operator, positions: Sequence[int] | None):
        self.every = positions is None
        self.count = max(op.length - 1, 0) if positions is None else len(positions)
        if positions is not None:
            self.order = sorted(range(self.count), key=positions.__getitem__)
            self.sorted = [positions[place] for place in self.order]

    def local(self, sequence: Bounds) -> Sequence[int]:
        """Those inside the sequence, counted from its start."""
        if self.every:
            return range(1, sequence.length)
        first, last = self._range(sequence)
        return tuple(position - sequence.start for position in self.sorted[first:last])

    def of_any(self, sequences: Iterable[Bounds]) -> list[int]:
        """Those of any of the sequences, counted from its start, ascending."""
        if self.every:
            return list(range(1, max(sequence.length for sequence in sequences)))
        return sorted({position for sequence in sequences for position in self.local(sequence)})

    def where(
        self, sequences: Sequence[Bounds], asked: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor, slice | Tensor]:
        """Rows `[S, 1]` and places `[S, P]` of the answers of sequences at the same positions, and these among `asked`.

        All that is asked of any sequence in the same call is `asked`, ascending.
        """
        row = torch.tensor([[sequence.row] for sequence in sequences], device=device)
        if self.every:
            start = torch.tensor([[sequence.start] for sequence in sequences], device=device)
            count = sequences[0].length - 1
            return row, start + torch.arange(count, device=device), slice(count)
        places = [self.order[slice(*self._range(sequence))] for sequence in sequences]
        its = [bisect_left(asked, position) for position in self.local(sequences[0])]
        return row, torch.tensor(places, device=device), torch.tensor(its, device=device)

    def _range(self, sequence: Bounds) -> tuple[int, int]:
        return bisect_right(self.sorted, sequence.start), bisect_left(self.sorted, sequence.stop)


def split(result: Tensor, op: Operator | Tensor) -> list[Tensor]:
    """The answers of a packed or padded batch, sequence by sequence.

    Args:
        result: `[..., *batch, L - 1]`, a count, an entropy or a field of a certificate at all positions of `op`.
        op: the operator that it was measured on. One without `cu_seqlens`, `seq_idx` or `attention_mask` has one
            sequence a row.

    Returns:
        A tensor `[..., H, L_s - 1]` for each sequence in order, row by row, empty sequences included: `H` stands for
        the batch dimensions without that of the rows.

    Raises:
        TypeError: `result` is no tensor.
        ValueError: its shape is not that of results of the operator.
    """
    op = as_operator(op, spread=True)
    if not isinstance(result, Tensor):
        raise TypeError(f"result: expected a tensor, got {type(result).__name__}")
    check_plain("result", result)
    shape = (*op.batch_shape, max(op.length - 1, 0))
    if tuple(result.shape[-len(shape) :]) != shape:
        raise ValueError(f"result: expected shape [..., {', '.join(map(str, shape))}], got {list(result.shape)}")
    by_row, sequences = _rows(result, op)
    return [by_row[row][..., start : max(stop - 1, start)] for row, start, stop in sequences]


def _rows(result: Tensor, op: Operator) -> tuple[Any, list[Bounds]]:
    """The result row by row, and where the sequences are."""
    if isinstance(op, SeparateSequences):
        rows, sequences = op.has_batch, op.sequences.every()
    else:
        rows = len(op.batch_shape) > 1
        sequences = [Bounds(row, 0, op.length) for row in range(op.batch_shape[0] if rows else 1)]
    return (result.movedim(-1 - len(op.batch_shape), 0) if rows else result[None]), sequences
