"""DeltaFormer: softmax attention to values from which attention to earlier ones was taken away."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_layout, check_positive_size, check_same_device, check_shape
from ..engine.blocks import substitute
from .attention_kin import AttentionKin
from .layout import LAYOUT
from .separate import takes_sequences
from .softmax import causal_window, softmax_rows
from .structure import Operator


class DeltaFormer(AttentionKin):
    """DeltaFormer; see `deltaformer`, whose arguments are the attributes."""

    TENSORS = ("q", "k", "beta")

    def __init__(self, q: Tensor, k: Tensor, beta: Tensor | None):
        super().__init__(q, k, q.shape[-1] ** -0.5, (q, k, beta))
        self.beta = beta

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        scores = self.scores(heads, 0, stop)
        seen = causal_window(0, stop, 0, None, self.device)
        # strictly below the diagonal: the first row sees nothing and is 0
        taken = softmax_rows(torch.where(seen.tril(-1), scores, -torch.inf))
        if self.beta is not None:
            taken = self.of_heads(self.beta, heads, 0, stop)[..., None] * taken
        weights = softmax_rows(torch.where(seen, scores, -torch.inf)[:, start:])
        one = torch.eye(stop, dtype=taken.dtype, device=taken.device)
        # what lies above the diagonal is an exact zero, of which a sum of rounding errors may leave a sign
        return substitute(one + taken, weights).tril(start)


@takes_sequences(q="[B, T, H, K]", k="[B, T, H, K]", beta="[B, T, H]")
def deltaformer(
    q: Tensor,
    k: Tensor,
    *,
    beta: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """DeltaFormer: `T = P (I + diag(beta) S)^-1` with P the rows of softmax attention, S those that see no own token.

    The values that attention P mixes are `u_t = v_t - beta_t sum_{j < t} S_tj u_j`. The scale is `K ** -0.5`. A band of
    rows needs S of all earlier rows. There is no finite state.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        beta: `[B, T, H]`, or None for ones.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.deltaformer.deltaformer_attn`; arXiv 2505.19488.
    """
    shape = check_layout("q", q, LAYOUT)
    check_positive_size("q", "K", shape[-1])
    check_shape("k", k, shape, LAYOUT)
    if beta is not None:
        check_shape("beta", beta, shape[:3], "[B, T, H]")
    check_same_device(q=q, k=k, beta=beta)
    return DeltaFormer(q, k, beta)
