"""Which compiled library is in use, as the settings are now: tested once before it is."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ... import environment, processes
from . import call
from .file import LIBRARY, NOT_BUILT
from .loading import NativeLibrary, untested_library
from .selftest import first_failure

logger = logging.getLogger("ess_kernels")


def open_library(path: Path, level: int = 0) -> NativeLibrary:
    """Open the library at `path`, and let it compute something whose answer is known, on one thread, at dispatch level
    `level` (0: the best one).

    Never raises for a library that is missing, broken or of another version: the result's `reason` says which.
    """
    found = untested_library(path)
    if found.handle is None:
        return found
    if found.level(level) is None:
        names = [name for name, number in environment.LEVELS.items() if number == level]
        return NativeLibrary(None, f"this machine has no {names[0]} ({environment.CPU_LEVEL})")
    if failure := first_failure(found.handle, level):
        return NativeLibrary(None, f"self-test failed: {failure}")
    return found


def allowed_threads() -> int:
    """How many threads kernels may use: `ESS_KERNELS_NUM_THREADS`, or as many as torch; one in a forked process."""
    return 1 if processes.forked() else environment.num_threads() or torch.get_num_threads()


def library() -> NativeLibrary:
    """The library in use, as the settings are now.

    A library that has worked at a level stays in use, whatever becomes of its file. One that has not worked is tried
    again when its file has changed. A library that exists but cannot be used gives one warning, because calls are then
    served by PyTorch.
    """
    return _chosen()[0]


@contextmanager
def as_set() -> Iterator[None]:
    """Within it the library in use is pinned, with the settings of its beginning: they are read once a public call, not
    at every kernel."""
    if call.is_pinned():
        yield
        return
    found, threads, level = _chosen()
    assert found.handle is not None, "a backend without its library takes no calls"
    with call.pinned(found.handle, threads, level):
        yield


def _chosen() -> tuple[NativeLibrary, int, int]:
    """The library, how many threads its kernels may use, and their dispatch level: every setting is read once."""
    try:
        if environment.native_disabled():
            return NativeLibrary(None, f"disabled by {environment.DISABLE_NATIVE}"), 1, 0
        level, threads = environment.cpu_level(), allowed_threads()
    except ValueError as error:
        return _not_used(str(error)), 1, 0
    return _library(environment.native_library(), level, threads), threads, level


def _library(chosen: Path | None, level: int, threads: int) -> NativeLibrary:
    path = chosen or LIBRARY
    found = _working.get((path, level)) or _opened(path, level, _state(path))
    if found.reason is None:
        _working[path, level] = found
        if threads > 1:
            found = _tried_with_threads(found, level)
    if found.reason is None or (chosen is None and found.reason == NOT_BUILT):
        return found
    if chosen is None:
        return _not_used(found.reason)
    reason = found.reason if chosen.exists() else "there is no such file"
    return _not_used(f"{environment.NATIVE_LIBRARY}={chosen}: {reason}")


_working: dict[tuple[Path, int], NativeLibrary] = {}


def _state(path: Path) -> tuple[int, int, int] | None:
    """Something that is another when the file has been written again; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.cache
def _opened(path: Path, level: int, state: tuple[int, int, int] | None) -> NativeLibrary:
    return open_library(path, level)


@functools.cache
def _tried_with_threads(found: NativeLibrary, level: int) -> NativeLibrary:
    """The library, if it also works on more than one thread: not tried before some call is to use them."""
    failure = first_failure(found.handle, level, threaded=True) if found.handle is not None else None
    return found if failure is None else NativeLibrary(None, f"self-test failed: {failure}")


@functools.cache
def _not_used(reason: str) -> NativeLibrary:
    logger.warning("the compiled CPU library is not used: %s", reason)
    return NativeLibrary(None, reason)
