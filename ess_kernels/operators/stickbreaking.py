"""Stick-breaking attention: every key breaks its share off what nearer keys have left of a stick of length 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from .._checks import check_bool, check_same_device
from .attention_kin import AttentionKin, check_queries_and_keys
from .layout import scale_of
from .separate import takes_sequences
from .softmax import causal_window
from .structure import Operator


class StickbreakingAttention(AttentionKin):
    """Stick-breaking attention; see `stickbreaking_attention`, whose arguments are the attributes."""

    TENSORS = ("q", "k")
    NUMBERS = ("scale", "attend_current")

    def __init__(self, q: Tensor, k: Tensor, *, scale: float, attend_current: bool):
        super().__init__(q, k, scale, (q, k))
        self.attend_current = attend_current

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        z = self.scores(heads, start, stop)
        seen = causal_window(start, stop, 0, None, self.device)
        seen = seen if self.attend_current else seen.tril(start - 1)
        # what each key leaves of the stick, and what all nearer ones have left before it: sums, never differences
        left = torch.where(seen, logsigmoid(-z), 0.0)
        left_before = pad(left.flip(-1).cumsum(-1)[..., : max(stop - 1, 0)], (min(stop, 1), 0)).flip(-1)
        return torch.where(seen, torch.exp(logsigmoid(z) + left_before), 0.0)


@takes_sequences(q="[B, T, HQ, K]", k="[B, T, H, K]")
def stickbreaking_attention(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    attend_current: bool = False,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Stick-breaking attention: `T_ij = sigmoid(z_ij) prod_{j < l < i} sigmoid(-z_il)`, `z_ij = scale q_i . k_j`.

    A row sums to 1 at most. There is no finite state.

    Args:
        q: `[B, T, HQ, K]`, float16, bfloat16, float32 or float64.
        k: `[B, T, H, K]` with H dividing HQ: query head h reads head `h // (HQ // H)`.
        scale: `None` means `K ** -0.5`.
        attend_current: whether a row sees its own token, which then breaks the stick first (`l <= i` above). Without it
            the diagonal is 0, and the first row too.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.stickbreaking_attn.parallel_stickbreaking_attn`; arXiv 2410.17980.
    """
    size = check_queries_and_keys(q, k)[3]
    check_bool("attend_current", attend_current)
    check_same_device(q=q, k=k)
    return StickbreakingAttention(q, k, scale=scale_of(scale, size), attend_current=attend_current)
