"""Shares and means of the ESS at hand, where caps and valid positions are tensors.

`ess_kernels.aggregate` takes caps and valid positions from an operator, stored results bring theirs; both end here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._readable import check_plain

# this package's thresholds, as shares of the cap; the paper gives none
SATURATED = 0.9
COLLAPSED = 0.1
# below this cap a small share of it is less than two singular values, and says nothing about collapse
SMALLEST_CAP = 16


def as_numbers(name: str, ess: Any, axes: int) -> Tensor:
    """float64, with bad data (-1 or NaN) as NaN; `TypeError` or `ValueError` unless `ess` has `axes` axes at least."""
    if not isinstance(ess, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(ess).__name__}")
    check_plain(name, ess)
    if ess.dtype == torch.bool or ess.is_complex():
        raise TypeError(f"{name}: expected integers or floats, got {ess.dtype}")
    if ess.dim() < axes:
        wanted = "[..., H, P]" if axes == 2 else "[..., P]"
        raise ValueError(f"{name}: expected shape {wanted}, got {list(ess.shape)}")
    numbers = ess.double()
    return torch.where(numbers < 0, torch.nan, numbers)


def mean_where(numbers: Tensor, valid: Tensor) -> Tensor:
    """The mean of all numbers at valid positions: float64 scalar, NaN if one of them is, or if there is none."""
    return torch.where(valid, numbers, 0).sum() / valid.expand(numbers.shape).sum()


def of_bound(numbers: Tensor, bound: Tensor | int, valid: Tensor) -> Tensor:
    """Numbers `[..., P]` divided by a bound of each position; NaN at positions that are not valid."""
    return torch.where(valid, numbers / bound, torch.nan)


def saturated_share(numbers: Tensor, caps: Tensor, fraction: float = SATURATED) -> Tensor:
    """Of the positions with a cap, the share whose number is at least `fraction` of it: `[...]` from `[..., P]`."""
    return _share(numbers, numbers >= fraction * caps, caps >= 1)


def collapsed_share(numbers: Tensor, caps: Tensor, fraction: float = COLLAPSED) -> Tensor:
    """Of the positions with a cap of 16 or more, the share whose number is below `fraction` of it: `[...]`."""
    return _share(numbers, numbers < fraction * caps, caps >= SMALLEST_CAP)


def _share(numbers: Tensor, hits: Tensor, eligible: Tensor) -> Tensor:
    """The share of hits among the eligible positions, NaN where any number is."""
    share = (hits & eligible).sum(-1) / eligible.sum(-1).double()
    return torch.where(numbers.isnan().any(-1), torch.nan, share)
