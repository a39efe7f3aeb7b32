"""RWKV-4 and RWKV-6: a row reads the state before its own token enters it, which it weighs by a bonus `u` instead."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_layout, check_same_device, check_shape
from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .layout import LAYOUT, check_q_k
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(r=LAYOUT, k=LAYOUT, w=LAYOUT)
def rwkv6(
    r: Tensor,
    k: Tensor,
    w: Tensor,
    u: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """RWKV-6: `T_ij = scale sum_n r_in k_jn exp(w_{j+1,n} + ... + w_{i-1,n})` for `i > j`.

    On the diagonal it is `T_ii = scale sum_n r_in u_n k_in`. `dense` shows it; no `H_i` contains it, so that `u`
    changes no answer, and bad data in it mark no head.

    Args:
        r, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        w: `[B, T, H, K]`, natural logarithms of the decays (-inf empties the state); RWKV's layers make them by
            `-exp(w)`.
        u: `[H, K]`.
        scale: `None` means `K ** -0.5`; RWKV's layers pass 1.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.rwkv6.chunk_rwkv6`.
    """
    scale = check_q_k(r, k, scale, names=("r", "k"))
    check_shape("w", w, r.shape, LAYOUT)
    check_shape("u", u, r.shape[2:], "[H, K]")
    check_same_device(r=r, w=w, u=u)
    diagonal = scale * (r.double() * u.double() * k.double()).sum(-1)
    return GatedStateSpace(r, k, w, scale=scale, reads_before=True, diagonal_entries=diagonal, inputs=(r, k, w, u))


@takes_sequences(k="[B, T, D]")
@over_time.accumulates
def rwkv4(
    k: Tensor, *, w: Tensor, u: Tensor, cu_seqlens: Tensor | None = None, attention_mask: Tensor | None = None
) -> Operator:
    """RWKV-4, one operator a channel: `T_ij = exp(k_j - (i - j - 1) exp(w)) / Z_i` for `i > j`.

    On the diagonal it is `exp(u + k_i) / Z_i`; `Z_i` is the sum of these exponentials along row i. They are formed in
    units of the largest one so far, so that none overflows. `u` is in every row sum.

    Args:
        k: `[B, T, D]`, float16, bfloat16, float32 or float64.
        w: `[D]`, as it is trained (`time_decay`): the logarithm of the decay is `-exp(w)`.
        u: `[D]`, `time_first`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator with batch shape `(B, D)` and one number of state.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.rwkv4.fused_recurrent_rwkv4`, `rwkv_linear_attention` of transformers.
    """
    batch, length, channels = check_layout("k", k, "[B, T, D]")
    check_shape("w", w, (channels,), "[D]")
    check_shape("u", u, (channels,), "[D]")
    check_same_device(k=k, w=w, u=u)
    key, own = finite_or_nan(k.double()), finite_or_nan(k.double() + u.double())
    log_decay = -finite_or_nan(finite_or_nan(w.double()).exp()).expand(key.shape)
    unit = over_time.decayed_maximum(key, log_decay, 1)
    before = over_time.previous(unit, 1, -torch.inf)
    # from the unit of the token before to this token's; rounding must not make the state grow
    gate = (before + log_decay - unit).clamp_max(0)
    write = (key - unit).exp()
    written = over_time.previous(over_time.decayed_sum(write, gate.exp(), 1), 1, 0.0)
    largest = torch.maximum(before, own)
    read, present = (before - largest).exp(), (own - largest).exp()
    row_sum = read * written + present
    one = key.new_ones(()).expand(batch, length, 1, 1)
    return GatedStateSpace(
        one,
        one,
        gate[..., None],
        read_scale=read / row_sum,
        write_scale=write,
        diagonal_entries=present / row_sum,
        reads_before=True,
        inputs=(k, w, u),
    )
