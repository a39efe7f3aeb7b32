"""Opens a compiled library (`csrc/`) through ctypes, and sees whether it is the one that this package was written for.

The library is optional: an installation without a C++ compiler simply has none. Nothing here raises because of it; the
reason why it is not in use is kept as one line of text, for `ess_kernels.show_config()` and for the error that a call
with `backend="native"` gives.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from . import abi
from .file import reason_against


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


def untested_library(path: Path) -> NativeLibrary:
    """The library at `path`, its version and the sizes of its structures checked; nothing has been computed yet.

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
        version = abi.version(handle)
        if version != abi.VERSION:
            return NativeLibrary(None, f"ABI {version}, expected {abi.VERSION}: install the package again")
        abi.declare(handle)
    except AttributeError as error:
        return NativeLibrary(None, f"a symbol is missing: {error}")
    if wrong := abi.wrong_size(handle):
        return NativeLibrary(None, f"{wrong}: install the package again")
    return NativeLibrary(handle, None, handle.ess_build_info().decode("utf-8", "replace"))
