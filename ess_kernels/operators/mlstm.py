"""xLSTM's mLSTM: exponential input gates, in units of the largest one so far."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._checks import check_layout, check_positive_size, check_same_device, check_shape
from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .separate import takes_sequences
from .structure import Operator

# what upstream adds to the normaliser, in units of the running maximum
EPS = 1e-6


@takes_sequences(q="[B, H, T, K]", k="[B, H, T, K]", i="[B, H, T]", f="[B, H, T]")
@over_time.accumulates
def mlstm(
    q: Tensor,
    k: Tensor,
    *,
    i: Tensor,
    f: Tensor,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """mLSTM: `T_tj = a_tj / (max(|a_t0 + ... + a_tt|, exp(-m_t)) + 1e-6)`, heads first as transformers' xLSTM has them.

    `a_tj = K^-1/2 q_t . k_j exp(i_j - m_t) sigmoid(f_{j+1}) ... sigmoid(f_t)`, with the running maximum
    `m_t = max(m_{t-1} + log sigmoid(f_t), i_t)` from `m_{-1} = 0` on. No `exp(i)` is formed.

    Args:
        q, k: `[B, H, T, K]`, float16, bfloat16, float32 or float64.
        i, f: `[B, H, T]`, raw gates, after their soft cap if there is one. An infinite one is bad data.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `mlstm_recurrent_sequence_native` of transformers' xLSTM.
    """
    shape = check_layout("q", q, "[B, H, T, K]")
    check_positive_size("q", "K", shape[-1])
    check_shape("k", k, shape, "[B, H, T, K]")
    check_shape("i", i, shape[:3], "[B, H, T]")
    check_shape("f", f, shape[:3], "[B, H, T]")
    check_same_device(q=q, k=k, i=i, f=f)
    inputs = (q, k, i, f)
    q, k, i, f = (x.transpose(1, 2) for x in inputs)
    scale = shape[-1] ** -0.5

    log_input, log_forget = finite_or_nan(i.double()), logsigmoid(finite_or_nan(f.double()))
    unit = _running_maximum(log_input, log_forget)
    before = over_time.previous(unit, 1, 0.0)
    # from the unit of the token before to this token's; rounding must not make the state grow
    gate = (before + log_forget - unit).clamp_max(0)
    write = (log_input - unit).exp()
    written = over_time.decayed_sum(write[..., None] * k.double(), gate.exp()[..., None], 1)
    row_sum = scale * (q.double() * written).sum(-1)
    # a row sum that overflowed would make a row of plausible zeros; exp(-m) may overflow: then the row is zero indeed
    normaliser = torch.maximum(finite_or_nan(row_sum).abs(), (-unit).exp()) + EPS
    gates = gate[..., None].expand(q.shape)
    return GatedStateSpace(q, k, gates, scale=scale, read_scale=1 / normaliser, write_scale=write, inputs=inputs)


def _running_maximum(log_input: Tensor, log_forget: Tensor) -> Tensor:
    """`m_t` `[B, T, H]`, which starts at 0 before the first token."""
    start = torch.zeros_like(log_input[:, :1])
    inputs, forgets = torch.cat([start, log_input], 1), torch.cat([start, log_forget], 1)
    return over_time.decayed_maximum(inputs, forgets, 1)[:, 1:]
