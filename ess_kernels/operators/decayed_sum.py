"""Sums over time in which the past decays, for what a constructor computes before any operator exists."""

from __future__ import annotations

import torch
from torch import Tensor


def decayed_sum(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """`s_t = decay_t s_{t-1} + x_t` along `dim`; `decay` broadcasts against `x`. Products and sums only.

    Each round joins every token's sum with that of the stretch before it, which doubles the stretch: `O(L log L)`.
    """
    length = x.shape[dim]
    decay = decay.expand_as(x)
    # the first token's decay has nothing to multiply, but if it is bad data the sum must show it
    total = x + 0.0 * decay
    step = 1
    while step < length:
        rest = length - step
        late, early = total.narrow(dim, step, rest), total.narrow(dim, 0, rest)
        passed = decay.narrow(dim, step, rest)
        total = torch.cat([total.narrow(dim, 0, step), late + passed * early], dim)
        decay = torch.cat([decay.narrow(dim, 0, step), passed * decay.narrow(dim, 0, rest)], dim)
        step *= 2
    return total
