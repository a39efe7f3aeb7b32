"""Memory: the budget of a call, and how much is free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from . import environment

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

_budget: ContextVar[int | None] = ContextVar("_budget", default=None)


@contextmanager
def memory_budget(size: int | str) -> Iterator[None]:
    """Within it, calls of this thread (or task of asyncio) may use `size` for their workspace, whatever the environment
    says.

    The workspace is what a call needs beside its inputs and its result. Heads and positions are taken as many at a time
    as fit. A single head that needs more gets it where the memory is there, with one logged line; where it is not,
    the call raises `MemoryError` before it allocates anything.

    Args:
        size: bytes, or a text such as `"512M"` or `"2GiB"`; K, M and G are KiB, MiB and GiB.

    Raises:
        TypeError: it is neither an integer nor a text.
        ValueError: it is less than one byte, or a text that cannot be understood.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"size: expected bytes or a text such as '2GiB', got {type(size).__name__}")
    try:
        number = environment.parse_size(size) if isinstance(size, str) else size
    except ValueError as error:
        raise ValueError(f"size: {error}") from None
    if number < 1:
        raise ValueError(f"size: expected at least one byte, got {size}")
    token = _budget.set(number)
    try:
        yield
    finally:
        _budget.reset(token)


def budget_in_bytes() -> int:
    """The workspace that one call may use: that of the innermost `memory_budget`, or the environment's."""
    number = _budget.get()
    return environment.default_memory_budget() if number is None else number


def free_memory() -> int | None:
    """Bytes that this process may still take: what the machine has and its control groups allow. None: not known."""
    known = [size for size in (_free_on_machine(), *_free_in_groups()) if size is not None]
    return min(known, default=None)


def free_on_gpu() -> int:
    """Bytes that are free on the current CUDA device."""
    import torch

    return torch.cuda.mem_get_info()[0]


def size_text(size: int) -> str:
    """A number of bytes as people read it: `14.9 GiB`."""
    value = float(size)
    for unit in UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {UNITS[-1]}"


def _free_on_machine() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterable[int | None]:
    """For each control group with a limit that this process is in: the limit less what is in use and cannot be dropped.

    Version 2 has one tree of groups, version 1 one of its own for memory; a container sees its own group as the root.
    """
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        tree = root / controllers
        most, now = "memory.max", "memory.current"
        if controllers:  # version 1
            most, now = "memory.limit_in_bytes", "memory.usage_in_bytes"
        group = tree / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(tree):
                break
            limit, used = _number(folder / most), _number(folder / now)
            if limit is not None and used is not None:
                yield max(0, limit - used + _droppable(folder / "memory.stat"))


def _droppable(path: Path) -> int:
    """Bytes of files that are kept in memory only as long as nobody needs it for something else."""
    for line in _lines(path):
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or it says `max`."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
