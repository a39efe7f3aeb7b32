"""Recurrences whose rank-one term is given outright, in flash-linear-attention's layout `[B, T, H, K]`.

`s_t = diag(exp(g_t)) s_{t-1} + b_t (a_t . s_{t-1}) + k_t u_t`, `y_t = scale q_t . s_t`. Unlike in the delta rules `a_t`
looks up the state before its decay.
"""

from __future__ import annotations

from torch import Tensor

from .layout import LAYOUT, check_alike, scale_of
from .rank_one import RankOneStateSpace
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(q=LAYOUT, k=LAYOUT, a=LAYOUT, b=LAYOUT, gk=LAYOUT)
def dplr_delta_rule(
    q: Tensor,
    k: Tensor,
    a: Tensor,
    b: Tensor,
    gk: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Diagonal plus low rank: `T_ij = scale q_i . A_i ... A_{j+1} k_j` with `A_t = diag(exp(gk_t)) + b_t a_t^T`.

    Args:
        q, k, a, b: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        gk: `[B, T, H, K]`, natural logarithms of the decays.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.generalized_delta_rule.chunk_dplr_delta_rule`.
    """
    size = check_alike(q=q, k=k, a=a, b=b, gk=gk)
    return RankOneStateSpace(
        q, k, gk, lookup=a, update=b, scale=scale_of(scale, size), looks_up_decayed=False, inputs=(q, k, a, b, gk)
    )


@takes_sequences(q=LAYOUT, k=LAYOUT, a=LAYOUT, b=LAYOUT)
def iplr_delta_rule(
    q: Tensor,
    k: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Identity plus low rank: `T_ij = scale q_i . A_i ... A_{j+1} k_j` with `A_t = I + b_t a_t^T`.

    Args:
        q, k, a, b: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.generalized_delta_rule.chunk_iplr_delta_rule`.
    """
    size = check_alike(q=q, k=k, a=a, b=b)
    no_decay = q.new_zeros(()).expand(q.shape)
    return RankOneStateSpace(
        q, k, no_decay, lookup=a, update=b, scale=scale_of(scale, size), looks_up_decayed=False, inputs=(q, k, a, b)
    )


@takes_sequences(r=LAYOUT, w=LAYOUT, k=LAYOUT, a=LAYOUT, b=LAYOUT)
def rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float | None = 1.0,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """RWKV-7: `T_ij = scale r_i . A_i ... A_{j+1} k_j` with `A_t = diag(exp(w_t)) + b_t a_t^T`.

    Args:
        r, k: `[B, T, H, K]`, reads and writes, float16, bfloat16, float32 or float64.
        w: `[B, T, H, K]`, natural logarithms of the decays (layers pass `-0.6065 sigmoid(.)`).
        a, b: `[B, T, H, K]` (layers pass minus the normalised key, and that key times its learning rate).
        scale: 1 by default, as upstream has it; `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.rwkv7.chunk_rwkv7`, whose second argument is `w` as well.
    """
    size = check_alike(r=r, w=w, k=k, a=a, b=b)
    return RankOneStateSpace(
        r, k, w, lookup=a, update=b, scale=scale_of(scale, size), looks_up_decayed=False, inputs=(r, w, k, a, b)
    )
