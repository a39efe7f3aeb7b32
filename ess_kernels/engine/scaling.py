"""Exact scaling by powers of two, so that squares of very large or very small inputs neither overflow nor vanish."""

from __future__ import annotations

import torch
from torch import Tensor


def power_of_two(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[N, ...]` with the largest magnitude of each `x[n]` brought into [1/2, 1), and the unit taken out, `[N]`.

    Both factors are exact: `result * unit == x` (but for numbers that were subnormal). All-zero entries keep unit 1.
    """
    largest = x.abs().flatten(1).amax(1) if x[0:1].numel() else x.new_ones(x.shape[0])
    exponent = torch.frexp(largest).exponent.to(torch.int64).clamp(-1000, 1000)
    shape = (-1, *[1] * (x.dim() - 1))
    return x * _exp2(-exponent).view(shape), _exp2(exponent)


def _exp2(exponent: Tensor) -> Tensor:
    """`2.0 ** exponent` exactly, for int64 exponents of normal numbers."""
    return ((exponent + 1023) << 52).view(torch.float64)
