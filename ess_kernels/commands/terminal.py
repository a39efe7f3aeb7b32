"""What commands print: flushed at once, and with control characters made visible."""

from __future__ import annotations

import os
import sys
import unicodedata

from ess_kernels.commands.errors import UserError

# control characters, invisible ones that reorder a line, other line breaks, and halves of characters
_HIDDEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


def say(text: object) -> None:
    """`print`, flushed at once, so that a closed pipe or a full disk is noticed here."""
    lines = str(text).split("\n")
    try:
        print("\n".join(map(shown, lines)), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        silence()
        raise UserError(f"standard output: {error.strerror or error}") from error


def note(text: object) -> None:
    """One line on stderr that is no error."""
    print(f"ess-kernels: {shown(text)}", file=sys.stderr)


def shown(text: object) -> str:
    """The text on one line, as a terminal may see it.

    Names of files, texts and modules may hold escape sequences, which a terminal would obey: they move the cursor,
    write over other lines, and worse. Control characters and others that cannot be seen become `\\x1b`, `\\n`, `\\u202e`.
    """
    return "".join(_visible(letter) for letter in str(text))


def _visible(letter: str) -> str:
    if letter.isprintable() or unicodedata.category(letter) not in _HIDDEN:
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def silence() -> None:
    """Sends what is still to be printed nowhere: the reader of a pipe has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
