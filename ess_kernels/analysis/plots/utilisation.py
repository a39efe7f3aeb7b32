"""How much of its cap each layer uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..names import short_names
from ..result import Analysis
from ..values import choose_layers, choose_metric, layer_means, metric_label
from .axes import axes_or_new, literal, plain_style, share_label
from .colours import CAP_COLOUR, kind_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_utilisation(
    analysis: Analysis,
    ax: Axes | None = None,
    *,
    metric: str | float | None = None,
    layers: Sequence[str] | str | None = None,
) -> Axes:
    """A bar a layer: ESS divided by the cap min(TSS, i, L-i), mean over valid positions, heads and rows of the batch.

    Bad data in any head leave no bar.

    Args:
        analysis: what `analyze` returned.
        ax: where to draw; None makes a figure.
        metric: `"entropy"` or a tolerance; None: the first one measured.
        layers: names; None: all of them.

    Raises:
        ValueError: a name or a metric that there is not.
    """
    chosen = choose_layers(analysis, layers)
    metric = choose_metric(analysis, metric)
    ax = axes_or_new(ax, min(14.0, max(5.6, 2.0 + 0.3 * len(chosen))), 3.4)
    colours = kind_colours(layer.mixer for layer in chosen)
    shares = [layer_means(layer, metric)[1] for layer in chosen]
    for kind, colour in colours.items():
        at = [number for number, layer in enumerate(chosen) if layer.mixer == kind]
        ax.bar(at, [shares[number] for number in at], color=colour, label=literal(kind), width=0.8)
    ax.axhline(1, color=CAP_COLOUR, linestyle="--", linewidth=1.1, label="cap")
    every = max(1, -(-len(chosen) // 40))
    names = [literal(name) for name in short_names([layer.name for layer in chosen])]
    ax.set_xticks(range(0, len(chosen), every))
    long = max(map(len, names)) > 4
    ax.set_xticklabels(names[::every], rotation=45 if long else 0, ha="right" if long else "center", fontsize="small")
    ax.set_ylim(0, 1.06)
    ax.set_xlabel("layer")
    ax.set_ylabel(share_label(True, metric_label(metric)))
    plain_style(ax)
    ax.grid(axis="x", visible=False)
    ax.set_axisbelow(True)
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="mixer")
    return ax
