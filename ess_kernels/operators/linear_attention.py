"""Linear attention and its gated kin, in flash-linear-attention's layout `[B, T, H, K]`, gates natural logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_bool, check_layout, check_positive_size, check_same_device, check_shape, finite_float
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .separate import takes_sequences
from .structure import Operator

LAYOUT = "[B, T, H, K]"
# what upstream adds to the row sums of normalised linear attention
NORMALIZER_EPS = 1e-10


def _check_q_k(q: Tensor, k: Tensor, scale: float | None) -> float:
    """The scale, once `q` and `k` are known to fit."""
    shape = check_layout("q", q, LAYOUT)
    check_positive_size("q", "K", shape[-1])
    check_shape("k", k, shape, LAYOUT)
    check_same_device(q=q, k=k)
    return shape[-1] ** -0.5 if scale is None else finite_float("scale", scale)


@takes_sequences(q=LAYOUT, k=LAYOUT)
def linear_attention(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Linear attention without decay: `T_ij = scale q_i . k_j`.

    With `normalize`, row i is divided by `scale q_i . (k_0 + ... + k_i) + 1e-10`, as upstream does: no rank changes,
    but singular values do. Feature maps are the caller's: `q` and `k` come after them.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        scale: `None` means `K ** -0.5`.
        normalize: see above. Upstream's default differs from function to function; here it is False.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.linear_attn`; `C_i B_j` in the paper (arXiv 2504.19561).
    """
    scale = _check_q_k(q, k, scale)
    check_bool("normalize", normalize)
    no_decay = q.new_zeros(()).expand(q.shape)
    read_scale = None
    if normalize:
        row_sums = scale * (q.double() * k.double().cumsum(1)).sum(-1) + NORMALIZER_EPS
        # a row sum that overflowed would make a row of plausible zeros
        read_scale = 1 / finite_or_nan(row_sums)
    return GatedStateSpace(q, k, no_decay, scale=scale, read_scale=read_scale, inputs=(q, k))


@takes_sequences(q=LAYOUT, k=LAYOUT, g=LAYOUT)
def gla(
    q: Tensor,
    k: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Gated linear attention: `T_ij = scale sum_n q_in k_jn exp(g_{j+1,n} + ... + g_{i,n})`.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, H, K]`, natural logarithms of the decays (-inf empties the state); `gk` in `fused_recurrent_gla`.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.gla.chunk_gla`; GLA in appendix D.2 of the paper (arXiv 2504.19561).
    """
    scale = _check_q_k(q, k, scale)
    check_shape("g", g, q.shape, LAYOUT)
    check_same_device(q=q, g=g)
    return GatedStateSpace(q, k, g, scale=scale, inputs=(q, k, g))


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, H]")
def simple_gla(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """GLA with one gate a head: `T_ij = scale q_i . k_j exp(g_{j+1} + ... + g_i)`.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, H]`, natural logarithms of the decays; or
        g_gamma: `[H]`, one for all steps. Exactly one of the two must be given.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong, or both gates or none are given.

    Source: `fla.ops.simple_gla.chunk_simple_gla`.
    """
    scale = _check_q_k(q, k, scale)
    batch, length, heads, _ = q.shape
    if g is not None and g_gamma is None:
        check_shape("g", g, (batch, length, heads), "[B, T, H]")
        gate = g
    elif g_gamma is not None and g is None:
        check_shape("g_gamma", g_gamma, (heads,), "[H]")
        gate = g_gamma
    else:
        raise ValueError(f"g, g_gamma: expected exactly one of them, got {'none' if g is None else 'both'}")
    check_same_device(q=q, g=g, g_gamma=g_gamma)
    return GatedStateSpace(q, k, gate[..., None].expand(q.shape), scale=scale, inputs=(q, k, gate))


@takes_sequences(q=LAYOUT, k=LAYOUT)
def retention(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Retention (RetNet): `T_ij = scale q_i . k_j gamma_h^(i-j)` with `gamma_h = 1 - 2^(-5-h)`.

    Args:
        q, k: `[B, T, H, K]` after their rotary embedding, float16, bfloat16, float32 or float64.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.retention.chunk_retention`.
    """
    scale = _check_q_k(q, k, scale)
    head = torch.arange(q.shape[2], dtype=torch.float64, device=q.device)
    log_gamma = torch.log1p(-torch.exp2(-5 - head))
    return GatedStateSpace(q, k, log_gamma[:, None].expand(q.shape), scale=scale, inputs=(q, k))


@takes_sequences(q=LAYOUT, k=LAYOUT)
def wla(
    q: Tensor,
    k: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """WLA, which is GLA with fixed gates: `T_ij = scale sum_n q_in k_jn exp((i - j) g_n)`.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[H, K]`, natural logarithms of the decays, the same at every step.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: WLA in appendix D.2 of the paper (arXiv 2504.19561).
    """
    scale = _check_q_k(q, k, scale)
    check_shape("g", g, q.shape[2:], "[H, K]")
    check_same_device(q=q, g=g)
    return GatedStateSpace(q, k, g.expand(q.shape), scale=scale, inputs=(q, k, g))


@takes_sequences(q=LAYOUT, k=LAYOUT, dt=("[B, T, H]", LAYOUT))
def gla_s6(
    q: Tensor,
    k: Tensor,
    dt: Tensor,
    alpha: float,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """GLA with the gates of S6: `T_ij = scale sum_n q_in k_jn exp(-n/alpha (dt_{j+1,n} + ... + dt_{i,n}))`, n from 1.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        dt: step sizes after their softplus, `[B, T, H]` or `[B, T, H, K]`.
        alpha: positive; the paper's experiments vary it around 1000.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: GLA-S6 in section 5.1 and appendix D.2 of the paper (arXiv 2504.19561).
    """
    scale = _check_q_k(q, k, scale)
    alpha = finite_float("alpha", alpha, positive=True)
    if isinstance(dt, Tensor) and dt.dim() == 3:
        check_shape("dt", dt, q.shape[:3], "[B, T, H]")
        steps = dt[..., None]
    else:
        check_shape("dt", dt, q.shape, "[B, T, H] or [B, T, H, K]")
        steps = dt
    check_same_device(q=q, dt=dt)
    rates = torch.arange(1, q.shape[-1] + 1, dtype=torch.float64, device=q.device) / alpha
    # an infinite step is bad data, though the gate that it would make, exp(-inf) = 0, is a valid one
    g = finite_or_nan(-rates * finite_or_nan(steps.double()))
    return GatedStateSpace(q, k, g, scale=scale, inputs=(q, k, dt))
