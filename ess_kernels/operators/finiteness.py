"""Bad data must never turn into a plausible number: the helpers with which operators keep it visible."""

from __future__ import annotations

import torch
from torch import Tensor

from .structure import Tiled

# rows of T looked at together
BAND = 256


def finite_or_nan(x: Tensor) -> Tensor:
    """`x` with its infinities made NaN, for use before a step that could hide them (`exp`, `softplus`, `clamp`)."""
    return torch.where(x.isfinite(), x, torch.nan)


def all_finite(x: Tensor) -> Tensor:
    """bool `[N]`: whether every number of `x [N, ...]` is finite."""
    return x.isfinite().flatten(1).all(1)


def finite_or_minus_inf(x: Tensor) -> Tensor:
    """bool `[N]`: whether every number of `x [N, ...]` is finite, or the -inf of a log-gate, a mask or a sink."""
    return (x.isfinite() | (x == -torch.inf)).flatten(1).all(1)


def largest(x: Tensor) -> Tensor:
    """float64 `[N]`: the largest magnitude in `x [N, ...]`, 0 where `x` is empty."""
    magnitudes = x.detach().abs().flatten(1).double()
    return magnitudes.amax(1) if magnitudes.shape[1] else magnitudes.new_zeros(len(x))


@torch.no_grad()
def strictly_lower_finite(op: Tiled, heads: Tensor) -> Tensor:
    """bool `[N]`: whether `T` is finite below its diagonal, looked at one band of rows at a time."""
    finite = torch.ones(len(heads), dtype=torch.bool, device=heads.device)
    for start in range(0, op.length, BAND):
        rows = op.rows(heads, start, min(start + BAND, op.length))
        finite &= all_finite(rows.tril(start - 1))
    return finite
