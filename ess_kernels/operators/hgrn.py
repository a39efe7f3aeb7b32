"""Gated recurrences with one number of state a channel, HGRN and RG-LRU, and HGRN-2, whose keys are its gates."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_layout, check_same_device
from .._readable import check_plain
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .layout import LAYOUT, check_q_k
from .recurrence import LinearRecurrence
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(g="[B, T, D]")
def hgrn(g: Tensor, *, cu_seqlens: Tensor | None = None, attention_mask: Tensor | None = None) -> Operator:
    """HGRN, one operator a channel: `T_ij = exp(g_{j+1} + ... + g_i)`.

    Args:
        g: `[B, T, D]`, natural logarithms of the decays (-inf empties the state), float16, bfloat16, float32 or
            float64.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator with batch shape `(B, D)` and one number of state: no rank exceeds 1.

    Raises:
        TypeError, ValueError: the type, the dtype or the number of axes is wrong.

    Source: `fla.ops.hgrn.fused_recurrent_hgrn`; the values are its `x`.
    """
    batch, length, _ = check_layout("g", g, "[B, T, D]")
    one = g.new_ones(()).expand(batch, length, 1, 1)
    return GatedStateSpace(one, one, g[..., None], inputs=(g,))


@takes_sequences(q=LAYOUT, g=LAYOUT)
def hgrn2(
    q: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """HGRN-2: gated linear attention whose keys are `1 - exp(g)`.

    Args:
        q: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, H, K]`, natural logarithms of the decays (-inf empties the state).
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.layers.HGRN2Attention`, which calls `fla.ops.gla.chunk_gla`.
    """
    scale = check_q_k(q, g, scale, names=("q", "g"))
    return GatedStateSpace(q, -torch.expm1(g.double()), g, scale=scale, inputs=(q, g))


@takes_sequences(a="[B, T, D]", reset="[B, T]")
def rg_lru(
    a: Tensor, *, reset: Tensor | None = None, cu_seqlens: Tensor | None = None, attention_mask: Tensor | None = None
) -> Operator:
    """The RG-LRU of Griffin, one operator a channel: `T_ij = a_i ... a_{j+1} sqrt(1 - a_j^2)`.

    Where a sequence is reset, `a` is 0 and the gain 1. Upstream resets where a position id is 0, so usually at the
    first token as well.

    Args:
        a: `[B, T, D]`, decays in (0, 1) and no logarithms, `exp(-8 softplus(parameter) sigmoid(...))`; float16,
            bfloat16, float32 or float64. A magnitude above 1 has no gain and counts as bad data.
        reset: bool `[B, T]`; `None` means nowhere.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator with batch shape `(B, D)` and one number of state: no rank exceeds 1.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `RecurrentGemmaRglru` of transformers; the input gate belongs to the values.
    """
    batch, length, channels = check_layout("a", a, "[B, T, D]")
    decay = finite_or_nan(a.double())
    gain = ((1 - decay) * (1 + decay)).sqrt()
    if reset is not None:
        _check_reset(reset, (batch, length))
        check_same_device(a=a, reset=reset)
        gain = torch.where(reset[..., None] & decay.isfinite(), 1.0, gain)
        decay = decay * ~reset[..., None]  # a product, which leaves bad data visible
    one = decay.new_ones(()).expand(batch, channels, length, 1)
    A, B = (x.transpose(1, 2)[..., None] for x in (decay, gain))
    return LinearRecurrence(A, B, one, diagonal=True, length=length, constant=False, reads_before=False, inputs=(a,))


def _check_reset(reset: Tensor, shape: tuple[int, int]) -> None:
    if not isinstance(reset, Tensor) or reset.dtype != torch.bool:
        kind = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(f"reset: expected a bool tensor [B, T], got {kind}")
    check_plain("reset", reset)
    if tuple(reset.shape) != shape:
        raise ValueError(f"reset: expected shape [B, T] = {list(shape)}, got {list(reset.shape)}")
