"""PaTH attention: softmax attention whose positions are products of Householder-like matrices of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_same_device, check_shape
from .attention_kin import KEYS, AttentionKin, check_queries_and_keys
from .layout import scale_of
from .recurrence_rows import recurrence_rows
from .separate import takes_sequences
from .softmax import causal_window, gates_between, softmax_rows
from .structure import Operator, Tokens


class PathAttention(AttentionKin):
    """PaTH attention; see `path_attention`, whose arguments are the attributes."""

    TENSORS = ("q", "k", "w", "beta", "g")
    NUMBERS = ("scale",)
    LOG_GATES = ("g",)

    def __init__(self, q: Tensor, k: Tensor, w: Tensor, beta: Tensor, g: Tensor | None, *, scale: float):
        super().__init__(q, k, scale, (q, k, w, beta, g))
        self.w, self.beta, self.g = w, beta, g

    def _hidden_sums(self, heads: Tensor, start: int, stop: int) -> Tensor:
        """`scale q_i . P_i ... P_{j+1} k_j`: what a delta rule without values would mix."""
        queries, keys, lookup = (self.of_heads(x, heads, 0, stop) for x in (self.q, self.k, self.w))
        update = -self.of_heads(self.beta, heads, 0, stop)[..., None] * lookup
        one = torch.ones_like(queries)
        return recurrence_rows(Tokens(queries * self.scale, keys, one, False, lookup, update), start, stop)

    def _cannot_overflow(self, heads: Tensor) -> Tensor:
        beta, w = (self.of_heads(x, heads) for x in (self.beta, self.w))
        # with beta |w|^2 in [0, 2] no P_t makes a vector longer; rounding to a little more adds up to less than 2
        step = beta * w.square().sum(-1)
        return ((step >= 0) & (step <= 2 + 1e-9)).all(1) & (2 * self._largest_score(heads)).isfinite()

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        logits = self._hidden_sums(heads, start, stop)
        if self.g is not None:
            logits = logits + gates_between(self.scale * self.of_heads(self.g, heads, 0, stop), start, 0)
        return softmax_rows(torch.where(causal_window(start, stop, 0, None, self.device), logits, -torch.inf))


@takes_sequences(q="[B, T, HQ, K]", k="[B, T, H, K]", w="[B, T, H, K]", beta="[B, T, H]", g="[B, T, HQ]")
def path_attention(
    q: Tensor,
    k: Tensor,
    *,
    w: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """PaTH attention: `T_ij = softmax over j <= i of scale (q_i . P_i ... P_{j+1} k_j + g_{j+1} + ... + g_i)`.

    With `P_t = I - beta_t w_t w_t^T`. The gates are multiplied by the scale as well, as upstream does. There is no
    finite state.

    Args:
        q: `[B, T, HQ, K]`, float16, bfloat16, float32 or float64.
        k, w: `[B, T, H, K]` with H dividing HQ: query head h reads head `h // (HQ // H)`. `w` after its normalisation.
        beta: `[B, T, H]`.
        g: `[B, T, HQ]`, natural logarithms of decays, or None; -inf hides all that lies before its token. Beside gates
            the scale must be positive.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.path_attn.parallel_path_attn`; arXiv 2505.16381.
    """
    batch, length, heads, size = check_queries_and_keys(q, k)
    check_shape("w", w, k.shape, KEYS)
    check_shape("beta", beta, k.shape[:3], "[B, T, H]")
    if g is not None:
        check_shape("g", g, (batch, length, heads), "[B, T, HQ]")
    check_same_device(q=q, k=k, w=w, beta=beta, g=g)
    scale = scale_of(scale, size)
    if g is not None and scale <= 0:
        raise ValueError(f"scale: expected a positive number beside g, which it multiplies, got {scale}")
    return PathAttention(q, k, w, beta, g, scale=scale)
