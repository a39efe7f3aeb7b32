"""Tables of plain text, for terminals: columns of equal width, a line under the head."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> list[str]:
    """The lines of a table, without a line break at their ends.

    Args:
        head: the columns' names.
        rows: as many cells each as there are columns.
        left: names of the columns whose cells begin at the left; all others end at the right, as numbers do.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    align = [str.ljust if name in left else str.rjust for name in head]
    lines = [
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths)).rstrip() for row in [head, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def tolerance_digits(tolerance: float) -> str:
    """A tolerance with two digits in its exponent: `1e-03` for 0.001, and 0.0025, which has more digits, as it is."""
    rounded = f"{tolerance:.0e}"
    return rounded if tolerance and float(rounded) == tolerance else f"{tolerance:g}"


def short_tolerance(tolerance: float) -> str:
    """A tolerance as people write it: `1e-3` for 0.001, and 0.0025 as it is."""
    return tolerance_digits(tolerance).replace("e-0", "e-").replace("e+0", "e+")
