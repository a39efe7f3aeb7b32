"""The library's file, before it is opened: whether it is there and whole, and if not, in what words to say so."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import BinaryIO

# setup.py gives the file this fixed name: the C ABI ties it to no Python version, so no Python tag belongs in it.
LIBRARY = Path(__file__).parent.with_name("_native.dll" if os.name == "nt" else "_native.so")

NOT_BUILT = "not built (installation compiles it where there is a C++ compiler)"


def reason_against(path: Path) -> str | None:
    """Why the file at `path` cannot be opened as a library, or None: then the system may try.

    A file that an interrupted copy has cut off must not reach the system: Linux maps what the file's header promises
    and ends the process by a signal (SIGBUS) at the first touch of what is not there.
    """
    try:
        with path.open("rb") as file:
            size, promised = os.fstat(file.fileno()).st_size, _promised_size(file)
    except FileNotFoundError:
        return absence(path)
    except OSError as error:
        return absence(path) if _archive(path) else f"cannot be read: {error.strerror or error}"
    if size < promised:
        return f"cut off, {size} of {promised} bytes are there: install the package again"
    return None


def absence(path: Path) -> str:
    """Why the package to which `path` belongs has no library there."""
    if archive := _archive(path):
        return f"not opened, for the package lies in an archive: {archive}"
    if other := _hidden_library(path):
        return (
            f"not built in {path.parents[1]}, which Python found first: it hides the package installed in "
            f"{other.parents[1]}, which has one (start Python in another folder)"
        )
    return NOT_BUILT


def _hidden_library(path: Path) -> Path | None:
    """The library of another copy of the package that stands behind this one on Python's path.

    A checkout that was installed without `-e` is such a case: in its root folder Python finds the checkout first, where
    nothing has been compiled.
    """
    places = (Path(folder, *path.parts[-3:]).absolute() for folder in sys.path)
    return next((place for place in places if place.is_file()), None)


def _archive(path: Path) -> Path | None:
    return next((parent for parent in path.parents if parent.is_file()), None)


def _promised_size(file: BinaryIO) -> int:
    """How many bytes a 64-bit ELF file, as on Linux, says that it has; 0 for any other, which the system checks itself.

    Its header says where the tables of sections and of segments lie; the latter says what will be mapped.
    """
    header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return 0
    order = "<" if header[5] == 1 else ">"
    segments, sections = struct.unpack_from(f"{order}2Q", header, 32)
    segment_size, segment_count, section_size, section_count = struct.unpack_from(f"{order}4H", header, 54)
    promised = max(segments + segment_size * segment_count, sections + section_size * section_count)
    file.seek(segments)
    table = file.read(segment_size * segment_count)
    for start in range(0, len(table) - segment_size + 1, max(segment_size, 56)):
        offset, _, _, bytes_in_file = struct.unpack_from(f"{order}4Q", table, start + 8)
        promised = max(promised, offset + bytes_in_file)
    return promised
