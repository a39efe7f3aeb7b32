"""The mean ESS of every head of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..names import short_names
from ..result import Analysis
from ..values import choose_layers, choose_metric, head_means, metric_label
from .axes import axes_or_new, literal, share_label
from .colours import COLOUR_MAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_heads(
    analysis: Analysis,
    ax: Axes | None = None,
    *,
    metric: str | float | None = None,
    layers: Sequence[str] | str | None = None,
    of_cap: bool = False,
) -> Axes:
    """A column a layer, a row a head, the colour the mean over valid positions and rows of the batch.

    Layers with fewer heads leave cells blank; so do bad data.

    Args:
        analysis: what `analyze` returned.
        ax: where to draw; None makes a figure.
        metric: `"entropy"` or a tolerance; None: the first one measured.
        layers: names; None: all of them.
        of_cap: ESS divided by the cap, 0 to 1: heads of states of different sizes compare.

    Raises:
        ValueError: a name or a metric that there is not.
    """
    chosen = choose_layers(analysis, layers)
    metric = choose_metric(analysis, metric)
    columns = [head_means(layer, metric, of_cap=of_cap) for layer in chosen]
    matrix = np.full((max(map(len, columns)), len(columns)), np.nan)
    for number, column in enumerate(columns):
        matrix[: len(column), number] = column
    ax = axes_or_new(ax, min(14.0, max(4.2, 2.2 + 0.32 * len(chosen))), min(9.0, max(2.8, 1.4 + 0.3 * len(matrix))))
    image = ax.imshow(
        np.ma.masked_invalid(matrix),
        aspect="auto",
        interpolation="nearest",
        cmap=COLOUR_MAP,
        vmin=0,
        vmax=1 if of_cap else None,
    )
    ax.figure.colorbar(image, ax=ax, label=share_label(of_cap, f"mean {metric_label(metric)}"), pad=0.02)
    every = max(1, -(-len(chosen) // 40))
    names = [literal(name) for name in short_names([layer.name for layer in chosen])]
    long = max(map(len, names)) > 4
    ax.set_xticks(range(0, len(chosen), every))
    ax.set_xticklabels(names[::every], rotation=45 if long else 0, ha="right" if long else "center", fontsize="small")
    ax.set_yticks(range(0, len(matrix), max(1, -(-len(matrix) // 16))))
    ax.set_xlabel("layer")
    ax.set_ylabel("head")
    return ax
