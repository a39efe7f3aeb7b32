"""Text from strangers, as a terminal may see it. Needs nothing but Python."""

from __future__ import annotations


def printable(text: object) -> str:
    r"""The text on one line, with everything that cannot be printed spelled out: `\x1b`, `\n`, `\u202e`.

    Names of files, texts and modules may hold escape sequences, which a terminal would obey: they move the cursor,
    write over other lines, and worse.
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))


def encodable(text: str) -> str:
    """The text with half surrogate pairs, which are no text in UTF-8, spelled out; everything else stays as it is."""
    return text.encode("utf-8", "backslashreplace").decode()
