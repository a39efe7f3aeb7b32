"""Memory: the budget of a call, what is free, and the error that comes before the first allocation where that is less.

Whoever is about to work says what the work needs, a `Need`, and gets the bytes that it may use, from `granted`. That is
the budget, or what is free where that is less.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from . import environment

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("ess_kernels")

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
# a call that needs less does not ask how much is free, which takes up to a millisecond
NOT_ASKED = 2**25
# of the address space that a process may have, so much is left to threads' stacks and to the allocator
ADDRESSES_LEFT = 2**26
# how allocators, and threads that cannot start, say that memory is out, where they do not raise MemoryError
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "can't start new thread")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_budget: ContextVar[int | None] = ContextVar("_budget", default=None)
_heard: ContextVar[list[Need] | None] = ContextVar("_heard", default=None)


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


class Need(NamedTuple):
    """What a call needs beside its inputs, in bytes.

    Attributes:
        unit: its largest piece of work that cannot be cut, in words, such as "one head of 4096 tokens".
        least: what that takes, with the result.
        most: what the call takes at most with the budget that it was asked about, with the result.
        instead: what takes less, in words.
    """

    unit: str
    least: int
    most: int
    instead: str


def granted(need_of: Callable[[int], Need], device: torch.device) -> int:
    """The bytes that a call may use for its workspace: the budget, or less where less is free.

    Args:
        need_of: what the call needs, given its budget.
        device: where it takes its memory.

    Raises:
        MemoryError: the largest piece of work needs more than is free. Nothing has been allocated.
    """
    budget = budget_in_bytes()
    need = need_of(budget)
    free = make_sure(need, device)
    if free is not None and need.most > free:
        budget = min(budget, free)
    if need.least > max(budget, NOT_ASKED):
        logger.warning(
            "%s needs %s, more than the memory budget of %s, and gets it",
            *(need.unit, size_text(need.least), size_text(budget)),
        )
    return budget


def make_sure(need: Need, device: torch.device) -> int | None:
    """The bytes that are free on a device, None where nobody knows them or so little is needed that nobody asks.

    Raises:
        MemoryError: less is free than what is needed at least.
    """
    if (heard := _heard.get()) is not None:
        heard.append(need)
    free = free_on(device) if need.most > NOT_ASKED else None
    if free is not None and need.least > free:
        raise MemoryError(
            f"{need.unit} needs {size_text(need.least)} of memory beside the inputs, and {size_text(free)} are "
            f"free on {device}. What takes less: {need.instead}"
        )
    return free


@contextmanager
def needs_of_calls() -> Iterator[list[Need]]:
    """A list that receives what the calls within it say that they need."""
    needs: list[Need] = []
    token = _heard.set(needs)
    try:
        yield needs
    finally:
        _heard.reset(token)


def out_of_memory_as_memory_error(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, with MemoryError in place of the other errors by which torch says that memory is out."""

    @functools.wraps(function)
    def careful(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            line = str(error).partition("\n")[0]
            if not any(words in line.lower() for words in OUT_OF_MEMORY):
                raise
            raise MemoryError(line) from error

    return careful


def free_on(device: torch.device) -> int | None:
    """Bytes that are free where tensors of a device lie; None: not known."""
    if device.type == "cuda":
        return free_on_gpu(device)
    return free_memory() if device.type == "cpu" else None


def free_memory() -> int | None:
    """Bytes that this process may still take: what the machine has, and its control groups and limits allow.

    None: not known.
    """
    known = [size for size in (_free_on_machine(), _free_addresses(), *_free_in_groups()) if size is not None]
    return min(known, default=None)


def _free_addresses() -> int | None:
    """What `ulimit -v` leaves this process to allocate; None where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    for line in _lines(Path("/proc/self/statm")):
        return max(0, limit - int(line.split()[0]) * resource.getpagesize() - ADDRESSES_LEFT)
    return None


def free_on_gpu(device: torch.device | None = None) -> int:
    """Bytes that are free on a CUDA device, or the current one, with what torch keeps there for its next tensors."""
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


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
