"""Wall attention: softmax over what gated linear attention would mix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import check_same_device, check_shape
from .attention_kin import QUERIES, AttentionKin, check_queries_and_keys
from .layout import scale_of
from .recurrence_rows import recurrence_rows
from .separate import takes_sequences
from .softmax import causal_window, check_window, first_column, gates_between, softmax_rows
from .sparsity import Sparsity
from .structure import Operator, Tokens


class WallAttention(AttentionKin):
    """Wall attention; see `wall_attention`, whose arguments are the attributes."""

    TENSORS = ("q", "k", "g", "g_scalar", "sinks")
    NUMBERS = ("scale", "window_size")
    LOG_GATES = ("g", "g_scalar", "sinks")

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        g: Tensor,
        g_scalar: Tensor | None,
        sinks: Tensor | None,
        *,
        scale: float,
        window_size: int | None,
    ):
        super().__init__(q, k, scale, (q, k, g, g_scalar, sinks))
        self.g, self.g_scalar, self.sinks = g, g_scalar, sinks
        self.window_size = window_size

    def _decayed_scores(self, heads: Tensor, start: int, stop: int, first: int) -> Tensor:
        """`scale sum_n q_in k_jn exp(g_{j+1,n} + ... + g_{i,n})`; tokens before `first` are left out."""
        queries, keys, gates = (self.of_heads(x, heads, first, stop) for x in (self.q, self.k, self.g))
        return recurrence_rows(Tokens(queries * self.scale, keys, gates.exp(), False), start - first, stop - first)

    def _hidden_sums(self, heads: Tensor, start: int, stop: int) -> Tensor:
        return self._decayed_scores(heads, start, stop, 0)

    def _cannot_overflow(self, heads: Tensor) -> Tensor:
        decaying = (self.of_heads(self.g, heads) <= 0).flatten(1).all(1)
        return decaying & self._largest_score(heads).isfinite()

    def sparsity(self, heads: Tensor) -> Sparsity | None:
        return self.of_window(heads, self.window_size)

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> WallAttention:
        q, k, g = (self.at_tokens(x, heads, tokens) for x in (self.q, self.k, self.g))
        scalar = None if self.g_scalar is None else self.at_tokens(self.g_scalar, heads, tokens)
        sinks = None if self.sinks is None else self.sinks[self.unravel(heads)[1]]
        return WallAttention(q, k, g, scalar, sinks, scale=self.scale, window_size=self.window_size)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        first = first_column(start, self.window_size, stop)
        logits = self._decayed_scores(heads, start, stop, first)
        if self.g_scalar is not None:
            logits = logits + gates_between(self.of_heads(self.g_scalar, heads, first, stop), start, first)
        seen = causal_window(start, stop, first, self.window_size, self.device)
        sinks = None if self.sinks is None else self.sinks[self.unravel(heads)[1]]
        return pad(softmax_rows(torch.where(seen, logits, -torch.inf), sinks), (first, 0))


@takes_sequences(q="[B, T, HQ, K]", k="[B, T, H, K]", g="[B, T, HQ, K]", g_scalar="[B, T, HQ]")
def wall_attention(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    g_scalar: Tensor | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Wall attention: `T_ij = exp(z_ij) / (sum_{r <= i} exp(z_ir) + exp(sink))`.

    Here `z_ij = scale sum_n q_in k_jn exp(g_{j+1,n} + ... + g_{i,n}) + c_{j+1} + ... + c_i` with the scalar gates c. A
    gate of -inf makes scores 0, which is no small logit; a scalar gate of -inf hides what lies before its token. There
    is no finite state.

    Args:
        q: `[B, T, HQ, K]`, float16, bfloat16, float32 or float64.
        k: `[B, T, H, K]` with H dividing HQ: query head h reads head `h // (HQ // H)`.
        g: `[B, T, HQ, K]`, natural logarithms of the decays of every channel.
        g_scalar: `[B, T, HQ]`, natural logarithms of decays of the weights, or None.
        sinks: `[HQ]`, one more logit a head in the denominator (`sink_bias` upstream), or None; -inf is no sink.
        scale: `None` means `K ** -0.5`.
        window_size: row i sees the columns `i - window_size + 1 .. i` only.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.wall_attn.parallel_wall_attn`.
    """
    batch, length, heads, size = check_queries_and_keys(q, k)
    check_shape("g", g, q.shape, QUERIES)
    if g_scalar is not None:
        check_shape("g_scalar", g_scalar, (batch, length, heads), "[B, T, HQ]")
    if sinks is not None:
        check_shape("sinks", sinks, (heads,), "[HQ]")
    check_same_device(q=q, k=k, g=g, g_scalar=g_scalar, sinks=sinks)
    return WallAttention(q, k, g, g_scalar, sinks, scale=scale_of(scale, size), window_size=check_window(window_size))
