"""The shards of a run: which files, in which order, and what tells one content from another."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunRefused

PARQUET, SAFETENSORS = ".parquet", ".safetensors"
PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Shard:
    """One input file.

    Attributes:
        number: its place in the order of names, which is the number of its part.
        name: its path below the folder that all inputs share, with `/`: what a run knows it by, on any machine.
        path: where it is here.
        size: bytes; -1 where it cannot be read.
        modified: time of the last change in nanoseconds.
        sha256: of its content; empty where it cannot be read.
    """

    number: int
    name: str
    path: Path
    size: int
    modified: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.size, "modified": self.modified, "sha256": self.sha256}


def find_files(inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files that patterns (`*`, `?`, `[...]`, `**` for any folders) and names stand for, sorted, each once.

    Raises:
        RunRefused: there is none, or they are not all Parquet or all safetensors.
        TypeError: no names.
    """
    names = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    found: set[Path] = set()
    for name in names:
        if not isinstance(name, (str, os.PathLike)):
            raise TypeError(f"inputs: expected names of files or patterns, got {name!r}")
        text = os.fspath(name)
        is_pattern = not os.path.exists(text) and PATTERN & set(text)
        files = glob.glob(text, recursive=True) if is_pattern else [text]
        paths = [Path(os.path.abspath(file)) for file in files if os.path.isfile(file)]
        if not paths and os.path.isdir(text):
            raise RunRefused(f"inputs: expected files, got the folder {text}; a pattern with * names those in it")
        if not paths:
            raise RunRefused(f"inputs: there is no file {text}")
        found.update(paths)
    if not found:
        raise RunRefused("inputs: expected at least one file, got none")
    for path in found:
        if path.suffix not in (PARQUET, SAFETENSORS):
            raise RunRefused(f"inputs: expected files that end in {PARQUET} or {SAFETENSORS}, got {path}")
    if len({path.suffix for path in found}) > 1:
        raise RunRefused(f"inputs: expected {PARQUET} files alone or {SAFETENSORS} files alone, got both")
    return sorted(found)


def shards_of(paths: list[Path], known: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """The shards, with checksums.

    Args:
        paths: sorted, absolute.
        known: what an earlier run has noted, by name. Its checksum is taken for a file of the same size and time.
    """
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return [_shard(number, path.relative_to(folder).as_posix(), path, known) for number, path in enumerate(paths)]


def _shard(number: int, name: str, path: Path, known: Mapping[str, Mapping[str, Any]]) -> Shard:
    try:
        about = path.stat()
        before = known.get(name, {})
        if (before.get("bytes"), before.get("modified")) == (about.st_size, about.st_mtime_ns):
            sha256 = str(before.get("sha256"))
        else:
            sha256 = file_sha256(path)
        return Shard(number, name, path, about.st_size, about.st_mtime_ns, sha256)
    except OSError:  # it is a shard all the same: it fails when its turn comes, and says why
        return Shard(number, name, path, -1, 0, "")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
