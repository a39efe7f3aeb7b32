"""ESS against position of several layers, a panel a layer, from arrays of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ess_kernels._text_table import short_tolerance

from .axes import line_with_band, plain_style
from .colours import CAP_COLOUR, ENTROPY_COLOUR, TOLERANCE_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curves:
    """What one panel shows. Arrays or CPU tensors. Counts of -1 and NaN (bad data) leave gaps, and so does a cap of 0.

    Attributes:
        title: over the panel.
        cap: `[P]`, `min(n, i, L - i)` of each position's sequence; or, where rows of a batch hold sequences of their
            own, `[..., P]` for as many rows, whose heads follow each other in the curves.
        entropy: `[heads, P]`.
        tolerance: `[M, heads, P]`, one a tolerance.
    """

    title: str
    cap: Any
    entropy: Any
    tolerance: Any


def plot_ess(
    panels: Sequence[Curves],
    tolerances: Sequence[float],
    *,
    positions: Sequence[int] | None = None,
    unit: str = "tokens",
    title: str | None = None,
) -> Figure:
    """ESS against position, a panel a layer: mean over heads as a line, their range as a band, the cap dashed.

    Args:
        panels: one a layer, at most two side by side.
        tolerances: the absolute tolerances of `Curves.tolerance`, for the legend.
        positions: `[P]`; None: 1, 2, ..., P.
        unit: what a position counts.
        title: over the whole figure.

    Returns:
        A matplotlib figure, tied to no window: `figure.savefig(path)`.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.1 * rows + 0.9), dpi=140, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, panel in zip(axes.flat, panels):
        _draw(place, panel, tolerances, positions)
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for place in axes[-1]:
        place.set_xlabel(f"position i ({unit})")
    for row in axes:
        row[0].set_ylabel("effective state-size")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def _draw(place: Any, panel: Curves, tolerances: Sequence[float], positions: Sequence[int] | None) -> None:
    cap = np.atleast_2d(panel.cap)
    cap = cap.reshape(-1, cap.shape[-1])
    where = np.arange(1, cap.shape[-1] + 1) if positions is None else np.asarray(positions)
    curves = [("entropy-ESS", ENTROPY_COLOUR, _gaps(panel.entropy, cap))]
    for number, (tolerance, counts) in enumerate(zip(tolerances, panel.tolerance)):
        colour = TOLERANCE_COLOURS[number % len(TOLERANCE_COLOURS)]
        curves.append((f"tolerance-ESS, {short_tolerance(tolerance)}", colour, _gaps(counts, cap)))
    for label, colour, values in curves:
        line_with_band(place, where, values, colour, label)
    for number, row in enumerate(np.unique(cap, axis=0)):
        label = "_" * number + "cap min(n, i, L-i)"  # a label with an underscore stays out of the legend
        place.plot(where, row, "--", color=CAP_COLOUR, linewidth=1.1, label=label)
    place.set_title(panel.title, fontsize="medium", loc="left")
    place.set_ylim(0, 1.08 * max(1, int(cap.max(initial=1))))
    place.margins(x=0.01)
    plain_style(place)


def _gaps(values: Any, cap: np.ndarray) -> np.ndarray:
    """float64 `[heads, P]` with NaN for bad data, and where the cap `[rows, P]` of the head's row is 0."""
    found = np.asarray(values).astype(np.float64)
    found[(found < 0) | (np.repeat(cap, len(found) // len(cap), axis=0) == 0)] = np.nan
    return found
