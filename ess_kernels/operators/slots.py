"""Mixers that write into slots and read them by a softmax: gated slot attention, ABC, and LightNet."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_groups, check_layout, check_positive_size, check_same_device, check_shape
from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .layout import LAYOUT, check_q_k, scale_of
from .matrix_states import read_states
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(q=LAYOUT, k=LAYOUT, s="[B, T, H, M]", g="[B, T, H, M]")
@over_time.accumulates
def gsa(
    q: Tensor,
    k: Tensor,
    s: Tensor,
    *,
    g: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Gated slot attention: `T_ij = sum_m p_im s_jm exp(g_{j+1,m} + ... + g_{i,m})`.

    `p_i` is the softmax over slots of what a first pass, with the keys as its values, reads in them:
    `scale sum_j (q_i . k_j) s_jm exp(g_{j+1,m} + ... + g_{i,m})`.

    Args:
        q: `[B, T, HQ, K]`, float16, bfloat16, float32 or float64.
        k: `[B, T, H, K]` with `H` dividing `HQ`: query head h reads key head `h // (HQ // H)`.
        s: `[B, T, H, M]`, what each token writes into the M slots.
        g: `[B, T, H, M]`, natural logarithms of the decays (-inf empties a slot). `None` is ABC: `s` are logits, and a
            slot averages what was written into it by the softmax of its logits so far.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator with batch shape `(B, HQ)` and M numbers of state.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.gsa.chunk_gsa`, `fla.ops.abc.chunk_abc`.
    """
    batch, length, query_heads, size = check_layout("q", q, LAYOUT)
    check_positive_size("q", "K", size)
    heads = check_layout("k", k, LAYOUT)[2]
    check_groups("k", heads, "H", query_heads)
    check_shape("k", k, (batch, length, heads, size), LAYOUT)
    slots = check_layout("s", s, "[B, T, H, M]")[3]
    check_positive_size("s", "M", slots)
    check_shape("s", s, (batch, length, heads, slots), "[B, T, H, M]")
    if g is not None:
        check_shape("g", g, s.shape, "[B, T, H, M]")
    check_same_device(q=q, k=k, s=s, g=g)
    scale = scale_of(scale, size)
    inputs = [x for x in (q, k, s, g) if x is not None]
    if g is None:
        written, gate = over_time.softmax_over_time(finite_or_nan(s.double()), 1)
    else:
        written, gate = s.double(), g.double()
    sharing = query_heads // max(heads, 1)

    def slots_seen(states: Tensor, queries: Tensor) -> Tensor:
        return queries @ states  # [..., sharing, K] and [..., K, M]

    queries = (scale * q.double()).unflatten(2, (heads, sharing)) if heads else q.double().unflatten(2, (0, 1))
    seen = read_states(k.double(), written, gate.exp()[..., None, :], slots_seen, queries)
    # softmax would make a weight of zero out of an infinite number
    weights = torch.softmax(finite_or_nan(seen), -1).flatten(2, 3)
    gate = gate if sharing == 1 else gate.repeat_interleave(sharing, 2)
    return GatedStateSpace(weights, written, gate, inputs=inputs)


@takes_sequences(q=LAYOUT, k=LAYOUT)
@over_time.accumulates
def lightnet(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """LightNet: `T_ij = scale sum_n q_in exp(k_jn) / (exp(k_0n) + ... + exp(k_in))`.

    It is gated linear attention with gates and keys from `logcumsumexp(k)` over the time; no exponential overflows.

    Args:
        q: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        k: `[B, T, H, K]`, logits.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.lightnet.chunk_lightnet`.
    """
    scale = check_q_k(q, k, scale)
    written, gate = over_time.softmax_over_time(finite_or_nan(k.double()), 1)
    return GatedStateSpace(q, written, gate, scale=scale, inputs=(q, k))
