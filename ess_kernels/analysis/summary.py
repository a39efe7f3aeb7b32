"""A readable table of an analysis, one line a layer, then what was skipped and what else should be known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ess_kernels._printable import printable
from ess_kernels._shares import COLLAPSED, SATURATED, collapsed_share, saturated_share
from ess_kernels._text_table import short_tolerance, text_table
from ess_kernels.analysis.table import MetricOfLayer, metrics_of, pooled

if TYPE_CHECKING:
    from ess_kernels.analysis.result import Analysis, LayerResult

# a layer is flagged if at least this share of its positions is saturated, or collapsed
FLAGGED = 0.5


def summary(analysis: Analysis) -> str:
    """See `Analysis.summary`."""
    lines = [headline(analysis)]
    if analysis.layers:
        lines += ["", *_table(analysis), "", *_legend(analysis)]
    if analysis.skipped:
        lines += ["", "Skipped:", *(f"  {name}: {reason}" for name, reason in analysis.skipped.items())]
    if analysis.notes:
        lines += ["", "Notes:", *(f"  {note}" for note in analysis.notes)]
    return "\n".join(map(printable, lines))


def headline(analysis: Analysis) -> str:
    """The model, what was found, and the time, in one line."""
    layers = list(analysis.layers.values())
    sizes = sorted({f"{layer.cap.shape[0]} x {layer.length}" for layer in layers})
    tokens = f", {' and '.join(sizes)} tokens" if sizes else ""
    mixers, skipped = len(layers), len(analysis.skipped)
    return printable(f"{analysis.model}: {mixers} mixers, {skipped} skipped{tokens}, {analysis.seconds:.1f} s")


def _table(analysis: Analysis) -> list[str]:
    tolerances = _tolerances(analysis)
    head = ["name", "mixer", "heads", "TSS", "entropy-ESS", *(f"ESS {short_tolerance(tau)}" for tau in tolerances)]
    head += ["of cap", "capture error", "flags"]
    rows = [list(map(printable, _row(layer, tolerances))) for layer in analysis.layers.values()]
    return text_table(head, rows, left=("name", "mixer", "flags"))


def _tolerances(analysis: Analysis) -> list[float]:
    return list(dict.fromkeys(tau for layer in analysis.layers.values() for tau in layer.tolerance))


def _row(layer: LayerResult, tolerances: Sequence[float]) -> list[str]:
    measured = {found.atol: found for found in metrics_of(layer)}
    means = {atol: pooled(layer, found) for atol, found in measured.items()}
    heads = str(next(iter(measured.values())).ess.shape[1]) if measured else "-"
    # entropy's share if there is one, as in the demo's table; else that of the middle tolerance
    of_cap = means.get(None if None in means else _middle(list(layer.tolerance)), (math.nan, math.nan))[1]
    return [
        layer.name,
        layer.mixer,
        heads,
        "i" if layer.state_size is None else str(layer.state_size),
        *(_number(means[atol][0]) if atol in means else "-" for atol in (None, *tolerances)),
        "-" if math.isnan(of_cap) else f"{100 * of_cap:.1f} %",
        f"{layer.capture_error:.0e}",
        ", ".join(flags_of(layer)),
    ]


def _number(mean: float) -> str:
    return "bad data" if math.isnan(mean) else f"{mean:.2f}"


def flags_of(layer: LayerResult) -> list[str]:
    """What should be looked at in a layer, in a few words each; `flag_legend` says what they mean."""
    flags = []
    found = _flagged_metric(layer)
    if found is not None:
        numbers, cap = found.numbers(), layer.cap[:, None]
        shares = {"saturated": saturated_share(numbers, cap), "collapsed": collapsed_share(numbers, cap)}
        for name, share in shares.items():
            mean = float(share.nanmean())
            if mean >= FLAGGED:
                flags.append(f"{name} {100 * mean:.0f} %")
    if layer.unresolved > 0:
        flags.append(f"unresolved {100 * layer.unresolved:.2g} %")
    if layer.check != "independent":
        flags.append(layer.check)
    return flags


def _flagged_metric(layer: LayerResult) -> MetricOfLayer | None:
    """The counts at the middle tolerance, for entropy knows no scale and sees no collapse."""
    middle = _middle(list(layer.tolerance))
    return next((found for found in metrics_of(layer) if found.metric == "tolerance" and found.atol == middle), None)


def _middle(tolerances: Sequence[float]) -> float | None:
    return sorted(tolerances)[len(tolerances) // 2] if tolerances else None


def _legend(analysis: Analysis) -> list[str]:
    lines = [
        "Means over heads and valid positions. ESS 1e-3 is tolerance-ESS, the number of singular values above 0.001;"
    ]
    if any(layer.entropy is not None for layer in analysis.layers.values()):
        of_cap = "entropy-ESS"
    else:
        of_cap = "tolerance-ESS at the middle tolerance"
    lines.append(
        f"of cap is {of_cap} as a share of the cap min(TSS, i, L-i), and TSS the state size (i: it grows with i)."
    )
    return lines + flag_legend(analysis)


def flag_legend(analysis: Analysis) -> list[str]:
    """What a flag means, if there can be one."""
    middle = _middle(_tolerances(analysis))
    if middle is None:
        return []
    return [
        f"Flags: at least {100 * FLAGGED:.0f} % of the positions saturated (ESS {short_tolerance(middle)} at least "
        f"{SATURATED:g} of the cap) or collapsed (less than {COLLAPSED:g} of it)."
    ]
