"""ESS around delimiters: a line a separator, aligned at the mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..delimiters import Dips, delimiter_dips
from ..result import Analysis
from ..values import mean, metric_label
from .axes import axes_or_new, literal, plain_style, share_label
from .colours import MARK_COLOUR, kind_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_delimiters(
    analyses: Analysis | Mapping[str, Analysis] | Dips,
    ax: Axes | None = None,
    *,
    layers: Sequence[str] | str | None = None,
    of_cap: bool = True,
    **options: Any,
) -> Axes:
    """The mean ESS at each offset from a delimiter, over heads, delimiters, rows and layers; the legend has the depths.

    The offset counts positions from the mark, whose `H_i` has the delimiter as its last input. As a share of the cap
    unless `of_cap=False`: the cap is then no line that could be drawn, for each delimiter has its own.

    Args:
        analyses: what `delimiter_dips` takes, or what it returned.
        ax: where to draw; None makes a figure.
        layers: names; None: all of them. Of a `Dips`, some of its layers.
        of_cap: as in `delimiter_dips`; a `Dips` has its own.
        **options: `delimiter`, `marks`, `metric`, `window`, `after` of `delimiter_dips`; none beside a `Dips`.

    Raises:
        ValueError: as `delimiter_dips`.
    """
    if isinstance(analyses, Dips):
        dips = analyses
        if options:
            raise ValueError(f"{next(iter(options))}: expected no such option beside Dips, which have been measured")
    else:
        dips = delimiter_dips(analyses, layers=layers, of_cap=of_cap, **options)
    ax = axes_or_new(ax, 6.6, 3.6)
    for separator, colour in kind_colours(dips.depth).items():
        names = _names(dips, separator, layers)
        curve = mean(np.array([dips.aligned[separator][name] for name in names]), 0)
        depth = float(mean(np.array([dips.depth[separator][name] for name in names])))
        label = f"{separator!r}: {dips.count[separator]} times, dip {100 * depth:.0f} %"
        ax.plot(dips.offsets, curve, ".-", color=colour, linewidth=1.4, markersize=4, label=literal(label))
    ax.axvline(0, color=MARK_COLOUR, linestyle=":", linewidth=0.9, label="delimiter has been read")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("position, counted from the delimiter")
    ax.set_ylabel(share_label(dips.of_cap, metric_label(dips.metric)))
    plain_style(ax)
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def _names(dips: Dips, separator: str, layers: Sequence[str] | str | None) -> list[str]:
    known = list(dips.depth[separator])
    wanted = known if layers is None else [layers] if isinstance(layers, str) else list(layers)
    for name in wanted:
        if name not in known:
            raise ValueError(f"layers: expected names among {known}, got {name!r}")
    return wanted
