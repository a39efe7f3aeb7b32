"""What commands print on standard output."""

from __future__ import annotations

import os
import sys

from ess_kernels.commands.errors import UserError


def say(text: object) -> None:
    """`print`, flushed at once, so that a closed pipe or a full disk is noticed here."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence()
        raise UserError(f"standard output: {error.strerror or error}") from error


def silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
