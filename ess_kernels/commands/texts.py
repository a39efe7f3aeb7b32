"""Reads the text that a command is to run on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ess_kernels.commands.errors import UserError


def given_text(text: str | None, file: Path | None, most: int) -> tuple[str, bytes]:
    """What `--text` or `--text-file` says, and its name for errors. At most `most` bytes are read from a file.

    Raises:
        UserError: the file cannot be read.
    """
    if text is not None:
        return "--text", os.fsencode(text)
    assert file is not None
    return f"--text-file {file}", read_bytes("--text-file", file, most)


def read_bytes(option: str, file: Path, most: int) -> bytes:
    """The first `most` bytes of a file, or of standard input if its name is `-`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if str(file) == "-":
            return sys.stdin.buffer.read(most)
        with file.open("rb") as opened:
            return opened.read(most)
    except OSError as error:
        raise UserError(f"{option} {file}: {error.strerror or error}") from error
