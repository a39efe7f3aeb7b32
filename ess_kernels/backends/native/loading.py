"""The compiled CPU library (`csrc/`), opened through ctypes at first use.

The library is optional: an installation without a C++ compiler simply has none. Nothing here raises because of it; the
reason why it is not in use is kept as one line of text, for `ess_kernels.show_config()` and for the error that a call
with `backend="native"` gives.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ... import environment, processes
from .file import LIBRARY, NOT_BUILT, reason_against

logger = logging.getLogger("ess_kernels")

ABI_VERSION = 3  # ESS_ABI_VERSION of csrc/include/ess_native.h; a library of any other version is refused


@dataclass(frozen=True)
class NativeLibrary:
    """What came of opening the library: exactly one of `handle` and `reason` is None."""

    handle: ctypes.CDLL | None
    reason: str | None
    build_info: str = ""

    @property
    def threads(self) -> int:
        """How many threads a parallel kernel would use now; 0 without a library."""
        return int(self.handle.ess_num_threads()) if self.handle is not None else 0

    def level(self, number: int) -> str | None:
        """The name of dispatch level `number` (0: of the best one); None if the machine has not got it."""
        name = self.handle.ess_level_name(number) if self.handle is not None else None
        return name.decode() if name else None


def open_library(path: Path, level: int = 0) -> NativeLibrary:
    """Open the library at `path`, check its ABI number, and let it compute something whose answer is known, on one
    thread, at dispatch level `level` (0: the best one).

    Never raises for a library that is missing, broken or of another version: the result's `reason` says which.
    """
    if reason := reason_against(path):
        return NativeLibrary(None, reason)
    # torch has been imported by then, and must be: both libraries then share the OpenMP runtime that torch ships, and
    # torch.set_num_threads governs both. The other way round, the system's OpenMP would be loaded in torch's place.
    try:
        handle = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        return NativeLibrary(None, f"cannot be loaded: {error}")
    try:
        handle.ess_abi_version.restype = ctypes.c_int32
        handle.ess_abi_version.argtypes = []
        version = handle.ess_abi_version()
        if version != ABI_VERSION:  # before anything else is called: another version may mean other signatures
            return NativeLibrary(None, f"ABI {version}, expected {ABI_VERSION}: install the package again")
        _declare(handle)
    except AttributeError as error:
        return NativeLibrary(None, f"a symbol is missing: {error}")
    from .selftest import first_failure  # not above: the checks call kernels by way of `call`, which needs this module

    if not handle.ess_level_name(level):
        names = [name for name, number in environment.LEVELS.items() if number == level]
        return NativeLibrary(None, f"this machine has no {names[0]} ({environment.CPU_LEVEL})")
    if failure := first_failure(handle, level):
        return NativeLibrary(None, f"self-test failed: {failure}")
    return NativeLibrary(handle, None, handle.ess_build_info().decode("utf-8", "replace"))


def allowed_threads() -> int:
    """How many threads kernels may use: `ESS_KERNELS_NUM_THREADS`, or as many as torch; one in a forked process."""
    return 1 if processes.forked() else environment.num_threads() or torch.get_num_threads()


def library() -> NativeLibrary:
    """The library in use, as the settings are now.

    What has worked at a level stays in use, whatever becomes of its file; what has not is tried again when its file has
    changed. A library that is there and still cannot be used gives one warning: whoever is served by PyTorch instead is
    to know.
    """
    try:
        if environment.native_disabled():
            return NativeLibrary(None, f"disabled by {environment.DISABLE_NATIVE}")
        level, threads = environment.cpu_level(), allowed_threads()
    except ValueError as error:
        return _not_used(str(error))
    chosen = environment.native_library()
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
    from .selftest import first_failure

    failure = first_failure(found.handle, level, threaded=True) if found.handle is not None else None
    return found if failure is None else NativeLibrary(None, f"self-test failed: {failure}")


@functools.cache
def _not_used(reason: str) -> NativeLibrary:
    logger.warning("the compiled CPU library is not used: %s", reason)
    return NativeLibrary(None, reason)


def _declare(handle: ctypes.CDLL) -> None:
    """The signatures of `csrc/include/ess_native.h`. ctypes would otherwise pass every number as a C int."""
    from . import attention, certainty, lanes, matrix, recurrence, spectra

    for family in (recurrence, lanes, spectra, matrix, attention, certainty):
        family.declare(handle)
    doubles = ctypes.POINTER(ctypes.c_double)
    handle.ess_build_info.restype = ctypes.c_char_p
    handle.ess_build_info.argtypes = []
    handle.ess_level_name.restype = ctypes.c_char_p
    handle.ess_level_name.argtypes = [ctypes.c_int32]
    handle.ess_num_threads.restype = ctypes.c_int32
    handle.ess_num_threads.argtypes = []
    handle.ess_error_string.restype = ctypes.c_char_p
    handle.ess_error_string.argtypes = [ctypes.c_int32]
    handle.ess_positive_pivots.restype = ctypes.c_int32
    handle.ess_positive_pivots.argtypes = [
        ctypes.c_int64,
        doubles,
        ctypes.c_int64,
        doubles,
        ctypes.POINTER(ctypes.c_int64),
    ]
