"""What commands print: flushed at once, and with control characters made visible."""

from __future__ import annotations

import os
import sys

from ess_kernels._printable import printable
from ess_kernels.commands.errors import UserError


def say(text: object) -> None:
    """`print`, flushed at once, so that a closed pipe or a full disk is noticed here."""
    lines = str(text).split("\n")
    try:
        print("\n".join(map(printable, lines)), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence()
        raise UserError(f"standard output: {error.strerror or error}") from error


def note(text: object) -> None:
    """One line on stderr that is no error."""
    print(f"ess-kernels: {printable(text)}", file=sys.stderr)


def silence() -> None:
    """Sends what is still to be printed nowhere: the reader of a pipe has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
