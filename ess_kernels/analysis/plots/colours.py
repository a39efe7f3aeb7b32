"""The colours of all pictures, told apart with every common colour vision."""

from __future__ import annotations

from collections.abc import Iterable

from ..values import ENTROPY

# Okabe and Ito's colours, in an order in which they are also told apart in grey.
ENTROPY_COLOUR = "#0072B2"
TOLERANCE_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CAP_COLOUR = "#222222"
MARK_COLOUR = "#777777"
GAP_COLOUR = "#dddddd"
COLOUR_MAP = "viridis"

_KINDS = (ENTROPY_COLOUR, *TOLERANCE_COLOURS, "#7F7F7F", "#8C564B", "#F0E442")


def metric_colours(metrics: Iterable[str | float]) -> dict[str | float, str]:
    """A colour for entropy and one for each tolerance, from the largest tolerance to the smallest."""
    colours: dict[str | float, str] = {}
    tolerances = 0
    for metric in metrics:
        if metric == ENTROPY:
            colours[metric] = ENTROPY_COLOUR
        else:
            colours[metric] = TOLERANCE_COLOURS[tolerances % len(TOLERANCE_COLOURS)]
            tolerances += 1
    return colours


def kind_colours(kinds: Iterable[str]) -> dict[str, str]:
    """A colour for each kind, in the order in which kinds come first."""
    return {kind: _KINDS[number % len(_KINDS)] for number, kind in enumerate(dict.fromkeys(kinds))}
