"""Linear attention and its gated kin, in flash-linear-attention's layout `[B, T, H, K]`, gates natural logarithms."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    check_bool,
    check_floating,
    check_same_device,
    check_shape,
    finite_float,
    integer,
)
from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .layout import LAYOUT, check_q_k
from .separate import takes_sequences
from .structure import Operator

# what upstream adds to the row sums of normalised linear attention
NORMALIZER_EPS = 1e-10


def _check_gate(name: str, gate: Any, q: Tensor, layout: str) -> int:
    """The number of heads HV of a gate, which is a multiple of the H of `q`; `ValueError` if its shape does not fit."""
    check_floating(name, gate)
    sizes = dict(zip(("B", "T", "HV", "K"), q.shape))
    axes = layout.strip("[]").split(", ")
    expected = [sizes[axis] for axis in axes]
    shape, heads = list(gate.shape), q.shape[2]
    place = axes.index("HV")
    if len(shape) == len(expected):
        value_heads = expected[place] = shape[place]
        if shape == expected and (value_heads == heads or (heads and value_heads % heads == 0)):
            return value_heads
        expected[place] = heads
    raise ValueError(f"{name}: expected shape {layout} = {expected}, or HV a multiple of {heads}, got {shape}")


def _shape(q: Tensor, value_heads: int) -> tuple[int, ...]:
    """`[B, T, HV, K]`."""
    return (*q.shape[:2], value_heads, q.shape[3])


def _value_heads(num_v_heads: int | None, q: Tensor) -> int:
    """The number of heads of a family that is given no gates."""
    heads = q.shape[2]
    if num_v_heads is None:
        return heads
    value_heads = integer("num_v_heads", num_v_heads, minimum=0)
    if value_heads != heads and (heads < 1 or value_heads % heads):
        raise ValueError(f"num_v_heads: expected a multiple of q's {heads} heads, got {value_heads}")
    return value_heads


@takes_sequences(q=LAYOUT, k=LAYOUT)
def linear_attention(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    normalize: bool = False,
    num_v_heads: int | None = None,
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
        num_v_heads: HV, if it is not H: value head h reads `q`, `k` of head `h // (HV // H)`, and the batch shape is
            `(B, HV)`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.linear_attn`; `C_i B_j` in the paper (arXiv 2504.19561).
    """
    scale = check_q_k(q, k, scale)
    check_bool("normalize", normalize)
    value_heads = _value_heads(num_v_heads, q)
    if normalize:
        return _normalized(q, k, scale, value_heads, None)
    return GatedStateSpace(q, k, _no_decay(q, value_heads), scale=scale, inputs=(q, k))


def _no_decay(q: Tensor, value_heads: int) -> Tensor:
    return q.new_zeros(()).expand(_shape(q, value_heads))


def _normalized(q: Tensor, k: Tensor, scale: float, value_heads: int, earlier: Tensor | None) -> GatedStateSpace:
    """Normalised linear attention, whose row sums begin with the sum `[B, H, K]` of earlier keys, if there are any."""
    sums = over_time.cumsum(k.double(), 1)
    if earlier is not None:
        sums = sums + earlier[:, None]
    row_sums = scale * (q.double() * sums).sum(-1) + NORMALIZER_EPS
    # a row sum that overflowed would make a row of plausible zeros
    read_scale = 1 / finite_or_nan(row_sums)
    if value_heads != q.shape[2]:
        read_scale = read_scale.repeat_interleave(value_heads // q.shape[2], 2)
    no_decay = _no_decay(q, value_heads)
    op = GatedStateSpace(q, k, no_decay, scale=scale, read_scale=read_scale, inputs=(q, k))
    if earlier is None:
        resumed = functools.partial(_normalized, q, k, scale, value_heads)
        op.accumulated = over_time.Accumulated("linear_attention", functools.partial(_sum_of_keys, k), resumed)
    return op


def _sum_of_keys(k: Tensor) -> Tensor:
    return k.double().sum(1)


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
        g: `[B, T, HV, K]`, natural logarithms of the decays (-inf empties the state); `gk` in `fused_recurrent_gla`. HV
            is H or a multiple: value head h reads `q`, `k` of head `h // (HV // H)`, and the batch shape is `(B, HV)`.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.gla.chunk_gla`; GLA in appendix D.2 of the paper (arXiv 2504.19561).
    """
    scale = check_q_k(q, k, scale)
    _check_gate("g", g, q, "[B, T, HV, K]")
    check_same_device(q=q, g=g)
    return GatedStateSpace(q, k, g, scale=scale, inputs=(q, k, g))


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, HV]")
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
        g: `[B, T, HV]`, natural logarithms of the decays; or
        g_gamma: `[HV]`, one for all steps. Exactly one of the two must be given. HV is H or a multiple: value head h
            reads `q`, `k` of head `h // (HV // H)`, and the batch shape is `(B, HV)`.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong, or both gates or none are given.

    Source: `fla.ops.simple_gla.chunk_simple_gla`.
    """
    scale = check_q_k(q, k, scale)
    if g is not None and g_gamma is None:
        gate, heads = g, _check_gate("g", g, q, "[B, T, HV]")
    elif g_gamma is not None and g is None:
        gate, heads = g_gamma, _check_gate("g_gamma", g_gamma, q, "[HV]")
    else:
        raise ValueError(f"g, g_gamma: expected exactly one of them, got {'none' if g is None else 'both'}")
    check_same_device(q=q, g=g, g_gamma=g_gamma)
    return GatedStateSpace(q, k, gate[..., None].expand(_shape(q, heads)), scale=scale, inputs=(q, k, gate))


@takes_sequences(q=LAYOUT, k=LAYOUT)
def retention(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    num_v_heads: int | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Retention (RetNet): `T_ij = scale q_i . k_j gamma_h^(i-j)` with `gamma_h = 1 - 2^(-5-h)`.

    Args:
        q, k: `[B, T, H, K]` after their rotary embedding, float16, bfloat16, float32 or float64.
        scale: `None` means `K ** -0.5`.
        num_v_heads: HV, if it is not H: value head h has `gamma_h`, reads `q`, `k` of head `h // (HV // H)`, and the
            batch shape is `(B, HV)`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.retention.chunk_retention`.
    """
    scale = check_q_k(q, k, scale)
    shape = _shape(q, _value_heads(num_v_heads, q))
    head = torch.arange(shape[2], dtype=torch.float64, device=q.device)
    log_gamma = torch.log1p(-torch.exp2(-5 - head))
    return GatedStateSpace(q, k, log_gamma[:, None].expand(shape), scale=scale, inputs=(q, k))


@takes_sequences(q=LAYOUT, k=LAYOUT)
def lightning_attention(
    q: Tensor,
    k: Tensor,
    *,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Lightning attention: `T_ij = scale q_i . k_j exp(-s_h (i - j))`, `s_h = 8 / H (1 - layer_idx / num_layers) h`.

    These slopes are fla's. MiniMax has others and no scale: `simple_gla(q, k, g_gamma=-slopes, scale=1.0)`.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        layer_idx: number of the layer, from 0 on.
        num_layers: how many layers the model has.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.lightning_attn.chunk_lightning_attn`.
    """
    scale = check_q_k(q, k, scale)
    num_layers = integer("num_layers", num_layers, minimum=1)
    layer_idx = integer("layer_idx", layer_idx, minimum=0)
    if layer_idx >= num_layers:
        raise ValueError(f"layer_idx: expected less than num_layers = {num_layers}, got {layer_idx}")
    heads = q.shape[2]
    slope = 8 / max(heads, 1) * (1 - layer_idx / num_layers)
    log_decay = -slope * torch.arange(heads, dtype=torch.float64, device=q.device)
    return GatedStateSpace(q, k, log_decay[:, None].expand(q.shape), scale=scale, inputs=(q, k))


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
    scale = check_q_k(q, k, scale)
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
    scale = check_q_k(q, k, scale)
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
