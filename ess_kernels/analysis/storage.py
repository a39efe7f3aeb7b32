"""Saving and loading results: the kind of file follows from its suffix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ess_kernels._whole_files import write_whole
from ess_kernels.analysis import parquet, plain

if TYPE_CHECKING:
    from ess_kernels.analysis.result import Analysis


def save(analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """See `Analysis.save`."""
    write = _by_suffix(path, {".json": _write_json, ".parquet": parquet.write, ".html": _write_html})
    write_whole(path, lambda temporary: write(analysis, temporary))


def load(path: str | os.PathLike[str]) -> Analysis:
    """See `Analysis.load`."""
    return _by_suffix(path, {".json": _read_json, ".parquet": parquet.read})(Path(path))


def _by_suffix(path: str | os.PathLike[str], kinds: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    suffix = Path(path).suffix
    if suffix.lower() not in kinds:
        raise ValueError(
            f"path: expected a file that ends in {', '.join(kinds)}, got {suffix!r} of {os.fspath(path)!r}"
        )
    return kinds[suffix.lower()]


def _write_json(analysis: Analysis, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        # as one string: json.dump, which writes bit by bit, takes several times as long
        file.write(json.dumps(plain.to_plain(analysis), allow_nan=False, separators=(",", ":")) + "\n")


def _write_html(analysis: Analysis, path: Path) -> None:
    from ess_kernels.analysis.html import write_report

    write_report(analysis, path)


def _read_json(path: Path) -> Analysis:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a .json file of Analysis.save, got another file: {error}") from error
    return plain.from_plain(found, str(path))
