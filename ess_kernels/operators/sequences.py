"""Where the sequences of a packed or padded batch begin and end.

Three arguments of the constructors say so, in the conventions of those who use them: `cu_seqlens`
(flash-linear-attention, flash-attn, mamba_ssm), `seq_idx` (mamba_ssm, causal_conv1d) and `attention_mask`
(transformers). Everything else asks the `Sequences` made from one of them.

Numbers of these tensors are read late: in a graph of `torch.compile` they have none before a metric's custom op runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._readable import check_plain, without_numbers

INTEGERS = (torch.int32, torch.int64)


class Bounds(NamedTuple):
    """The tokens `start..stop-1` of one row of the batch."""

    row: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Sequences(ABC):
    """The sequences in `rows` rows of `length` tokens.

    Attributes:
        name: the argument that says where they are.
        marks: its tensor.
        rows, length: of the batch. Where an operator has no axis for the batch there is one row.
    """

    name: ClassVar[str]

    def __init__(self, marks: Tensor, rows: int, length: int):
        self.marks, self.rows, self.length = marks, rows, length
        self.check_sizes()
        # in a graph the numbers are checked once they are there, by `every`
        if not torch.compiler.is_compiling() and not without_numbers(self.name, [marks]):
            self.check_numbers()

    def every(self) -> list[Bounds]:
        """All of them, in order, as plain numbers. Sequences may be empty.

        Raises:
            ValueError: the numbers of the argument are not such as they must be.
        """
        self.check_numbers()
        return self.read()

    def of_tokens(self) -> tuple[Tensor, Tensor]:
        """Where the sequence of each token starts and stops, int64 `[rows, length]` both; reads no numbers.

        Of padding, the bounds are those of the row's sequence.
        """
        start, stop = self.edges_of_tokens()
        shape = (self.rows, self.length)
        return start.expand(shape), stop.expand(shape)

    @abstractmethod
    def check_sizes(self) -> None:
        """`TypeError` or `ValueError` for a dtype or a shape that does not fit."""

    @abstractmethod
    def check_numbers(self) -> None:
        """`ValueError` for numbers that do not fit."""

    @abstractmethod
    def read(self) -> list[Bounds]:
        """`every`, of numbers that have been checked."""

    @abstractmethod
    def edges_of_tokens(self) -> tuple[Tensor, Tensor]:
        """`of_tokens`, of any shape that broadcasts to theirs."""

    def expect(self, right: bool, expected: str, got: Any) -> None:
        if not right:
            raise ValueError(f"{self.name}: expected {expected}, got {got}")

    def check_integers(self, also: tuple[torch.dtype, ...] = ()) -> None:
        if self.marks.dtype not in (*also, *INTEGERS):
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in (*also, *INTEGERS))
            raise TypeError(f"{self.name}: expected {names}, got {self.marks.dtype}")

    def check_rows(self) -> None:
        shape = (self.rows, self.length)
        self.expect(tuple(self.marks.shape) == shape, f"shape [B, T] = {list(shape)}", list(self.marks.shape))


class Boundaries(Sequences):
    """`cu_seqlens` `[N + 1]`: sequence s is `cu_seqlens[s] .. cu_seqlens[s + 1] - 1` of the only row."""

    name = "cu_seqlens"

    def check_sizes(self) -> None:
        self.check_integers()
        shape = list(self.marks.shape)
        self.expect(len(shape) == 1 and shape[0] > 0, "one axis [N + 1], from 0 to the total", f"shape {shape}")
        self.expect(self.rows == 1, "one row of packed tokens, B = 1", f"B = {self.rows}")

    def check_numbers(self) -> None:
        numbers = self.marks.tolist()
        self.expect(numbers[0] == 0, "0 as its first number", numbers[0])
        for before, after in pairwise(numbers):
            self.expect(before <= after, "numbers that do not decrease", f"{after} after {before}")
        self.expect(numbers[-1] == self.length, f"the number of tokens {self.length} as its last number", numbers[-1])

    def read(self) -> list[Bounds]:
        numbers = self.marks.tolist()
        return [Bounds(0, start, stop) for start, stop in pairwise(numbers)]

    def edges_of_tokens(self) -> tuple[Tensor, Tensor]:
        marks = self.marks.long()
        token = torch.arange(self.length, device=marks.device)
        after = torch.searchsorted(marks, token, right=True).clamp(1, max(len(marks) - 1, 1))
        return marks[after - 1], marks[after]


class Runs(Sequences):
    """`seq_idx` `[B, T]`: every run of equal numbers is a sequence."""

    name = "seq_idx"

    def check_sizes(self) -> None:
        self.check_integers()
        self.check_rows()

    def check_numbers(self) -> None:
        pass  # any numbers will do

    def _begins(self) -> Tensor:
        """bool `[B, T]`: whether a token is the first of its sequence."""
        first = torch.ones_like(self.marks[:, :1], dtype=torch.bool)
        return torch.cat([first, self.marks[:, 1:] != self.marks[:, :-1]], 1)

    def read(self) -> list[Bounds]:
        found = []
        for row, begins in enumerate(self._begins()):
            edges = [*begins.nonzero()[:, 0].tolist(), self.length]
            found += [Bounds(row, start, stop) for start, stop in pairwise(edges)]
        return found

    def edges_of_tokens(self) -> tuple[Tensor, Tensor]:
        begins = self._begins()
        token = torch.arange(self.length, device=self.marks.device).expand(begins.shape)
        start = torch.where(begins, token, 0).cummax(1).values
        edges = torch.where(begins, token, self.length)[:, 1:]
        edges = torch.nn.functional.pad(edges, (0, 1), value=self.length)[:, : self.length]
        return start, edges.flip(1).cummin(1).values.flip(1)


class Mask(Sequences):
    """`attention_mask` `[B, T]`: the ones of a row are its only sequence, everything else is padding."""

    name = "attention_mask"

    def check_sizes(self) -> None:
        self.check_integers((torch.bool,))
        self.check_rows()

    def check_numbers(self) -> None:
        other = self.marks[(self.marks != 0) & (self.marks != 1)]
        self.expect(not len(other), "ones and zeros", other[:1].tolist())
        start, stop = self.of_tokens()
        token = torch.arange(self.length, device=self.marks.device)
        holes = ((start <= token) & (token < stop) & (self.marks == 0)).any(1)
        if bool(holes.any()):
            row = int(holes.nonzero()[0])
            self.expect(False, "one run of ones in each row", f"ones with zeros between them in row {row}")

    def read(self) -> list[Bounds]:
        if not self.length:
            return [Bounds(row, 0, 0) for row in range(self.rows)]
        starts, stops = (x[:, 0].tolist() for x in self.of_tokens())
        return [Bounds(row, min(start, stop), stop) for row, (start, stop) in enumerate(zip(starts, stops))]

    def edges_of_tokens(self) -> tuple[Tensor, Tensor]:
        real = self.marks != 0
        start = (real.cumsum(1) == 0).sum(1, keepdim=True)
        stop = self.length - (real.flip(1).cumsum(1) == 0).sum(1, keepdim=True)
        return start, stop


KINDS: dict[str, type[Sequences]] = {kind.name: kind for kind in (Boundaries, Runs, Mask)}


def given_marks(arguments: Mapping[str, Any]) -> tuple[str, Tensor] | None:
    """Name and tensor of the one among the arguments that says where sequences are, or None.

    Raises:
        TypeError: it is no plain tensor.
        ValueError: more than one of them is given.
    """
    given = [name for name in KINDS if arguments.get(name) is not None]
    if not given:
        return None
    name = given[0]
    if len(given) > 1:
        raise ValueError(f"{given[1]}: expected None beside {name}, got both")
    marks = arguments[name]
    if not isinstance(marks, Tensor):
        raise TypeError(f"{name}: expected a tensor of integers, got {type(marks).__name__}")
    check_plain(name, marks)
    return name, marks
