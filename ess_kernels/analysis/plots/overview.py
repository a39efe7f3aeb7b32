"""A whole figure of an analysis: all layers and positions, and below them the curves of a few layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..result import Analysis, LayerResult
from ..values import choose_layers
from .axes import literal
from .heatmap import plot_heatmap
from .position import plot_position

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 4


def plot_overview(
    analysis: Analysis,
    *,
    layers: Sequence[str] | str | None = None,
    metric: str | float | None = None,
    sample: int = 0,
    marks: Sequence[int] | None = None,
    delimiter: str | None = None,
    title: str | None = None,
) -> Figure:
    """The heatmap of all layers as shares of the cap, over a panel of ESS against position for each of a few layers.

    Args:
        analysis: what `analyze` returned.
        layers: names for the panels; None: the first layer of each kind of mixer, at most four.
        metric: of the heatmap, `"entropy"` or a tolerance; None: the first one measured. Panels show all metrics.
        sample: which row of the batch.
        marks, delimiter: vertical lines in the panels, as in `plot_position`.
        title: over the whole figure.

    Returns:
        A matplotlib figure, tied to no window: `figure.savefig(path)`.

    Raises:
        ValueError: as `plot_heatmap` and `plot_position`.
    """
    from matplotlib.figure import Figure

    chosen = choose_layers(analysis, layers) if layers is not None else _one_of_each_kind(analysis)
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    above = min(8.0, 1.3 + 0.28 * max(4, len(analysis.layers)))
    below = 2.7 * rows + 0.8
    figure = Figure(figsize=(11.2, above + below + 0.3), dpi=140, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[above, below], squeeze=False)[:, 0]
    plot_heatmap(analysis, top.subplots(), metric=metric, sample=sample, of_cap=True)
    axes = bottom.subplots(rows, columns, squeeze=False)
    for place, layer in zip(axes.flat, chosen):
        plot_position(analysis, place, layers=layer.name, sample=sample, marks=marks, delimiter=delimiter, legend=False)
        place.set_title(literal(_title(layer)), fontsize="medium", loc="left")
    for place in axes[:-1].flat:
        place.set_xlabel("")
    for place in axes[:, 1:].flat:
        place.set_ylabel("")
    for place in axes.flat[len(chosen) :]:
        place.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    bottom.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if title:
        figure.suptitle(literal(title), fontsize="medium")
    return figure


def _one_of_each_kind(analysis: Analysis) -> list[LayerResult]:
    first: dict[str, LayerResult] = {}
    for layer in choose_layers(analysis, None):
        first.setdefault(layer.mixer, layer)
    return list(first.values())[:MOST_PANELS]


def _title(layer: LayerResult) -> str:
    size = "state grows with i" if layer.state_size is None else f"state {layer.state_size}"
    return f"{layer.name}: {layer.mixer}, {size}"
