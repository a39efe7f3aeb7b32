"""Native sparse attention: means of blocks, chosen blocks and a window, each with a softmax and a gate of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import check_same_device, check_shape, integer
from .._readable import check_plain
from .attention_kin import AttentionKin, check_queries_and_keys
from .layout import scale_of
from .separate import takes_sequences
from .softmax import causal_window, softmax_rows
from .structure import Operator


class NativeSparseAttention(AttentionKin):
    """Native sparse attention; see `nsa`, whose arguments are the attributes."""

    TENSORS = ("q", "k", "g_cmp", "g_slc", "g_swa", "block_indices")
    NUMBERS = ("scale", "block_size", "window_size")

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        g_cmp: Tensor | None,
        g_slc: Tensor | None,
        g_swa: Tensor | None,
        block_indices: Tensor,
        *,
        scale: float,
        block_size: int,
        window_size: int,
    ):
        super().__init__(q, k, scale, (q, k, g_cmp, g_slc, g_swa, block_indices))
        self.g_cmp, self.g_slc, self.g_swa = g_cmp, g_slc, g_swa
        self.block_indices = block_indices
        self.block_size, self.window_size = block_size, window_size

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        scores = self.scores(heads, start, stop)
        T = self._gated(self.g_slc, self._chosen(scores, heads, start, stop), heads, start, stop)
        if self.g_swa is not None:
            seen = causal_window(start, stop, 0, self.window_size, self.device)
            weights = softmax_rows(torch.where(seen, scores, -torch.inf))
            T = T + self._gated(self.g_swa, weights, heads, start, stop)
        if self.g_cmp is not None:
            T = T + self._gated(self.g_cmp, self._means(heads, start, stop), heads, start, stop)
        return T

    def _gated(self, gate: Tensor | None, weights: Tensor, heads: Tensor, start: int, stop: int) -> Tensor:
        return weights if gate is None else self.of_heads(gate, heads, start, stop)[..., None] * weights

    def _chosen(self, scores: Tensor, heads: Tensor, start: int, stop: int) -> Tensor:
        """The weights of the tokens in the blocks that a row has chosen, up to its own."""
        batch, head = self.unravel(heads)
        group = head // max(self.batch_shape[1] // max(self.k.shape[2], 1), 1)
        blocks = -(-stop // self.block_size)
        index = self.block_indices[batch, start:stop, group].long()
        # what is no block of the band goes into one more, which is dropped
        index = torch.where((index >= 0) & (index < blocks), index, blocks)
        times = scores.new_zeros(*scores.shape[:2], blocks + 1).scatter_add_(-1, index, torch.ones_like(index).double())
        times = times[..., :blocks].repeat_interleave(min(self.block_size, max(stop, 1)), -1)[..., :stop]
        seen = causal_window(start, stop, 0, None, self.device) & (times > 0)
        # the logarithm of 1, or of how often a block was chosen
        return softmax_rows(torch.where(seen, scores + times.clamp_min(1).log(), -torch.inf))

    def _means(self, heads: Tensor, start: int, stop: int) -> Tensor:
        """The weights of the means of complete blocks, spread over their tokens."""
        size = self.block_size
        complete = stop // size
        # divided first: the sum of a block may overflow where its mean does not
        keys = (self.of_heads(self.k, heads, 0, complete * size) / size).unflatten(1, (complete, size)).sum(2)
        scores = self.of_heads(self.q, heads, start, stop) * self.scale @ keys.mT
        row = torch.arange(start, stop, device=self.device)[:, None]
        last = torch.arange(1, complete + 1, device=self.device) * size - 1
        weights = softmax_rows(torch.where(last <= row, scores, -torch.inf)) / size
        return pad(weights.repeat_interleave(size, -1), (0, stop - complete * size))


@takes_sequences(
    q="[B, T, HQ, K]",
    k="[B, T, H, K]",
    g_cmp="[B, T, HQ]",
    g_slc="[B, T, HQ]",
    g_swa="[B, T, HQ]",
    block_indices="[B, T, H, S]",
)
def nsa(
    q: Tensor,
    k: Tensor,
    *,
    g_cmp: Tensor | None,
    g_slc: Tensor | None,
    g_swa: Tensor | None,
    block_indices: Tensor,
    block_size: int,
    window_size: int,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Native sparse attention: `T = g_cmp P_cmp M + g_slc P_slc + g_swa P_swa`, row by row.

    M takes means of blocks of tokens, and P_cmp is the softmax of `scale q . (mean of the block's keys)` over the
    blocks that are complete at the row's token. P_slc is a softmax over the tokens, up to the row's own, of the blocks
    that the row has chosen, a block that is named twice counting twice. P_swa is one over a window. A row that sees
    nothing in one of them is 0 there. The choice is data: it is never made here. There is no finite state.

    Args:
        q: `[B, T, HQ, K]`, float16, bfloat16, float32 or float64.
        k: `[B, T, H, K]` with H dividing HQ, by any factor: query head h reads head `h // (HQ // H)`.
        g_cmp: `[B, T, HQ]`, gates after their sigmoid; None leaves the means out.
        g_slc: `[B, T, HQ]`; None means 1.
        g_swa: `[B, T, HQ]`. Not read where `window_size` is 0; else it must be given.
        block_indices: `[B, T, H, S]`, int32 or int64, the numbers of the chosen blocks; -1, and what lies after the
            row's token, is no choice.
        block_size: tokens a block.
        window_size: row i sees the columns `i - window_size + 1 .. i` in P_swa, which 0 leaves out.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.nsa.parallel_nsa` with its `block_indices`; arXiv 2502.11089.
    """
    batch, length, heads, size = check_queries_and_keys(q, k)
    for name, gate in (("g_cmp", g_cmp), ("g_slc", g_slc), ("g_swa", g_swa)):
        if gate is not None:
            check_shape(name, gate, (batch, length, heads), "[B, T, HQ]")
    _check_indices(block_indices, k)
    block_size = integer("block_size", block_size, minimum=1)
    window_size = integer("window_size", window_size, minimum=0)
    if window_size and g_swa is None:
        raise ValueError(f"g_swa: expected a tensor [B, T, HQ] with window_size = {window_size}, got None")
    check_same_device(q=q, k=k, g_cmp=g_cmp, g_slc=g_slc, g_swa=g_swa, block_indices=block_indices)
    return NativeSparseAttention(
        q,
        k,
        g_cmp,
        g_slc,
        g_swa if window_size else None,
        block_indices,
        scale=scale_of(scale, size),
        block_size=block_size,
        window_size=window_size,
    )


def _check_indices(block_indices: Any, k: Tensor) -> None:
    if not isinstance(block_indices, Tensor) or block_indices.dtype not in (torch.int32, torch.int64):
        kind = getattr(block_indices, "dtype", type(block_indices).__name__)
        raise TypeError(f"block_indices: expected an int32 or int64 tensor [B, T, H, S], got {kind}")
    check_plain("block_indices", block_indices)
    if block_indices.dim() != 4 or block_indices.shape[:3] != k.shape[:3]:
        expected = f"[B, T, H, S] = {[*k.shape[:3]]} and any S"
        raise ValueError(f"block_indices: expected shape {expected}, got {list(block_indices.shape)}")
