"""How kernels of the compiled library are called: threads, dispatch level, workspace, and errors as exceptions."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ... import environment, processes
from .loading import allowed_threads, library

# workspace up to this size is kept for the thread's next call: fresh pages cost more than the arithmetic done on them
KEPT_WORKSPACE = 2**28
LINE = 64

# ESS_ERR_WORKSPACE, ESS_ERR_MEMORY
_WORKSPACE, _MEMORY = 5, 7


class Run(ctypes.Structure):
    """`ess_run` of `csrc/include/ess_native.h`."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
    )


class _Workspace(threading.local):
    memory: Tensor | None = None


_kept = _Workspace()
# library, threads and level in place of the ones in use, for this thread
_pinned: ContextVar[tuple[ctypes.CDLL, int, int] | None] = ContextVar("_pinned", default=None)


@contextmanager
def pinned(handle: ctypes.CDLL, threads: int, level: int) -> Iterator[None]:
    """Within it, calls of this thread go to that library, with so many threads, at that dispatch level."""
    token = _pinned.set((handle, threads, level))
    try:
        yield
    finally:
        _pinned.reset(token)


def threads() -> int:
    """How many threads kernels may use now."""
    pin = _pinned.get()
    return pin[1] if pin and not processes.forked() else allowed_threads()


@contextmanager
def as_set() -> Iterator[None]:
    """Within it, settings are as they were at its beginning: they are read once a public call, not at every kernel."""
    if _pinned.get() is not None:
        yield
        return
    handle = library().handle
    assert handle is not None, "a backend without its library takes no calls"
    with pinned(handle, threads(), environment.cpu_level()):
        yield


def current() -> tuple[ctypes.CDLL, Run]:
    """The library in use, and how a kernel is to run, without a workspace yet."""
    pin = _pinned.get()
    handle = pin[0] if pin else library().handle
    assert handle is not None, "a backend without its library takes no calls"
    return handle, Run(threads(), pin[2] if pin else environment.cpu_level(), None, 0)


def workspace(name: str, *arguments: Any) -> int:
    """How many bytes of workspace `ess_NAME` would need.

    Raises:
        ValueError: the library refuses the arguments.
    """
    handle, context = current()
    size = int(getattr(handle, f"ess_{name}_workspace")(ctypes.byref(context), *arguments))
    if size < 0:
        _check(handle, name, -size)
    return size


def run(name: str, *arguments: Any) -> None:
    """Calls `ess_NAME(run, *arguments)`, with the workspace that `ess_NAME_workspace(run, *arguments)` asks for.

    Raises:
        ValueError: the library refuses the arguments; the message says which function and why.
        MemoryError: there is not enough memory.
    """
    handle, context = current()
    function = getattr(handle, f"ess_{name}")
    # what the thread keeps is mostly enough: a function that needs more says so before it does anything
    if _kept.memory is not None:
        _lend(context, _kept.memory)
    code = function(ctypes.byref(context), *arguments)
    if code == _WORKSPACE:
        memory = _workspace(workspace(name, *arguments))
        _lend(context, memory)
        code = function(ctypes.byref(context), *arguments)
    if code:
        _check(handle, name, code)


def declare(handle: ctypes.CDLL, name: str, *arguments: Any, workspace: bool = True) -> None:
    """The signatures of `ess_NAME(run, *arguments)` and, if there is one, of the function that says how much workspace
    it needs."""
    function = getattr(handle, f"ess_{name}")
    function.restype, function.argtypes = ctypes.c_int32, [ctypes.c_void_p, *arguments]
    if workspace:
        function = getattr(handle, f"ess_{name}_workspace")
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p, *arguments]


def aligned(*shape: int) -> Tensor:
    """An uninitialised float64 tensor at an address that kernels take for an array of theirs."""
    count = math.prod(shape)
    memory = torch.empty(count + LINE // 8, dtype=torch.float64, device="cpu")
    start = (-memory.data_ptr() % LINE) // 8
    return memory[start : start + count].view(shape)


def _lend(context: Run, memory: Tensor) -> None:
    first = memory.data_ptr()
    context.workspace = first + -first % LINE
    context.workspace_bytes = memory.numel() - LINE


def _workspace(size: int) -> Tensor:
    memory = torch.empty(size + LINE, dtype=torch.uint8, device="cpu")
    if size <= KEPT_WORKSPACE:
        _kept.memory = memory
    return memory


def _check(handle: ctypes.CDLL, name: str, code: int) -> None:
    if code == 0:
        return
    message = f"ess_{name}: {handle.ess_error_string(code).decode()}"
    raise MemoryError(message) if code == _MEMORY else ValueError(message)
