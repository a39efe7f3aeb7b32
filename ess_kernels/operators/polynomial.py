"""Linear attention with a polynomial of `q . k` in place of `exp(q . k)`: Based and ReBased, normalised by rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .layout import LAYOUT, check_q_k
from .separate import takes_sequences
from .structure import Operator

# what upstream adds to a row sum; plain linear attention has 1e-10
EPS = 1e-6


@takes_sequences(q=LAYOUT, k=LAYOUT)
@over_time.accumulates
def based(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Based: `T_ij = (1 + a_ij + a_ij^2 / 2) / (row sum + 1e-6)` with `a_ij = scale q_i . k_j`, a Taylor series.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator whose state has `1 + K + K (K + 1) / 2` numbers.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.based.parallel_based`.
    """
    scale = check_q_k(q, k, scale)

    def features(x: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(x[..., :1]), x, _products(x) * math.sqrt(0.5)], -1)

    return _normalized(features(scale * q.double()), features(k.double()), (q, k))


@takes_sequences(q=LAYOUT, k=LAYOUT)
@over_time.accumulates
def rebased(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """ReBased: `T_ij = a_ij^2 / (row sum + 1e-6)` with `a_ij = scale q_i . k_j`.

    The norm and the affine map of its layers come before: `q` and `k` are what the operation takes.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator whose state has `K (K + 1) / 2` numbers.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.rebased.parallel_rebased`.
    """
    scale = check_q_k(q, k, scale)
    return _normalized(_products(scale * q.double()), _products(k.double()), (q, k))


def _products(x: Tensor) -> Tensor:
    """Features `[..., K (K + 1) / 2]` such that those of x and y have the product `(x . y)^2`."""
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    weight = x.new_full(first.shape, math.sqrt(2.0)).masked_fill(first == second, 1.0)
    return x[..., first] * x[..., second] * weight


def _normalized(read: Tensor, write: Tensor, inputs: tuple[Tensor, Tensor]) -> GatedStateSpace:
    row_sums = (read * over_time.cumsum(write, 1)).sum(-1) + EPS
    no_decay = read.new_zeros(()).expand(read.shape)
    # a row sum that overflowed would make a row of plausible zeros
    return GatedStateSpace(read, write, no_decay, read_scale=1 / finite_or_nan(row_sums), inputs=inputs)
