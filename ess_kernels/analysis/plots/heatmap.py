"""ESS over layers and positions: which layer remembers much, and where in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..names import short_names
from ..result import Analysis, LayerResult
from ..values import (
    caps_of,
    check_sample,
    choose_layers,
    choose_metric,
    mean,
    metric_label,
    sorted_positions,
    values_of,
)
from .axes import POSITION_LABEL, axes_or_new, literal, share_label
from .colours import COLOUR_MAP, GAP_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_heatmap(
    analysis: Analysis,
    ax: Axes | None = None,
    *,
    metric: str | float | None = None,
    sample: int = 0,
    layers: Sequence[str] | str | None = None,
    of_cap: bool = False,
) -> Axes:
    """A row a layer, a column a position, the colour the mean ESS over heads.

    Grey is padding, and where every head has bad data; a head with bad data is left out of the mean.

    Dashed marks bound where a layer's cap min(TSS, i, L-i) is at its largest: to the left and right of them the cap
    falls with the window, and so must ESS.

    Args:
        analysis: what `analyze` returned.
        ax: where to draw; None makes a figure.
        metric: `"entropy"` or a tolerance; None: the first one measured.
        sample: which row of the batch.
        layers: names; None: all of them.
        of_cap: colour by ESS divided by the cap, 0 to 1. No marks are needed then, and none are drawn.

    Raises:
        ValueError: a name, a metric or a sample that there is not.
    """
    chosen = choose_layers(analysis, layers)
    metric = choose_metric(analysis, metric)
    check_sample(chosen, sample)
    ax = axes_or_new(ax, 8.0, min(9.0, 1.6 + 0.28 * max(4, len(chosen))))
    columns = np.unique(np.concatenate([layer.positions.numpy() for layer in chosen]))
    grid = np.full((len(chosen), len(columns)), np.nan)
    for row, layer in enumerate(chosen):
        where, order = sorted_positions(layer)
        grid[row, np.searchsorted(columns, where)] = mean(values_of(layer, metric, of_cap=of_cap)[sample], 0)[order]
    ax.set_facecolor(GAP_COLOUR)
    mesh = ax.pcolormesh(
        _edges(columns),
        np.arange(len(chosen) + 1) - 0.5,
        np.ma.masked_invalid(grid),
        cmap=COLOUR_MAP,
        vmin=0,
        vmax=1 if of_cap else None,
        rasterized=True,  # in a PDF or SVG one picture, not a polygon for every cell
    )
    ax.figure.colorbar(mesh, ax=ax, label=share_label(of_cap, metric_label(metric)), pad=0.01)
    if not of_cap:
        for row, layer in enumerate(chosen):
            edges = _plateau(layer, sample)
            ax.vlines(edges, row - 0.5, row + 0.5, colors="black", linewidth=1.6, label="_outline")
            ax.vlines(edges, row - 0.5, row + 0.5, colors="white", linestyles="--", linewidth=1.0, label="_cap")
    names = short_names([layer.name for layer in chosen])
    every = max(1, -(-len(chosen) // 40))  # at most 40 names fit
    ax.set_yticks(range(0, len(chosen), every))
    ax.set_yticklabels([literal(f"{n} {x.mixer}") for n, x in zip(names, chosen)][::every], fontsize="small")
    ax.set_ylim(len(chosen) - 0.5, -0.5)
    ax.set_xlabel(POSITION_LABEL + ("" if of_cap else "; between dashed marks the cap is largest"))
    ax.set_ylabel("layer")
    return ax


def _edges(columns: np.ndarray) -> np.ndarray:
    """Where cells end, `[P + 1]`: half-way between positions."""
    middles = (columns[1:] + columns[:-1]) / 2
    first = columns[0] - (middles[0] - columns[0] if len(middles) else 0.5)
    last = columns[-1] + (columns[-1] - middles[-1] if len(middles) else 0.5)
    return np.concatenate([[first], middles, [last]])


def _plateau(layer: LayerResult, sample: int) -> np.ndarray:
    """The positions between which the cap of a row is at its largest, for each of the row's sequences."""
    where, order = sorted_positions(layer)
    cap = np.nan_to_num(caps_of(layer)[sample][order])
    top = np.concatenate([[False], (cap == cap.max(initial=1)), [False]])
    starts, stops = np.flatnonzero(top[1:] & ~top[:-1]), np.flatnonzero(top[:-1] & ~top[1:])
    edges = _edges(where)
    return np.concatenate([edges[starts], edges[stops]])
