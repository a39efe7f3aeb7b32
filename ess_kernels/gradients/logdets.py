"""Log-determinants of a dense `T` at all positions, out of place, for autograd.

Log-determinants are smooth where singular values coincide or vanish. Scales and shifts are constants for the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def matrix_logdets(T: Tensor, shifts: Tensor) -> Tensor:
    """`log det(I + H_i H_i^T / t)` `[K, L]` of a strictly lower triangular `T` `[L, L]`, for shifts `t` `[K]`.

    The value at position 0, an empty `H`, is 0.
    """
    return torch.stack([checkpoint(_staircase_logdets, T / root, use_reentrant=False) for root in shifts.sqrt()])


def _staircase_logdets(K: Tensor) -> Tensor:
    """`log det(I + H_i H_i^T)` `[L]` of one strictly lower triangular matrix: `staircase.py` out of place."""
    length = K.shape[0]
    K = K[None]
    R = torch.eye(length, dtype=K.dtype, device=K.device)[None]
    C = -R
    value = K.new_zeros(1)
    start = torch.zeros(1, dtype=torch.int64, device=K.device)
    stop = start + length

    def pair(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([left, right], 1).flatten(0, 1)

    m = length
    while m > 1:
        if m % 2:
            R, K, C = (torch.nn.functional.pad(x, (0, 1, 0, 1)) for x in (R, K, C))
            corner = torch.zeros_like(R)
            corner[:, -1, -1] = 1.0
            R, C = R + corner, C - corner
            m += 1
        h = m // 2
        # left: later rows are eliminated; right: earlier columns, whose pivots are negative
        later = torch.linalg.cholesky(R[:, h:, h:])
        earlier = torch.linalg.cholesky(-C[:, :h, :h])
        Wr, Wc = (torch.linalg.solve_triangular(later, x, upper=False) for x in (R[:, h:, :h], K[:, h:, :h]))
        Vr, Vc = (torch.linalg.solve_triangular(earlier, x, upper=False) for x in (K[:, h:, :h].mT, C[:, :h, h:]))
        R = pair(R[:, :h, :h] - Wr.mT @ Wr, R[:, h:, h:] + Vr.mT @ Vr)
        K = pair(K[:, :h, :h] - Wr.mT @ Wc, K[:, h:, h:] + Vr.mT @ Vc)
        C = pair(C[:, :h, :h] - Wc.mT @ Wc, C[:, h:, h:] + Vc.mT @ Vc)
        logs = [2 * x.diagonal(dim1=-2, dim2=-1).log().sum(-1) for x in (later, earlier)]
        value = pair(value + logs[0], value + logs[1])
        middle = torch.minimum(start + h, stop)
        start, stop = pair(start, middle), pair(middle, stop)
        m = h
    value = value + R[:, 0, 0].log()
    return value[start < stop]
