"""The mixing matrix of a recurrence with diagonal gates, formed for training: float32, with gradients, fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # rows formed at a time
LARGEST_LOG = 60.0  # exp(60) and products with it are far from float32's largest number, exp(88)


def gated_matrix(q: Tensor, k: Tensor, log_gates: Tensor) -> Tensor:
    """`T_ij = sum_n q_in k_jn exp(g_{j+1,n} + ... + g_{i,n})` for j <= i, else 0.

    Decays are taken relative to the first row of a block of rows. Towards earlier blocks both factors of a decay are
    then at most 1. Inside of a block one factor grows, and is used only while it stays below `exp(60)`; with stronger
    gates the block's own part is formed pair by pair, from differences that are at most 0.

    Args:
        q: `[..., L, K]`, with the scale that is wanted.
        k: `[..., L, K]`.
        log_gates: `[..., L, K]`, natural logarithms of the gates: finite and at most 0.

    Returns:
        `[..., L, L]` in the dtype of `q`.
    """
    length = q.shape[-2]
    decay = log_gates.cumsum(-2)
    rows = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        here = slice(start, stop)
        relative = decay[..., here, :] - decay[..., start : start + 1, :]
        left = q[..., here, :] * relative.exp()
        own = _own_part(q[..., here, :], k[..., here, :], left, relative)
        if start:
            earlier = k[..., :start, :] * (decay[..., start : start + 1, :] - decay[..., :start, :]).exp()
            own = torch.cat([left @ earlier.mT, own], -1)
        rows.append(F.pad(own, (0, length - stop)))
    return torch.cat(rows, -2)


def _own_part(q: Tensor, k: Tensor, left: Tensor, relative: Tensor) -> Tensor:
    """A block's rows of `T` in its own columns."""
    if float(relative.detach().amin()) > -LARGEST_LOG:
        return (left @ (k * (-relative).exp()).mT).tril()
    size = q.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()[..., None]
    lag = (relative[..., :, None, :] - relative[..., None, :, :]).masked_fill(~later, -torch.inf)
    return (q[..., :, None, :] * k[..., None, :, :] * lag.exp()).sum(-1)
