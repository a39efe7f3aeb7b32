"""The norms that some mixers apply to queries and keys themselves."""

from __future__ import annotations

from torch import Tensor

from .finiteness import finite_or_nan

# what upstream adds to the sum of squares
L2_EPS = 1e-6


def l2_normalized(x: Tensor) -> Tensor:
    """`x / sqrt(|x|^2 + 1e-6)` along the last axis, float64, as fla's `use_qk_l2norm_in_kernel`."""
    x = x.double()
    # a sum that overflowed would make a token of plausible zeros
    return x / finite_or_nan(x.square().sum(-1, keepdim=True) + L2_EPS).sqrt()


def rms_normalized(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` along the last axis, float64."""
    x = x.double()
    return x / finite_or_nan(x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
