"""Log-linear attention: Mamba-2's mixer with a weight for how far back a token's bucket lies, and log L states."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_groups, check_layout, check_positive_size, check_same_device, check_shape
from .attention_kin import AttentionKin
from .layout import scale_of
from .recurrence_rows import recurrence_rows
from .separate import takes_sequences
from .structure import Operator, Tokens


def state_buckets(length: int) -> int:
    """The largest number of buckets that hold what came before a token: `ceil(log2 L)`, and at least 1."""
    return max(1, (length - 1).bit_length())


class LogLinearAttention(AttentionKin):
    """Log-linear attention; see `log_linear_attention`, whose arguments are the attributes."""

    TENSORS = ("q", "k", "g", "level_scales")
    NUMBERS = ("scale",)
    LOG_GATES = ("g",)

    def __init__(self, q: Tensor, k: Tensor, g: Tensor, level_scales: Tensor, *, scale: float):
        super().__init__(q, k, scale, (q, k, g, level_scales), heads=g.shape[2], state_size=_state_size(q))
        self.g, self.level_scales = g, level_scales

    def _hidden_sums(self, heads: Tensor, start: int, stop: int) -> Tensor:
        """`scale q_i . k_j exp(g_{j+1} + ... + g_i)`."""
        queries, keys = (self.of_heads(x, heads, 0, stop) for x in (self.q, self.k))
        decay = self.of_heads(self.g, heads, 0, stop).exp()[..., None].expand_as(queries)
        return recurrence_rows(Tokens(queries * self.scale, keys, decay, False), start, stop)

    def _cannot_overflow(self, heads: Tensor) -> Tensor:
        # nothing hides an overflow here: T itself shows it
        return torch.ones_like(heads, dtype=torch.bool)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        row = torch.arange(start, stop, device=self.device)[:, None]
        column = torch.arange(stop, device=self.device)
        # the exponent of a number in [2^(l-1), 2^l) is l, and that of 0 is 0
        level = torch.frexp((row ^ column).double()).exponent.long()
        scales = self.of_heads(self.level_scales, heads, start, stop)
        # above the diagonal levels may be beyond the last one, and T is 0
        level = level.clamp_max(scales.shape[-1] - 1).expand(len(heads), -1, -1)
        return self._hidden_sums(heads, start, stop) * scales.gather(-1, level)


def _state_size(q: Tensor) -> int:
    return q.shape[-1] * state_buckets(q.shape[1])


@takes_sequences(q="[B, T, G, K]", k="[B, T, G, K]", g="[B, T, H]", level_scales="[B, T, H, levels]")
def log_linear_attention(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    level_scales: Tensor,
    scale: float | None = 1.0,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Log-linear attention: `T_ij = scale level_scales[i, l(i, j)] q_i . k_j exp(g_{j+1} + ... + g_i)`.

    Level l(i, j) is 0 on the diagonal, else 1 + the number of the highest bit in which i and j differ (of a Fenwick
    tree). What lies before a token is at most `ceil(log2 L)` buckets of one level each, so that the state has
    `K ceil(log2 L)` numbers; answers come from rows of T all the same.

    Args:
        q, k: `[B, T, G, K]` with G dividing H: head h reads group `h // (H // G)`. float16, bfloat16, float32, float64.
        g: `[B, T, H]`, natural logarithms of the decays.
        level_scales: `[B, T, H, levels]` with at least `ceil(log2 L) + 1` levels. A head reads all that there are.
        scale: 1 as upstream; `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.log_linear_attn.chunk_log_linear_attn`; arXiv 2506.04761.
    """
    batch, length, groups, size = check_layout("q", q, "[B, T, G, K]")
    check_positive_size("q", "K", size)
    check_shape("k", k, q.shape, "[B, T, G, K]")
    heads = check_layout("g", g, "[B, T, H]")[2]
    check_shape("g", g, (batch, length, heads), "[B, T, H]")
    check_groups("q", groups, "G", heads)
    levels = check_layout("level_scales", level_scales, "[B, T, H, levels]")[3]
    check_shape("level_scales", level_scales, (batch, length, heads, levels), "[B, T, H, levels]")
    needed = 1 + (length - 1).bit_length() if length else 0
    if levels < needed:
        raise ValueError(f"level_scales: expected at least {needed} levels for {length} tokens, got {levels}")
    check_same_device(q=q, k=k, g=g, level_scales=level_scales)
    return LogLinearAttention(q, k, g, level_scales, scale=scale_of(scale, size))
