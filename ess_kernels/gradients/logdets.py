"""Log-determinants of a dense `T` at all positions, out of place, for autograd.

Log-determinants are smooth where singular values coincide or vanish. Scales and shifts are constants for the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def matrix_logdets(T: Tensor, shifts: Tensor) -> Tensor:
    """`log det(I + H_i H_i^T / t)` `[K, L]` of a strictly lower triangular `T` `[L, L]`, for shifts `t` `[K]`.

    The value at position 0, an empty `H`, is 0. NaN where rounding has left none; no gradient may be asked for there
    but one of zero.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(T):
        # checkpoints do not work inside of torch.func: there the intermediate results of all shifts are kept
        return torch.stack([_staircase_logdets(T / root) for root in shifts.sqrt()])
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
        left = _eliminate(_Half(R[:, h:, h:], R[:, h:, :h], K[:, h:, :h], R[:, :h, :h], K[:, :h, :h], C[:, :h, :h]), 1)
        right = _eliminate(
            _Half(-C[:, :h, :h], K[:, h:, :h].mT, C[:, :h, h:], R[:, h:, h:], K[:, h:, h:], C[:, h:, h:]), -1
        )
        R, K, C, logs = (pair(x, y) for x, y in zip(left, right, strict=True))
        value = value.repeat_interleave(2) + logs
        middle = torch.minimum(start + h, stop)
        start, stop = pair(start, middle), pair(middle, stop)
        m = h
    last = R[:, 0, 0]
    positive = last > 0
    value = value + torch.where(positive, torch.where(positive, last, 1.0).log(), torch.nan)
    return value[start < stop]


class _Half(NamedTuple):
    """What one half of every block becomes once the other half is eliminated, `[J, h, h]` each.

    Attributes:
        pivots: of the other half; positive definite in exact arithmetic.
        rows, columns: what couples the other half to this one.
        R, K, C: this half.
    """

    pivots: Tensor
    rows: Tensor
    columns: Tensor
    R: Tensor
    K: Tensor
    C: Tensor

    def without(self, bad: Tensor) -> _Half:
        """The same with nothing in the blocks `bad` `[J]`, which no gradient then reaches.

        Without this a gradient of zero would be multiplied by numbers that are not finite, and spoil other blocks.
        """
        eye, zero = torch.eye(self.K.shape[-1], dtype=self.K.dtype, device=self.K.device), self.K.new_zeros(())
        nothing = _Half(eye, zero, zero, eye, zero, -eye)
        return _Half(*(torch.where(bad[:, None, None], y, x) for x, y in zip(self, nothing, strict=True)))


def _eliminate(half: _Half, sign: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`R`, `K`, `C` of one half without the other one, and the log-determinant `[J]` of what was eliminated.

    Rounding may have left pivots that are not positive definite. Then there is no log-determinant: NaN, in all
    positions of the block and in no others.
    """
    factor, info = torch.linalg.cholesky_ex(half.pivots)
    bad = (info != 0) | ~factor.detach().isfinite().flatten(1).all(-1)
    some_bad = bool(bad.any())
    if some_bad:
        half = half.without(bad)
        factor = torch.linalg.cholesky(half.pivots)
    rows, columns = (torch.linalg.solve_triangular(factor, x, upper=False) for x in (half.rows, half.columns))
    logs = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if some_bad:
        logs = torch.where(bad, torch.nan, logs)
    if sign > 0:
        return half.R - rows.mT @ rows, half.K - rows.mT @ columns, half.C - columns.mT @ columns, logs
    return half.R + rows.mT @ rows, half.K + rows.mT @ columns, half.C + columns.mT @ columns, logs
