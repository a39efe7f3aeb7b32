"""ESS over training: a line a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..names import short_names
from ..result import Analysis
from ..values import choose_layers, choose_metric, layer_means, metric_label
from .axes import axes_or_new, literal, plain_style, share_label
from .colours import COLOUR_MAP, kind_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DISTINCT = 8  # more layers than this are coloured by depth, not told apart one by one


def plot_training(
    history: Sequence[tuple[int, Analysis]],
    ax: Axes | None = None,
    *,
    metric: str | float | None = None,
    layers: Sequence[str] | str | None = None,
    of_cap: bool = False,
) -> Axes:
    """The mean ESS of each layer over valid positions, heads and rows, at each step; a gap where a layer is missing
    or has bad data.

    Args:
        history: pairs of a step and what `analyze` returned there, in any order.
        ax: where to draw; None makes a figure.
        metric: `"entropy"` or a tolerance; None: the first one measured.
        layers: names; None: all of the first analysis.
        of_cap: ESS divided by the cap, 0 to 1.

    Raises:
        ValueError: no pairs, or a name or a metric that there is not.
    """
    ordered = sorted(history, key=lambda pair: pair[0])
    if not ordered:
        raise ValueError("history: expected at least one pair of a step and an analysis, got none")
    first = ordered[0][1]
    chosen = choose_layers(first, layers)
    metric = choose_metric(first, metric)
    ax = axes_or_new(ax, 6.6, 3.6)
    names = [layer.name for layer in chosen]
    colours: dict[str, Any] = {**kind_colours(names)}
    if len(names) > DISTINCT:
        from matplotlib import colormaps

        colours = {name: colormaps[COLOUR_MAP](number / (len(names) - 1)) for number, name in enumerate(names)}
    steps = [step for step, _ in ordered]
    for name, short, layer in zip(names, short_names(names), chosen):
        means = [
            layer_means(analysis.layers[name], metric)[of_cap] if name in analysis.layers else np.nan
            for _, analysis in ordered
        ]
        ax.plot(steps, means, ".-", color=colours[name], linewidth=1.4, label=literal(f"{short} {layer.mixer}"))
    ax.set_ylim(bottom=0, top=1.06 if of_cap else None)
    ax.set_xlabel("training step")
    ax.set_ylabel(share_label(of_cap, f"mean {metric_label(metric)}"))
    plain_style(ax)
    columns = -(-len(names) // 16)
    ax.legend(
        fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="layer", ncols=columns
    )
    return ax
