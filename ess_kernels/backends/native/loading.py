"""The compiled CPU library (`csrc/`), opened through ctypes at first use.

The library is optional: an installation without a C++ compiler simply has none. Nothing here raises because of it; the
reason why it is not in use is kept as one line of text, for `ess_kernels.show_config()` and for the error that a call
with `backend="native"` gives.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from ... import environment

ABI_VERSION = 2  # ESS_ABI_VERSION of csrc/ess_native.h; a library of any other version is refused

# setup.py gives the file this fixed name: the C ABI ties it to no Python version, so no Python tag belongs in it.
LIBRARY = Path(__file__).parent.with_name("_native.dll" if os.name == "nt" else "_native.so")


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


def open_library(path: Path) -> NativeLibrary:
    """Open the library at `path`, check its ABI number, and let it compute something whose answer is known.

    Never raises for a library that is missing, broken or of another version: the result's `reason` says which.
    """
    # torch has been imported by then, and must be: both libraries then share the OpenMP runtime that torch ships, and
    # torch.set_num_threads governs both. The other way round, the system's OpenMP would be loaded in torch's place.
    if not path.exists():
        return NativeLibrary(None, "not built (installation compiles it where there is a C++ compiler)")
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
    if failure := _self_test(handle):
        return NativeLibrary(None, f"self-test failed: {failure}")
    return NativeLibrary(handle, None, handle.ess_build_info().decode("utf-8", "replace"))


def library() -> NativeLibrary:
    """The installed library, opened once a process; `ESS_KERNELS_DISABLE_NATIVE` is looked at on every call."""
    try:
        if environment.native_disabled():
            return NativeLibrary(None, f"disabled by {environment.DISABLE_NATIVE}")
    except ValueError as error:
        return NativeLibrary(None, str(error))
    return _open_installed()


@functools.cache
def _open_installed() -> NativeLibrary:
    return open_library(LIBRARY)


def _declare(handle: ctypes.CDLL) -> None:
    """The signatures of `csrc/ess_native.h`. ctypes would otherwise pass every number as a C int."""
    from . import recurrence

    recurrence.declare(handle)
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


def positive_pivots(handle: ctypes.CDLL, rows: list[list[float]]) -> int:
    """The number of positive eigenvalues of a small symmetric matrix, of which only the lower triangle is read.

    Raises `ValueError` with the library's own words when it refuses the matrix.
    """
    n = len(rows)
    a = (ctypes.c_double * (n * n))(*(x for row in rows for x in row))
    work = (ctypes.c_double * (n * n))()
    count = ctypes.c_int64(-1)
    code = handle.ess_positive_pivots(n, a, n, work, ctypes.byref(count))
    if code != 0:
        raise ValueError(handle.ess_error_string(code).decode())
    return count.value


def _self_test(handle: ctypes.CDLL) -> str | None:
    """What is wrong with the library's answers, or None.

    The matrix is the one on which this package rests, `[[-tau I, H], [H^T, -tau I]]`, with H = diag(3, 1/2, 2): as many
    of its eigenvalues are positive as H has singular values above tau. What lies above the diagonal must not be read.
    """
    singular, unread = (3.0, 0.5, 2.0), float("nan")
    for tau, expected in ((1.0, 2), (0.25, 3), (4.0, 0)):
        rows = [[-tau if j == i else unread if j > i else 0.0 for j in range(6)] for i in range(6)]
        for i, s in enumerate(singular):
            rows[3 + i][i] = s
        try:
            found = positive_pivots(handle, rows)
        except ValueError as error:
            return f"inertia at tau {tau:g}: {error}"
        if found != expected:
            return f"inertia at tau {tau:g} is {found}, expected {expected}"
    try:
        positive_pivots(handle, [[0.0]])
    except ValueError:
        return None
    return "a zero pivot was accepted"
