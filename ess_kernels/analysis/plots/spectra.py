"""Singular values of chosen `H_i`: what a tolerance counts, and how far rounding is below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ess_kernels._text_table import short_tolerance

from .axes import axes_or_new, plain_style
from .colours import CAP_COLOUR, COLOUR_MAP

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from torch import Tensor

    from ess_kernels.operators.structure import Operator


def plot_spectra(
    op: Operator | Tensor,
    positions: Sequence[int],
    *,
    atol: float | Sequence[float] = 1e-3,
    ax: Axes | None = None,
    dtype: torch.dtype | None = None,
    head: int = 0,
    k: int | None = None,
) -> Axes:
    """The singular values of each `H_i` in falling order, on a logarithmic axis, with the tolerances as lines.

    The shaded area is the noise floor of `dtype`: below `eps(dtype)` times the largest singular value of all that are
    drawn, rounding the mixer's own tensors already changes what is seen. Zeros are not drawn. An open circle at the end
    of a line is the cap min(TSS, i, L-i): no singular value can follow.

    Args:
        op: an operator, or a dense `T [..., L, L]`.
        positions: integers in `1..L-1`.
        atol: one absolute tolerance or several.
        ax: where to draw; None makes a figure.
        dtype: that of the model's tensors; None: that of the operator's own.
        head: which operator of the flattened batch shape.
        k: draw so many singular values, the largest ones; None: all.

    Raises:
        ValueError: `head` or a position that there is not, or bad data in that head.
    """
    import torch

    from ess_kernels.metrics import singular_values
    from ess_kernels.operators.dense import as_operator

    operator = as_operator(op)
    wanted = [int(i) for i in positions]
    values = singular_values(operator, wanted, k).reshape(operator.num_heads, len(wanted), -1)
    if not 0 <= head < operator.num_heads:
        raise ValueError(f"head: expected an integer from 0 to {operator.num_heads - 1}, got {head!r}")
    spectra = values[head].detach().cpu().numpy()
    if not np.isfinite(spectra).all():
        raise ValueError(f"op: expected finite numbers, got NaN or infinity in what head {head} reads")
    at = torch.tensor(wanted, device=operator.device)
    caps = operator.rank_cap(at).expand(*operator.batch_shape, len(wanted)).reshape(-1, len(wanted))[head].tolist()
    kind = (
        dtype if dtype is not None else next((x.dtype for x in operator.inputs if x.is_floating_point()), torch.float64)
    )
    floor = torch.finfo(kind).eps * float(spectra.max(initial=0.0))
    tolerances = [float(x) for x in np.atleast_1d(np.asarray(atol, dtype=np.float64))]

    ax = axes_or_new(ax, 6.6, 4.0)
    ax.set_yscale("log")
    for number, (i, spectrum, cap) in enumerate(zip(wanted, spectra, caps)):
        seen = spectrum[spectrum > 0]
        counts = ", ".join(str(int((spectrum > tolerance).sum())) for tolerance in tolerances)
        colour = _colour(number, len(wanted))
        index = np.arange(1, len(seen) + 1)
        ax.plot(index, seen, ".-", color=colour, markersize=4, linewidth=1.1, label=f"i = {i}: {counts} of {cap}")
        if len(seen) == cap and len(seen):
            ax.plot(index[-1:], seen[-1:], "o", color=colour, markerfacecolor="none", markersize=7, label="_cap")
    for tolerance in tolerances:
        if tolerance > 0:
            ax.axhline(tolerance, color=CAP_COLOUR, linestyle="-", linewidth=0.9, label="_tolerance")
            ax.annotate(
                f" {short_tolerance(tolerance)}",
                (1.0, tolerance),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize="small",
            )
    if floor > 0:
        smallest = min([floor, *tolerances, *spectra[spectra > 0].tolist()], key=lambda x: x if x > 0 else np.inf)
        bottom = max(smallest / 3, floor * 1e-3)  # what is far down in the noise may leave the picture
        ax.set_ylim(bottom=bottom)
        ax.axhspan(bottom, floor, color="0.85", zorder=0, label=f"noise floor, {str(kind).removeprefix('torch.')}")
    ax.set_xlabel("k")
    ax.set_ylabel("singular value s_k of H_i")
    plain_style(ax)
    title = f"above {', '.join(map(short_tolerance, tolerances))}, of cap"
    ax.legend(
        fontsize="small",
        frameon=False,
        title=title,
        title_fontsize="small",
        loc="upper left",
        bbox_to_anchor=(1.08, 1.0),
    )
    return ax


def _colour(number: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps[COLOUR_MAP](0.85 * number / max(1, count - 1))
