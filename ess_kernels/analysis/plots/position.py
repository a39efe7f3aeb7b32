"""ESS against position: several metrics of chosen layers, with the cap and marks at delimiters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..delimiters import marks_of
from ..names import short_names
from ..result import Analysis, LayerResult
from ..values import (
    caps_of,
    check_sample,
    choose_layers,
    choose_metric,
    metric_label,
    metrics_of,
    sorted_positions,
    values_of,
)
from .axes import CAP_LABEL, ESS_LABEL, POSITION_LABEL, axes_or_new, line_with_band, literal, plain_style, share_label
from .colours import CAP_COLOUR, MARK_COLOUR, kind_colours, metric_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("-", "-.", ":", (0, (1, 3)))  # dashes are the cap's


def plot_position(
    analysis: Analysis,
    ax: Axes | None = None,
    *,
    layers: Sequence[str] | str | None = None,
    metrics: Sequence[str | float] | None = None,
    sample: int = 0,
    marks: Sequence[int] | None = None,
    delimiter: str | None = None,
    of_cap: bool = False,
    legend: bool = True,
) -> Axes:
    """The mean over heads as a line, their range as a band, the cap dashed. Bad data and padding leave gaps.

    Args:
        analysis: what `analyze` returned.
        ax: where to draw; None makes a figure.
        layers: names; None: the first layer. Several layers with one metric differ in colour, with several in style.
        metrics: `"entropy"` and tolerances; None: all that were measured.
        sample: which row of the batch.
        marks: positions for vertical lines.
        delimiter: draws them where `analysis.tokens` has this text: at the position that has just read it.
        of_cap: divide by the cap, which becomes a line at 1.
        legend: draw it, to the right of the axes.

    Raises:
        ValueError: a name, a metric or a sample that there is not; `delimiter` and `marks` together.
    """
    chosen = choose_layers(analysis, layers)
    if layers is None:
        chosen = chosen[:1]
    wanted = metrics_of(analysis) if metrics is None else [choose_metric(analysis, metric) for metric in metrics]
    if not wanted:
        raise ValueError("metrics: expected at least one metric, got none")
    check_sample(chosen, sample)
    ax = axes_or_new(ax)
    by_metric = metric_colours(metrics_of(analysis))
    by_layer = kind_colours(layer.name for layer in chosen)
    names = short_names([layer.name for layer in chosen])
    several, one_metric = len(chosen) > 1, len(wanted) == 1
    for number, layer in enumerate(chosen):
        where, order = sorted_positions(layer)
        for metric in wanted:
            heads = values_of(layer, metric, of_cap=of_cap)[sample][:, order]
            if several and one_metric:
                line_with_band(ax, where, heads, by_layer[layer.name], f"{names[number]} {layer.mixer}")
            else:
                label = f"{names[number]} {metric_label(metric)}" if several else metric_label(metric)
                line_with_band(ax, where, heads, by_metric[metric], label, STYLES[number % len(STYLES)])
    _draw_caps(ax, chosen, sample, of_cap)
    _draw_marks(ax, analysis, sample, marks, delimiter)
    ax.margins(x=0.01)
    ax.set_xlabel(POSITION_LABEL)
    ax.set_ylabel(share_label(of_cap, ESS_LABEL if not one_metric else metric_label(wanted[0])))
    if not several:
        ax.set_title(literal(f"{chosen[0].name}, {chosen[0].mixer}"), fontsize="medium", loc="left")
    plain_style(ax)
    if legend:
        ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def _draw_caps(ax: Axes, layers: Sequence[LayerResult], sample: int, of_cap: bool) -> None:
    """A dashed line for each cap. Layers often share one: it is drawn once, so that its dashes stay dashes."""
    drawn: set[tuple[float, ...]] = set()
    for layer in layers:
        where, order = sorted_positions(layer)
        cap = caps_of(layer)[sample][order]
        cap = np.where(np.isnan(cap), np.nan, 1.0) if of_cap else cap
        key = (*where.tolist(), *np.nan_to_num(cap).tolist())
        if key not in drawn:
            label = "_" * bool(drawn) + CAP_LABEL  # a label with an underscore stays out of the legend
            ax.plot(where, cap, "--", color=CAP_COLOUR, linewidth=1.1, label=label)
            drawn.add(key)
    largest = max((np.nanmax(caps_of(layer)[sample], initial=1) for layer in layers), default=1)
    ax.set_ylim(0, 1.05 * (1.0 if of_cap else float(largest)))


def _draw_marks(ax: Axes, analysis: Analysis, sample: int, marks: Sequence[int] | None, delimiter: str | None) -> None:
    if marks is None and delimiter is None:
        return
    rows = marks_of(analysis, delimiter=delimiter, marks=marks)
    label = literal("mark" if delimiter is None else f"delimiter {delimiter!r}")
    for number, mark in enumerate(rows[sample] if sample < len(rows) else []):
        ax.axvline(mark, color=MARK_COLOUR, linewidth=0.9, linestyle=":", label="_" * bool(number) + label)
