"""What a launch has done to a tensor's storage so far, cell by cell, and what that makes of the next access.

Time is counted in epochs: a barrier ends one, and so does the end of a program. Programs run one after the other, so
that an epoch tells its program: what happened before the running program's first epoch, another program has done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# a cell that several positions have read in one epoch: whoever stores next is another lane than one of them
SEVERAL = -1


class Access(NamedTuple):
    """One load or store statement of a program.

    Attributes:
        cells: int64 `[k]`, the cells of the storage that it touches.
        marks: int32 `[k]`, which position of which shape of tensor touches it, equal only for the same position.
        place: number of the line in the kernel.
        epoch: when it happens.
        start: the running program's first epoch.
        replicated: whether every lane of the program executes it for all positions.
    """

    cells: np.ndarray
    marks: np.ndarray
    place: int
    epoch: int
    start: int
    replicated: bool = False


class Conflict(NamedTuple):
    """What is wrong with an access: kind, number of the earlier line (0: none), description, number of cells."""

    kind: str
    before: int
    what: str
    number: int


class Touch:
    """The latest access of a kind to every cell: when (0: never), by which position, at which line."""

    def __init__(self, cells: int) -> None:
        # untouched pages of zeros take no memory, however large the storage
        self.epoch, self.mark, self.place = (np.zeros(cells, np.int32) for _ in range(3))

    def note(self, access: Access) -> np.ndarray:
        """Records an access; returns where another position of it has touched the same cell."""
        self.epoch[access.cells] = access.epoch
        self.place[access.cells] = access.place
        self.mark[access.cells] = access.marks
        # of several positions with one cell the last one is recorded, and the others find it there
        return self.mark[access.cells] != access.marks


class Shadow:
    """A storage of `size` bytes at address `base`, in cells of `grain` bytes, the size of its tensors' numbers."""

    def __init__(self, base: int, size: int, grain: int) -> None:
        self.base, self.size, self.grain = base, size, grain
        cells = -(-size // grain)
        self.written, self.read = Touch(cells), Touch(cells)
        self.first_read = np.zeros(cells, np.int32)

    def load(self, access: Access) -> Iterator[Conflict]:
        cells = access.cells
        written = self.written.epoch[cells]
        yield from _foreign(access, written, self.written.place, "loads what another program has stored")
        yield from _own(access, self.written, written, "loads what {} has stored", access.replicated)
        unread = self.first_read[cells] == 0
        self.first_read[cells[unread]] = access.epoch
        several = (self.read.epoch[cells] == access.epoch) & (self.read.mark[cells] != access.marks)
        several |= self.read.note(access)
        self.read.mark[cells[several]] = SEVERAL

    def store(self, access: Access) -> Iterator[Conflict]:
        cells = access.cells
        written, read = self.written.epoch[cells], self.read.epoch[cells]
        yield from _foreign(access, written, self.written.place, "stores what another program has stored")
        yield from _foreign(access, self.first_read[cells], self.read.place, "stores what another program has loaded")
        # a replica that loads late loads what is then there, but only the first one stores
        yield from _own(access, self.written, written, "stores what {} has stored", False)
        yield from _own(access, self.read, read, "stores what {} has loaded", False)
        twice = self.written.note(access)
        if twice.any():
            yield Conflict("race", 0, "two lanes store at one address in one statement", int(twice.sum()))


def _foreign(access: Access, epoch: np.ndarray, place: np.ndarray, what: str) -> Iterator[Conflict]:
    other = (epoch > 0) & (epoch < access.start)
    if other.any():
        yield Conflict("programs", int(place[access.cells[other][0]]), what, int(other.sum()))


def _own(access: Access, earlier: Touch, epoch: np.ndarray, what: str, replicated: bool) -> Iterator[Conflict]:
    """Conflicts with what the same program did in the same epoch, one for every earlier line."""
    own = epoch == access.epoch
    if not own.any():
        return
    cells = access.cells[own]
    apart = replicated | (earlier.mark[cells] != access.marks[own])
    places = earlier.place[cells]
    for kind, chosen, who in (
        ("race", apart, "a replica" if replicated else "another lane"),
        ("same", ~apart, "the same position"),
    ):
        for place, count in zip(*np.unique(places[chosen], return_counts=True)):
            yield Conflict(kind, int(place), what.format(who) + ", no barrier between", int(count))
