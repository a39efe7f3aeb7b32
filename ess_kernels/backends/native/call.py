"""How kernels of the pinned library are called: threads, dispatch level, workspace, and errors as exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor

from ... import processes
from . import abi, memory
from .abi import Job, Run


class Pin(NamedTuple):
    """The library that calls go to, how many threads its kernels may use, and their dispatch level."""

    handle: ctypes.CDLL
    threads: int
    level: int


# every thread of Python has its own
_pinned: ContextVar[Pin | None] = ContextVar("_pinned", default=None)


@contextmanager
def pinned(handle: ctypes.CDLL, threads: int, level: int) -> Iterator[None]:
    """Within it, calls of this thread go to that library, with so many threads, at that dispatch level."""
    token = _pinned.set(Pin(handle, threads, level))
    try:
        yield
    finally:
        _pinned.reset(token)


def is_pinned() -> bool:
    """Whether this thread's calls have a library to go to."""
    return _pinned.get() is not None


def current() -> tuple[ctypes.CDLL, Run]:
    """The pinned library, and how a kernel is to run, without a workspace yet; one thread in a forked process.

    Raises:
        RuntimeError: no library is pinned.
    """
    pin = _pinned.get()
    if pin is None:
        raise RuntimeError("no compiled library is pinned: kernels are called within `pinned` or `choice.as_set`")
    return pin.handle, Run(1 if processes.forked() else pin.threads, pin.level, None, 0)


def workspace(job: Job) -> int:
    """How many bytes of workspace a job would need.

    Raises:
        ValueError: the library refuses the job.
    """
    handle, how = current()
    return _size(handle, job.kernel, getattr(handle, f"ess_{job.kernel}_workspace")(how, job))


def run(job: Job) -> None:
    """Does a job, with the workspace that it asks for.

    Raises:
        ValueError: the library refuses the job; the message says which kernel and why.
        MemoryError: there is not enough memory.
    """
    handle, how = current()
    kernel = getattr(handle, f"ess_{job.kernel}")
    # The workspace that the thread keeps is mostly large enough. A kernel that needs more returns WORKSPACE before it
    # does anything.
    _lend(how, memory.kept.workspace)
    code = kernel(how, job)
    if code == abi.WORKSPACE:
        room = memory.workspace(workspace(job))
        _lend(how, room)
        code = kernel(how, job)
    if code:
        raise _error(handle, job.kernel, code)


def size(name: str, *arguments: int) -> int:
    """What `ess_NAME(*arguments)` says how many numbers an array has.

    Raises:
        ValueError: the library refuses the arguments.
    """
    handle, _ = current()
    return _size(handle, name, getattr(handle, f"ess_{name}")(*arguments))


def _lend(how: Run, room: Tensor) -> None:
    how.workspace, how.workspace_bytes = room.data_ptr(), room.numel()


def _size(handle: ctypes.CDLL, name: str, found: int) -> int:
    if found < 0:
        raise _error(handle, name, -found)
    return found


def _error(handle: ctypes.CDLL, name: str, code: int) -> Exception:
    message = f"ess_{name}: {handle.ess_error_string(code).decode()}"
    return MemoryError(message) if code == abi.MEMORY else ValueError(message)
