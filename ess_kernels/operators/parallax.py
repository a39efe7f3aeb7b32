"""Parallax: softmax attention with a first-order correction of its weights by a second query."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import check_same_device, check_shape
from .attention_kin import QUERIES, AttentionKin, check_queries_and_keys
from .finiteness import largest
from .layout import scale_of
from .separate import takes_sequences
from .softmax import causal_window, check_window, first_column, softmax_rows
from .sparsity import Sparsity
from .structure import Operator


class Parallax(AttentionKin):
    """Parallax; see `parallax`, whose arguments are the attributes."""

    TENSORS = ("q", "r", "k")
    NUMBERS = ("scale", "window_size")

    def __init__(self, q: Tensor, r: Tensor, k: Tensor, *, scale: float, window_size: int | None):
        super().__init__(q, k, scale, (q, r, k))
        self.r = r
        self.window_size = window_size

    def _corrections(self, heads: Tensor, start: int, stop: int, first: int) -> Tensor:
        """`r_i . k_j`."""
        return self.of_heads(self.r, heads, start, stop) @ self.of_heads(self.k, heads, first, stop).mT

    def _hidden_sums(self, heads: Tensor, start: int, stop: int) -> Tensor:
        """The corrections, NaN where the score overflows."""
        scores, corrections = self.scores(heads, start, stop), self._corrections(heads, start, stop, 0)
        return torch.where(scores.isfinite(), corrections, torch.nan)

    def _cannot_overflow(self, heads: Tensor) -> Tensor:
        r, k = (largest(self.of_heads(x, heads)) for x in (self.r, self.k))
        return self._largest_score(heads).isfinite() & (r * k * self.r.shape[-1]).isfinite()

    def sparsity(self, heads: Tensor) -> Sparsity | None:
        return self.of_window(heads, self.window_size)

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> Parallax:
        q, r, k = (self.at_tokens(x, heads, tokens) for x in (self.q, self.r, self.k))
        return Parallax(q, r, k, scale=self.scale, window_size=self.window_size)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        first = first_column(start, self.window_size, stop)
        seen = causal_window(start, stop, first, self.window_size, self.device)
        weights = softmax_rows(torch.where(seen, self.scores(heads, start, stop, first), -torch.inf))
        # what is not seen has no weight; it must not make 0 * inf
        corrections = torch.where(seen, self._corrections(heads, start, stop, first), 0.0)
        mean = (weights * corrections).sum(-1, keepdim=True)
        return pad(weights * (1 + mean - corrections), (first, 0))


@takes_sequences(q="[B, T, HQ, K]", r="[B, T, HQ, K]", k="[B, T, H, K]")
def parallax(
    q: Tensor,
    r: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    window_size: int | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Parallax: `T_ij = p_ij (1 + sum_l p_il r_i . k_l - r_i . k_j)`, p the rows of softmax attention.

    Entries may be negative; rows sum to 1. There is no finite state.

    Args:
        q, r: `[B, T, HQ, K]`, float16, bfloat16, float32 or float64. The scale multiplies `q . k` only.
        k: `[B, T, H, K]` with H dividing HQ: query head h reads head `h // (HQ // H)`.
        scale: `None` means `K ** -0.5`.
        window_size: row i sees the columns `i - window_size + 1 .. i` only.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.parallax.parallel_parallax`; arXiv 2605.29157.
    """
    size = check_queries_and_keys(q, k)[3]
    check_shape("r", r, q.shape, QUERIES)
    check_same_device(q=q, r=r, k=k)
    return Parallax(q, r, k, scale=scale_of(scale, size), window_size=check_window(window_size))
