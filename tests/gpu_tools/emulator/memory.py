"""Memory with a shadow: who has touched every cell, when, and whether that fits together.

Time is counted in epochs, which barriers of all threads end, and so does the end of a program. Programs run one after
the other: what happened before the running program's first epoch, another program has done. Barriers of a warp end
epochs of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# a cell that threads of several warps have read in one epoch: whoever stores next is another than one of them
SEVERAL = -2


class Moment(NamedTuple):
    """When an access happens.

    Attributes:
        epoch, start: the present epoch, and the first one of the running program.
        warp_epoch: int32, one a thread.
        several_warps: whether the program has more than one.
    """

    epoch: int
    start: int
    warp_epoch: np.ndarray
    several_warps: bool


class Conflict(NamedTuple):
    """Kind, number of the earlier line (0: none), description, number of cells."""

    kind: str
    line: int
    what: str
    number: int


class Touch:
    """The latest access of a kind to every cell: by which thread, in which epochs (0: never), at which line."""

    def __init__(self, cells: int) -> None:
        self.thread, self.epoch, self.warp_epoch, self.line = (np.zeros(cells, np.int32) for _ in range(4))

    def note(self, cells: np.ndarray, threads: np.ndarray, line: int, moment: Moment) -> None:
        self.thread[cells], self.line[cells], self.epoch[cells] = threads, line, moment.epoch
        self.warp_epoch[cells] = moment.warp_epoch[threads]

    def others(self, cells: np.ndarray, threads: np.ndarray, moment: Moment, what: str) -> Iterator[Conflict]:
        """Where another thread of the same program has been since the last barrier."""
        now = self.epoch[cells] == moment.epoch
        if not now.any():
            return
        cells, threads = cells[now], threads[now]
        before = self.thread[cells]
        several = before == SEVERAL
        other = (before != threads) | several
        apart = (before // 32 != threads // 32) & ~several | several & moment.several_warps
        since = self.warp_epoch[cells] == moment.warp_epoch[threads]
        for kind, bad in (("race", other & apart), ("lanes", other & ~apart & since)):
            if bad.any():
                yield Conflict(kind, int(self.line[cells[bad][0]]), what, int(bad.sum()))

    def foreign(self, cells: np.ndarray, moment: Moment, what: str) -> Iterator[Conflict]:
        """Where another program has been."""
        epochs = self.epoch[cells]
        other = (epochs > 0) & (epochs < moment.start)
        if other.any():
            yield Conflict("programs", int(self.line[cells[other][0]]), what, int(other.sum()))


class Space:
    """`size` bytes at address `base`, in cells of `grain` bytes; shared memory belongs to one program."""

    def __init__(self, base: int, size: int, grain: int, shared: bool = False) -> None:
        self.base, self.size, self.grain, self.shared = base, size, grain, shared
        # room for numbers of any width up to the end
        self.bytes = np.full(-(-size // 16) * 16 + 16, 0xAB, np.uint8)
        cells = len(self.bytes) // grain
        self.written, self.read = Touch(cells), Touch(cells)
        # the latest reader hides earlier ones, of which other programs matter too
        self.first_read = Touch(cells)

    def access(
        self, offsets: np.ndarray, threads: np.ndarray, width: int, line: int, moment: Moment, storing: bool
    ) -> Iterator[Conflict]:
        """Notes that `threads` touch `width` bytes each at `offsets`, and tells what is wrong with it."""
        if width <= self.grain:
            cells = offsets // self.grain
        else:
            cells = ((offsets // self.grain)[:, None] + np.arange(width // self.grain)).reshape(-1)
            threads = threads.repeat(width // self.grain)
        place = "shared" if self.shared else "global"
        verb = f"{'store' if storing else 'load'} {place}"
        if self.shared and not storing:
            unwritten = self.written.epoch[cells] == 0
            if unwritten.any():
                yield Conflict("unwritten", 0, "shared memory is read that nobody has written", int(unwritten.sum()))
        if not self.shared:
            yield from self.written.foreign(cells, moment, f"{verb} what another program has stored")
        yield from self.written.others(cells, threads, moment, f"{verb} what another thread has stored")
        if storing:
            if not self.shared:
                yield from self.first_read.foreign(cells, moment, f"{verb} what another program has loaded")
            yield from self.read.others(cells, threads, moment, f"{verb} what another thread has loaded")
            self.written.note(cells, threads, line, moment)
        else:
            self._note_read(cells, threads, line, moment)

    def _note_read(self, cells: np.ndarray, threads: np.ndarray, line: int, moment: Moment) -> None:
        if not self.shared:
            unread = self.first_read.epoch[cells] == 0
            if unread.any():
                self.first_read.note(cells[unread], threads[unread], line, moment)
        warps = threads // 32
        before = self.read.thread[cells]
        several = (self.read.epoch[cells] == moment.epoch) & ((before == SEVERAL) | (before // 32 != warps))
        self.read.note(cells, threads, line, moment)
        # of several threads with one cell the last one is noted, and the others find it there
        several |= self.read.thread[cells] // 32 != warps
        self.read.thread[cells[several]] = SEVERAL


class Spaces:
    """The storages of a launch's tensors, by address."""

    def __init__(self, spaces: list[Space]) -> None:
        self.spaces = sorted(spaces, key=lambda space: space.base)
        self.bases = np.array([space.base for space in self.spaces], np.int64)

    def holding(self, addresses: np.ndarray, width: int) -> Iterator[tuple[Space | None, np.ndarray]]:
        """Which of the addresses, by index, each space holds; `None` holds those that are outside of all."""
        if not len(addresses):
            return
        owners = np.searchsorted(self.bases, addresses, "right") - 1
        first = int(owners[0])
        for owner in (first,) if (owners == first).all() else np.unique(owners).tolist():
            mine = np.nonzero(owners == owner)[0]
            if owner < 0:
                yield None, mine
                continue
            space = self.spaces[owner]
            inside = addresses[mine] + width <= space.base + space.size
            if inside.all():
                yield space, mine
                continue
            yield None, mine[~inside]
            if inside.any():
                yield space, mine[inside]
