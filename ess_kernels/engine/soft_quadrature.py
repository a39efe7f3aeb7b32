"""The soft count from log-determinants: it is the derivative of one by the logarithm of its shift.

`log det(I + H H^T / t)` changes by `-sum s^2 / (s^2 + t)` for each unit of `log t`. Four shifts around `t = tau^2` give
that derivative to `h^4 / 30` times the fourth derivative of a step, below 3e-8 a singular value. A closer `h` would
amplify the rounding errors of log-determinants more: here they count thirty times.

These errors are in proportion to the squared norm of `H`, in units of `t`. A fifth shift far above sees that norm: its
log-determinant is at most the squared norm over the shift, and near it while it is small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .quadrature import Quadrature

# the distance of neighbouring shifts, in units of their logarithm
STEP = 0.05
STENCIL = ((-2.0, -1.0), (-1.0, 8.0), (1.0, -8.0), (2.0, 1.0))
# of the four shifts alone, a singular value
ERROR = 3e-8
# how much rounding errors of log-determinants count, in units of the squared norm
AMPLIFIED = 7e-15
FAR = 1e12
# a soft count that may be wrong by more than this, or this share of it, is found from singular values
SOFT_BOUND = 8e-5

# The second sum, which is that of an entropy elsewhere, stands for no function here. The bound of a quadrature adds it
# to the first sum and multiplies by the error: so it carries the rounding errors.
SOFT = Quadrature(
    table=(
        *((math.exp(places * STEP), weight / (12 * STEP), 0.0) for places, weight in STENCIL),
        (FAR, 0.0, AMPLIFIED * FAR / ERROR),
    ),
    errors=(ERROR, 0.0),
)


def soft_count_is_certain(counts: Tensor, bound: Tensor, cap: Tensor) -> Tensor:
    """Whether soft counts from log-determinants can be taken as they are, bool.

    Where rounding errors dominate, the relative bound, which is divided by the count, says nothing: a count that is far
    too large makes its own bound small, and a negative one makes the product negative. No soft count is negative or
    larger than the number of non-zero singular values, so that such counts are recognised by that.

    Args:
        counts: what the log-determinants give.
        bound: of their relative error, from a quadrature; infinite or NaN where there is no answer.
        cap: broadcastable to the counts, the largest possible number of non-zero singular values.
    """
    possible = (counts >= 0) & (counts <= cap * (1 + SOFT_BOUND))
    return possible & (bound * counts <= SOFT_BOUND * counts.clamp_min(1.0))


def soft_count_of_values(values: Tensor, tau: Tensor) -> Tensor:
    """`sum s^2 / (s^2 + tau^2)` of `values` `[..., S]`, for positive `tau` that broadcasts to `[...]`."""
    tau = tau[..., None]
    below = values <= tau
    # the smaller one over the larger one has a square
    square = (torch.minimum(values, tau) / torch.maximum(values, tau)).square()
    return torch.where(below, square / (1 + square), 1 / (1 + square)).sum(-1)
