"""Names of modules, as short as they can be where there is little room."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the words that all share at the front or end: of `layers.3.mixer`, `layers.4.mixer` 3 and 4."""
    words = [name.split(".") for name in names]
    if len(names) < 2:
        return list(names)
    shortest = min(map(len, words))
    front = next((n for n in range(shortest) if len({parts[n] for parts in words}) > 1), shortest - 1)
    back = next((n for n in range(shortest - front) if len({parts[-1 - n] for parts in words}) > 1), 0)
    return [".".join(parts[front : len(parts) - back]) for parts in words]
