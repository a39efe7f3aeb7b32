"""Packed and padded batches: every sequence is an operator of its own.

`T` of a packed batch is block diagonal, and `H` at a packed position is that of the position's own sequence. So the
sequences are taken out of a constructor's arguments, before anything is read or summed over the time, and the
constructor is called for each of them. Whatever it computes over the time begins anew by itself, padding is never
seen, and bad data stay within their sequence. Sequences of one length become one batch.

A family takes part by one line over its constructor, which says where the time is in its tensors:

    @takes_sequences(q="[B, T, H, K]", k="[B, T, H, K]", g="[B, T, H, K]")
    def gla(q, k, g, *, scale=None, cu_seqlens=None, attention_mask=None): ...

One long recurrence whose gates empty the state at every boundary would give the same answers, for more: its entropies
take 3.5 times as long, because positions near a boundary have rounding errors of the whole in place of zeros.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from .sequences import KINDS, Bounds, Sequences, given_marks
from .spread import takes_dtensors
from .structure import Operator, rank_cap

P = ParamSpec("P")
Arguments = Mapping[str, Any]
# The axes of a tensor, such as "[B, T, H, K]": "B" is the batch, "T" or "L" the time, "lag" a time that is 0 where a
# sequence starts, "*batch" any number of axes. Several layouts are told apart by their number of axes.
Layout = str | tuple[str, ...]
# or a function of all arguments that gives one
Layouts = Mapping[str, Layout | Callable[[Arguments], Layout]]


class Axes(NamedTuple):
    """Which axes of a tensor are the batch, the time (which may occur twice) and the lag."""

    batch: int | None = None
    time: tuple[int, ...] = ()
    lag: tuple[int, ...] = ()


def axes_of(layout: Layout, dims: int) -> Axes:
    """The axes of a tensor with `dims` of them; none where no layout fits, as that of a constant."""
    for choice in (layout,) if isinstance(layout, str) else layout:
        names = choice.strip("[]").split(", ")
        if names[0] == "*batch":
            # the first of them is the one along which the rows of a batch lie
            leading = max(dims - len(names) + 1, 0)
            names = ["B", *["-"] * leading][:leading] + names[1:]
        if len(names) == dims:
            time, lag = (tuple(i for i, name in enumerate(names) if name in kind) for kind in (("T", "L"), ("lag",)))
            return Axes(names.index("B") if "B" in names else None, time, lag)
    return Axes()


class Family(NamedTuple):
    """A constructor that takes sequences.

    Attributes:
        constructor: makes the operator of whole rows.
        layouts: of each tensor that has a batch or a time.
    """

    constructor: Callable[..., Operator]
    layouts: Layouts


# by the constructors' names
FAMILIES: dict[str, Family] = {}


def takes_sequences(
    **layouts: Layout | Callable[[Arguments], Layout],
) -> Callable[[Callable[P, Operator]], Callable[P, Operator]]:
    """Let a constructor take those of `cu_seqlens`, `seq_idx` and `attention_mask` that its signature names.

    The constructor itself is called without them. See the module for the layouts of its tensors.
    """

    def decorate(constructor: Callable[P, Operator]) -> Callable[P, Operator]:
        parameters = list(inspect.signature(constructor).parameters)
        name = constructor.__name__
        taken = [kind for kind in KINDS if kind in parameters]
        FAMILIES[name] = Family(constructor, layouts)

        @functools.wraps(constructor)
        def construct(*args: P.args, **kwargs: P.kwargs) -> Operator:
            marks = given_marks({kind: kwargs.pop(kind, None) for kind in taken})
            whole = constructor(*args, **kwargs)
            if marks is None:
                return whole
            return SeparateSequences(name, dict(zip(parameters, args)) | kwargs, whole, *marks)

        return takes_dtensors(layouts)(construct)

    return decorate


class Group(NamedTuple):
    """Sequences of one length, as one operator.

    Attributes:
        op: its heads are numbered sequence by sequence, `heads` for each; or one sequence stands for all, if alike.
        sequences: where they are.
        heads: of one row of the batch.
    """

    op: Operator
    sequences: list[Bounds]
    heads: int

    @property
    def alike(self) -> bool:
        """Whether one sequence stands for several."""
        return len(self.sequences) > 1 and self.op.num_heads == self.heads

    def by_sequence(self, x: Tensor, dim: int = 0) -> Tensor:
        """`x`, whose axis `dim` is the operator's heads, with two axes in its place: sequences and heads."""
        x = x.unflatten(dim, (1 if self.alike else len(self.sequences), self.heads))
        return x.expand(*x.shape[:dim], len(self.sequences), *x.shape[dim + 1 :])


class SeparateSequences(Operator):
    """A batch whose rows hold sequences, each with an operator of its own; see the module.

    Attributes:
        family: the name of the constructor.
        arguments: those that it was called with.
        sequences: where the sequences are.
    """

    def __init__(self, family: str, arguments: Arguments, whole: Operator, kind: str, marks: Tensor):
        """`whole` is the operator of the same arguments without sequences: its sizes are those of this one."""
        tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        inputs = [*tensors.values(), marks]
        super().__init__(whole.length, whole.batch_shape, whole.state_size, inputs, block=whole.block)
        self.family, self.arguments = family, dict(arguments)
        self.axes = {}
        for name, x in tensors.items():
            layout = FAMILIES[family].layouts.get(name, ())
            if callable(layout):
                layout = layout(arguments)
            axes = axes_of(layout, x.dim())
            if "*batch" in str(layout) and kind == "cu_seqlens":
                # every dimension of the batch shares these sequences, and none is one of rows
                axes = axes._replace(batch=None)
            if axes != Axes():
                self.axes[name] = axes
        has_batch = any(axes.batch is not None for axes in self.axes.values())
        if marks.device != self.device:
            raise ValueError(f"{kind}: expected {next(iter(tensors))}'s device {self.device}, got {marks.device}")
        self.sequences: Sequences = KINDS[kind](marks, self.batch_shape[0] if has_batch else 1, self.length)
        self.has_batch = has_batch

    # --- the operators of sequences -----------------------------------------------------------------------------------

    def groups(self, sequences: Iterable[Bounds], key: Callable[[Bounds], Any] = lambda _: None) -> list[Group]:
        """Operators of some sequences: those of equal length and equal `key` together where they can be."""
        alike: dict[Any, list[Bounds]] = {}
        for sequence in sequences:
            alike.setdefault((sequence.length, key(sequence)), []).append(sequence)
        groups = []
        for members in alike.values():
            batches = [members] if self._stackable() else [[member] for member in members]
            groups += [Group(self._operator_of(batch), batch, self.heads_in_row) for batch in batches]
        return groups

    def _stackable(self) -> bool:
        """Whether sequences can be a batch: every tensor that has a time has a batch, or none has."""
        return not self.has_batch or all(axes.batch is not None for axes in self.axes.values() if axes.time)

    def _operator_of(self, members: Sequence[Bounds]) -> Operator:
        """The operator of sequences of one length. Where no tensor has a time they are alike, and it has one."""
        first = members[0]
        changed: dict[str, Any] = {}
        for name, axes in self.axes.items():
            pieces = [self._cut(self.arguments[name], axes, member) for member in members]
            if len(members) == 1 or (axes.batch is None and not axes.time):
                changed[name] = pieces[0]
            else:
                changed[name] = torch.stack(pieces) if axes.batch is None else torch.cat(pieces, axes.batch)
        if self.arguments.get("length") is not None:
            changed["length"] = first.length
        return FAMILIES[self.family].constructor(**{**self.arguments, **changed})

    def _cut(self, x: Tensor, axes: Axes, sequence: Bounds) -> Tensor:
        """What a sequence has of a tensor, as a view."""
        _, start, stop = sequence
        for axis in axes.time:
            # a tensor may have several entries a token, or one for all of them
            each = x.shape[axis] // max(self.length, 1)
            if each:
                x = x.narrow(axis, each * start, each * (stop - start))
        for axis in axes.lag:
            x = x.narrow(axis, 0, stop - start)
        if axes.batch is not None and x.shape[axes.batch] > 1:
            x = x.narrow(axes.batch, sequence.row, 1)
        return x

    def empty_sequence(self) -> Operator:
        """The operator of no tokens, which says what backends take."""
        return self._operator_of([Bounds(0, 0, 0)])

    @property
    def heads_in_row(self) -> int:
        return self.num_heads // max(self.sequences.rows, 1)

    # --- what every operator has --------------------------------------------------------------------------------------

    @property
    def bandwidth(self) -> int | None:
        """Of the sequence that has the largest one."""
        ops = [group.op for group in self.groups(self.sequences.every())]
        widest = max((op.bandwidth or op.length for op in ops), default=1)
        return widest if widest < self.length else None

    def finite(self, heads: Tensor) -> Tensor:
        """Whether every sequence of the head is finite."""
        finite = torch.ones(self.sequences.rows, self.heads_in_row, dtype=torch.bool, device=self.device)
        for group in self.groups(self.sequences.every()):
            found = group.by_sequence(group.op.finite(group.op.all_heads()))
            for sequence, one in zip(group.sequences, found):
                finite[sequence.row] &= one
        return finite.flatten()[heads]

    def dense_heads(self, heads: Tensor) -> Tensor:
        rows, columns = self.block
        size = (self.sequences.rows, self.heads_in_row, self.length * rows, self.length * columns)
        T = torch.zeros(size, dtype=torch.float64, device=self.device)
        for group in self.groups(self.sequences.every()):
            blocks = group.by_sequence(group.op.dense_heads(group.op.all_heads()))
            for (row, start, stop), block in zip(group.sequences, blocks):
                T[row, :, rows * start : rows * stop, columns * start : columns * stop] = block
        return T.flatten(0, 1)[heads]

    def sequence_bounds(self) -> tuple[Tensor, Tensor]:
        start, stop = self.sequences.of_tokens()
        return start[:, 1:], stop[:, 1:]

    def _at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Where the sequences of positions start and stop, of the shape of `rank_cap`."""
        start, stop = (x[:, positions] for x in self.sequences.of_tokens())
        if len(start) == 1:
            return start[0], stop[0]
        shape = (len(start), *[1] * (len(self.batch_shape) - 1), len(positions))
        return start.reshape(shape), stop.reshape(shape)

    def within(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        start, stop = self._at(positions)
        return positions - start, (start < positions) & (positions < stop)

    def rank_cap(self, positions: Tensor) -> Tensor:
        """0 at positions that are not valid. `[P]`; or `[B, 1, P]` where B rows have sequences of their own."""
        start, stop = self._at(positions)
        return rank_cap(positions - start, stop - start, self.state_size, self.block).clamp_min(0)

    # --- across the border of a compiled graph ------------------------------------------------------------------------

    def pack(self) -> tuple[list[Tensor | None], str]:
        """The tensors, and what else it takes to make this operator again, as text; the length may be symbolic."""
        names = [name for name, x in self.arguments.items() if isinstance(x, Tensor)]
        others = {name: x for name, x in self.arguments.items() if name not in names and name != "length"}
        tensors: list[Tensor | None] = [self.arguments[name] for name in names]
        has_length = self.arguments.get("length") is not None
        description = (self.family, self.sequences.name, names, has_length, others)
        return [*tensors, self.sequences.marks], _text(description)

    @classmethod
    def unpack(cls, tensors: Sequence[Tensor | None], description: str, length: int) -> Operator:
        family, kind, names, has_length, others = ast.literal_eval(description)
        *given, marks = tensors
        arguments = {**dict(zip(names, given, strict=True)), **others} | ({"length": length} if has_length else {})
        assert marks is not None
        return cls(family, arguments, FAMILIES[family].constructor(**arguments), kind, marks)


def _text(value: Any) -> str:
    """Plain values as Python writes them; infinity, for which it has no literal, as a number beyond the largest."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)}: {_text(x)}" for key, x in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join([_text(x) for x in value]) + "]"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)
