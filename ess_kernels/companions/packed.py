"""A packed or padded batch together with the values of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operators.separate import SeparateSequences
from ..operators.sequences import Bounds
from ..operators.structure import Operator


class OperatorWithValues(Operator):
    """An operator beside the values that its state is written with.

    Attributes:
        op: the operator.
        values: `[num_heads, L m, V]`.
    """

    def __init__(self, op: Operator, values: Tensor):
        super().__init__(op.length, op.batch_shape, op.state_size, (*op.inputs, values), block=op.block)
        self.op, self.values = op, values

    def finite(self, heads: Tensor) -> Tensor:
        return self.op.finite(heads)

    def dense_heads(self, heads: Tensor) -> Tensor:
        return self.op.dense_heads(heads)


class SequencesWithValues(SeparateSequences):
    """A batch of sequences of which each is an `OperatorWithValues`.

    Attributes:
        values: `[rows, heads in a row, L m, V]`.
    """

    def __init__(self, op: SeparateSequences, values: Tensor):
        """`values` are `[*batch, L m, V]`."""
        super().__init__(op.family, op.arguments, op, op.sequences.name, op.sequences.marks)
        self.values = values.reshape(self.sequences.rows, self.heads_in_row, *values.shape[-2:])

    def _operator_of(self, members: Sequence[Bounds]) -> Operator:
        columns = self.block[1]
        values = [self.values[row, :, columns * start : columns * stop] for row, start, stop in members]
        return OperatorWithValues(super()._operator_of(members), torch.cat(values))

    def _stackable(self) -> bool:
        """Sequences that are alike have one operator, but each its own values."""
        return super()._stackable() and any(axes.time for axes in self.axes.values())
