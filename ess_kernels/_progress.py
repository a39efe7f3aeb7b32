"""A progress bar on stderr: on a terminal only, and only for work that takes a while. No dependency."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Generic, Self, TextIO, TypeVar, overload

from ess_kernels._printable import printable

T = TypeVar("T")

DELAY = 0.5  # seconds of work before the bar appears: short work shows nothing
PERIOD = 0.1  # seconds between two drawings


class Progress(Generic[T]):
    """Iterate over it, or use it as a context manager and call `advance`; see `progress`."""

    def __init__(self, items: Iterable[T] | None, total: int | None, label: str, stream: TextIO | None):
        self.items = items
        self.total = total
        self.label = label
        self.done = 0
        self.stream = stream if _is_terminal(stream) else None
        self.begin = time.monotonic()
        self.next_drawing = self.begin + DELAY
        self.drawn = False

    def advance(self, count: int = 1, label: str | None = None) -> None:
        """`count` more items are done; `label`, if given, says what comes next."""
        self.done += count
        self.label = self.label if label is None else label
        if self.stream is not None and time.monotonic() >= self.next_drawing:
            self._draw(self.stream)

    def close(self) -> None:
        """Wipe the bar, so that what follows starts on a clean line."""
        if self.stream is not None and self.drawn:
            self._write(self.stream, "\r\x1b[K")
        self.stream = None

    def _draw(self, stream: TextIO) -> None:
        now = time.monotonic()
        self.next_drawing = now + PERIOD
        text = f"{self.label}  {self.done}" if self.total is None else _bar(self.label, self.done, self.total)
        text = f"{text}  {now - self.begin:.0f} s"
        self._write(stream, "\r" + printable(text)[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        self.drawn = True

    def _write(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):  # a bar that cannot be drawn must not end the work
            self.stream = None

    def __iter__(self) -> Iterator[T]:
        if self.items is None:
            raise TypeError("this progress counts to a total: call advance() instead of iterating")
        with self:
            for item in self.items:
                yield item
                self.advance()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@overload
def progress(work: int, label: str, stream: TextIO | None = None) -> Progress[Any]: ...
@overload
def progress(work: Iterable[T], label: str, stream: TextIO | None = None) -> Progress[T]: ...
def progress(work: Iterable[Any] | int, label: str, stream: TextIO | None = None) -> Progress[Any]:
    """A bar over `work`: an iterable to loop over, or a number of steps to `advance` through in a `with` block.

    Draws on `stream` (default: `sys.stderr` as it is now), and nothing at all where that is not a terminal.
    """
    stream = sys.stderr if stream is None else stream
    if isinstance(work, int):
        return Progress(None, work, label, stream)
    return Progress(work, len(work) if isinstance(work, Sized) else None, label, stream)


def _bar(label: str, done: int, total: int, width: int = 24) -> str:
    share = min(1.0, done / total) if total else 1.0
    filled = int(share * width)
    return f"{label}  [{'#' * filled}{'.' * (width - filled)}] {100 * share:3.0f} %"


def _is_terminal(stream: TextIO | None) -> bool:
    if stream is None:
        return False
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # replaced or closed
        return False
