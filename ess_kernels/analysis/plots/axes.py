"""What all pictures do with the axes that they draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITION_LABEL = "position i (H_i = T[i:, :i])"
ESS_LABEL = "effective state-size"
CAP_LABEL = "cap min(TSS, i, L-i)"


def axes_or_new(ax: Axes | None, width: float = 7.2, height: float = 4.0) -> Axes:
    """The axes given, or those of a new figure of this size in inches, which is tied to no window."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=140, layout="constrained").subplots()


def plain_style(ax: Axes) -> None:
    """A light grid, and no frame at the top and at the right."""
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def literal(text: str) -> str:
    """The text as matplotlib shows it unchanged: no formula between dollar signs, no label that an underscore hides."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def share_label(of_cap: bool, label: str = ESS_LABEL) -> str:
    return f"{label},\nshare of cap" if of_cap else label


def line_with_band(ax: Axes, where: np.ndarray, heads: np.ndarray, colour: Any, label: str, style: Any = "-") -> None:
    """The mean over heads as a line, their range as a band; a gap where no head has a number.

    Args:
        ax: where to draw.
        where: `[P]`, positions in rising order.
        heads: float64 `[H, P]`, NaN for bad data.
        colour, label, style: of the line.
    """
    from ..values import highest, lowest, mean

    middle, low, high = mean(heads, 0), lowest(heads, 0), highest(heads, 0)
    if np.nanmax(high - low, initial=0) > 0:
        ax.fill_between(where, low, high, color=colour, alpha=0.14, linewidth=0)
    # one number between two gaps is no line: it shows as a dot
    alone = np.isfinite(middle) & ~np.isfinite(np.r_[np.nan, middle[:-1]]) & ~np.isfinite(np.r_[middle[1:], np.nan])
    (line,) = ax.plot(where, middle, color=colour, linewidth=1.4, linestyle=style, label=literal(label))
    if alone.any():
        line.set_marker(".")
        line.set_markevery(list(np.flatnonzero(alone)))
