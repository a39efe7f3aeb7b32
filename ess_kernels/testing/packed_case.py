"""Packed and padded batches of an operator family: what `OperatorTestCase` inherits about them.

Every answer is compared with that of an operator made of the one sequence alone. Where the time is in an input is seen
from two lengths: the axes whose sizes differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..by_sequence import split
from ..metrics import entropy_ess, singular_values, tolerance_ess
from ..operators.structure import Operator
from ..reference import reference_entropy_ess, reference_singular_values, reference_tolerance_ess
from .closeness import assert_close
from .family import FamilyUnderTest

# one before, one behind an empty one, one of a single token, and one as long as the first
BOUNDARIES = (0, 4, 4, 5, 9)
LENGTH = BOUNDARIES[-1]
SEQUENCES = tuple(pairwise(BOUNDARIES))
TOLERANCES = [0.5, 0.05, 1e-6]
# numbers of one operator by what they are, at all positions
Answers = dict[str, Tensor]
# how far those of a packed sequence may be from those of the sequence alone
TO_WITHIN = {
    "counts": 0,
    "counts, rtol": 0,
    "entropy": 1e-9,
    "counts of the definition": 0,
    "entropy of the definition": 1e-9,
    "largest values": 1e-9,
    "largest values of the definition": 1e-9,
}


class PackedCase(FamilyUnderTest):
    """Packed and padded batches of a family whose constructor takes them.

    Attributes:
        lags: the inputs whose axis for the time is a lag, 0 at the start of every sequence.
        has_rows: whether the first dimension of the batch is one of rows of tokens.
    """

    lags: ClassVar[tuple[str, ...]] = ()
    has_rows: ClassVar[bool] = True

    def _takes(self, argument: str) -> bool:
        return argument in inspect.signature(type(self).constructor).parameters

    def _cut(self, inputs: Mapping[str, Tensor], start: int, stop: int, row: int = 0) -> dict[str, Tensor]:
        """What one sequence has of inputs of `LENGTH` tokens."""
        cut, times = {}, self._times()
        for name, x in inputs.items():
            for axis in times[name]:
                each = x.shape[axis] // LENGTH
                first = 0 if name in self.lags else each * start
                x = x.narrow(axis, first, each * (stop - start))
            cut[name] = self._row(name, x, row)
        return cut

    def _times(self) -> dict[str, list[int]]:
        """The axes of each input that are the time, or a lag."""
        long, short = self.inputs(LENGTH), self.inputs(LENGTH - 1)
        return {
            name: [axis for axis, size in enumerate(x.shape) if size != short[name].shape[axis]]
            for name, x in long.items()
        }

    def _row(self, name: str, x: Tensor, row: int) -> Tensor:
        axis = self.reads.get(name, (0, 2))[0] if self.has_rows else None
        return x if axis is None else x.narrow(axis, row, 1)

    def _packed(self, inputs: Mapping[str, Tensor], **marks: Tensor) -> Operator:
        return type(self).constructor(**inputs, **self.options, **marks)

    def _alone(self, inputs: Mapping[str, Tensor], length: int) -> Operator:
        options = {**self.options, **({"length": length} if "length" in self.options else {})}
        return type(self).constructor(**inputs, **options)

    def _compare(self, op: Operator, alone: list[Answers], bounds: list[tuple[int, int, int]]) -> None:
        """Every metric of the batch with those of its sequences, each made alone."""
        valid = torch.zeros(int(self.has_rows) * bounds[-1][0] + 1, LENGTH - 1, dtype=torch.bool)
        for row, start, stop in bounds:
            valid[row, start : max(stop - 1, start)] = True
        assert torch.equal(op.valid, valid)
        for what, found in _answers(op).items():
            rtol = TO_WITHIN[what]
            parts = split(found, op)
            assert len(parts) == len(alone)
            for number, (part, one) in enumerate(zip(parts, alone)):
                wanted = one[what].reshape(part.shape)
                assert_close(f"{what} of sequence {number}", part, wanted, rtol=rtol, atol=rtol)
            outside = found.movedim(-1, 0)[~valid.any(0)]
            assert bool((outside == 0).all()), f"{what}: not 0 outside of sequences"

    def _answers_of_sequence(self, inputs: Mapping[str, Tensor], start: int, stop: int, row: int = 0) -> Answers:
        """The metrics of an operator that is made of these tokens of these inputs and of no others."""
        return _answers(self._alone(self._cut(inputs, start, stop, row), stop - start))

    def _first_row(self) -> dict[str, Tensor]:
        return {name: self._row(name, x, 0) for name, x in self.inputs(LENGTH).items()}

    def test_packed_sequences(self) -> None:
        if not self._takes("cu_seqlens"):
            return
        inputs = self._first_row()
        op = self._packed(inputs, cu_seqlens=torch.tensor(BOUNDARIES))
        alone = [self._answers_of_sequence(inputs, start, stop) for start, stop in SEQUENCES]
        self._compare(op, alone, [(0, start, stop) for start, stop in SEQUENCES])
        T, (rows, columns) = op.dense(), op.block
        for start, stop in SEQUENCES:
            own = T[..., rows * start : rows * stop, columns * start : columns * stop]
            wanted = self._alone(self._cut(inputs, start, stop), stop - start).dense()
            assert_close(f"T of tokens {start}..{stop}", own, wanted.reshape(own.shape), rtol=1e-12, atol=1e-12)
            own.zero_()
        assert bool((T == 0).all()), "T is not zero between sequences"

    def test_packed_sequences_by_index(self) -> None:
        """Runs of equal numbers, of which one comes twice."""
        if not self._takes("seq_idx"):
            return
        inputs = self._first_row()
        op = self._packed(inputs, seq_idx=torch.tensor([[3, 3, 3, 3, 7, 3, 3, 3, 3]]))
        same = self._packed(inputs, cu_seqlens=torch.tensor(BOUNDARIES))
        assert torch.equal(_counts(op), _counts(same))
        assert torch.equal(op.dense(), same.dense())

    def test_bad_data_in_one_sequence(self) -> None:
        """Everything that the last sequence reads of one input is NaN: the others' answers stay as they are."""
        if not self._takes("cu_seqlens"):
            return
        inputs, every = self._first_row(), self._times()
        clean = _counts(self._packed(inputs, cu_seqlens=torch.tensor(BOUNDARIES)))
        bounds = [(0, start, stop) for start, stop in SEQUENCES]
        good = [self._answers_of_sequence(inputs, start, stop) for start, stop in SEQUENCES[:-1]]
        start, stop = SEQUENCES[-1]
        for name, x in inputs.items():
            times = [] if name in self.lags else every[name]
            if not times:
                continue
            x = x.clone()
            part = x
            for axis in times:
                each = x.shape[axis] // LENGTH
                part = part.narrow(axis, each * start, each * (stop - start))
            part.fill_(torch.nan)
            spoilt = {**inputs, name: x}
            op = self._packed(spoilt, cu_seqlens=torch.tensor(BOUNDARIES))
            self._compare(op, [*good, self._answers_of_sequence(spoilt, start, stop)], bounds)
            counts = _counts(op)
            assert bool((counts[..., start:] == -1).all()), f"{name}: NaN is not seen"
            assert torch.equal(counts[..., :start], clean[..., :start]), f"{name}: NaN has left its sequence"

    def test_padding_is_not_looked_at(self) -> None:
        """One row padded on the left, one on the right, with NaN where nothing may be read."""
        if not self._takes("attention_mask"):
            return
        inputs, times = self.inputs(LENGTH), self._times()
        rows = len(inputs[next(iter(inputs))]) if self.has_rows else 1
        bounds = [(row, *((2, LENGTH), (0, LENGTH - 3))[row % 2]) for row in range(rows)]
        mask = torch.zeros(rows, LENGTH, dtype=torch.int64)
        for row, start, stop in bounds:
            mask[row, start:stop] = 1
        spoilt = {}
        for name, x in inputs.items():
            x = spoilt[name] = x.clone()
            if not self.has_rows or name in self.lags or self.reads.get(name, (0, 2))[0] is None:
                continue
            for row, start, stop in bounds:
                for axis in times[name]:
                    each = x.shape[axis] // LENGTH
                    one = self._row(name, x, row)
                    one.narrow(axis, 0, each * start).fill_(torch.nan)
                    one.narrow(axis, each * stop, each * (LENGTH - stop)).fill_(torch.nan)
        alone = [self._answers_of_sequence(inputs, start, stop, row) for row, start, stop in bounds]
        for marks in (mask, mask.bool()):
            self._compare(self._packed(spoilt, attention_mask=marks), alone, bounds)

    def test_packed_sequences_in_a_compiled_graph(self) -> None:
        """Where sequences are is not known while the graph is made: one graph serves two packings."""
        from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds to import

        if not self._takes("cu_seqlens"):
            return
        inputs = self._first_row()

        def everything(boundaries: Tensor, *tensors: Tensor) -> list[Any]:
            op = self._packed(dict(zip(inputs, tensors)), cu_seqlens=boundaries)
            return [tolerance_ess(op, 0.3), op.valid]

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(everything, fullgraph=True, backend=counter)
        for boundaries in (torch.tensor(BOUNDARIES), torch.tensor([0, 1, 3, 9, 9])):
            found, wanted = (f(boundaries, *inputs.values()) for f in (compiled, everything))
            assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
        assert counter.frame_count == 1


def _counts(op: Operator) -> Tensor:
    counts = tolerance_ess(op, TOLERANCES)
    assert isinstance(counts, Tensor)
    return counts


def _answers(op: Operator) -> Answers:
    answers = {
        "counts": _counts(op),
        "counts, rtol": tolerance_ess(op, rtol=0.1),
        "entropy": entropy_ess(op),
        "counts of the definition": reference_tolerance_ess(op, 0.05),
        "entropy of the definition": reference_entropy_ess(op),
        "largest values": singular_values(op, list(range(1, op.length)), 1)[..., 0],
        "largest values of the definition": _largest(reference_singular_values(op)),
    }
    assert list(answers) == list(TO_WITHIN)
    return cast(Answers, answers)


def _largest(values: Tensor) -> Tensor:
    """The first of the values `[..., S]`, 0 where there are none."""
    return values[..., 0] if values.shape[-1] else values.new_zeros(values.shape[:-1])
