"""Causal softmax attention, in the layout of `torch.nn.functional.scaled_dot_product_attention`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import (
    check_floating,
    check_groups,
    check_layout,
    check_positive_size,
    check_same_device,
    check_shape,
    finite_float,
    integer,
)
from .._readable import check_plain
from .finiteness import BAND, all_finite, largest
from .separate import takes_sequences
from .structure import Operator, Tiled


class Attention(Tiled):
    """Causal softmax attention; see `attention`. The attributes are its arguments, `attn_mask` with four axes."""

    TENSORS = ("q", "k", "attn_mask", "sinks")
    NUMBERS = ("scale", "window_size", "softcap")

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        *,
        scale: float,
        attn_mask: Tensor | None,
        window_size: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ):
        inputs = [x for x in (q, k, attn_mask, sinks) if x is not None]
        super().__init__(q.shape[2], q.shape[:2], None, inputs)
        self.q, self.k = q, k
        self.scale = scale
        self.attn_mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.dim())]
        self.window_size = window_size
        self.softcap = softcap
        self.sinks = sinks

    def kv_head(self, head: Tensor) -> Tensor:
        """Which head of the keys serves each of some heads of the queries."""
        return head // max(self.q.shape[1] // max(self.k.shape[1], 1), 1)

    def _mask(self, heads: Tensor, rows: slice, columns: slice) -> Tensor:
        """A part of the mask, `[N or 1, rows, columns]`: what heads share is not repeated."""
        assert self.attn_mask is not None
        batch, head = (
            index if size > 1 else index.new_zeros(1)
            for index, size in zip(self.unravel(heads), self.attn_mask.shape[:2])
        )
        full = self.attn_mask.expand(-1, -1, self.length, self.length)
        return full[batch, head, rows, columns]

    def _scores(self, heads: Tensor, start: int, stop: int, first: int) -> Tensor:
        """`scale q_i . k_j` for rows `start..stop-1` and columns `first..stop-1`, float64."""
        batch, head = self.unravel(heads)
        q = self.q[batch, head, start:stop].double() * self.scale
        k = self.k[batch, self.kv_head(head), first:stop].double()
        return q @ k.mT

    def _logits(self, heads: Tensor, start: int, stop: int, first: int) -> Tensor:
        """The scores capped and masked, -inf where a column is not seen."""
        logits = self._scores(heads, start, stop, first)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        row = torch.arange(start, stop, device=self.device)[:, None]
        column = torch.arange(first, stop, device=self.device)
        seen = column <= row
        if self.window_size is not None:
            seen = seen & (column > row - self.window_size)
        if self.attn_mask is not None:
            band = self._mask(heads, slice(start, stop), slice(first, stop))
            if band.dtype == torch.bool:
                seen = seen & band
            else:
                logits = logits + band.double()
        return torch.where(seen, logits, -torch.inf)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        # columns before the first row's window are zero
        first = 0 if self.window_size is None else min(max(0, start - self.window_size + 1), stop)
        logits = self._logits(heads, start, stop, first)
        sinks = None if self.sinks is None else self.sinks[self.unravel(heads)[1]].double()[:, None, None]
        top = logits.detach().amax(-1, keepdim=True) if stop > first else logits.new_zeros(*logits.shape[:-1], 1)
        if sinks is not None:
            top = torch.maximum(top, sinks.detach())
        # a row that sees nothing has top = -inf: 0 instead keeps exp(-inf - 0) = 0, and its gradient, free of NaN
        top = top.masked_fill(top == -torch.inf, 0)
        weights = torch.exp(logits - top)
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + torch.exp(sinks - top)
        return pad(weights / total.masked_fill(total == 0, 1), (first, 0))

    @torch.no_grad()
    def finite(self, heads: Tensor) -> Tensor:
        """Looks at the raw tensors, for a mask or a window would hide a bad key, and softmax an overflowing score."""
        batch, head = self.unravel(heads)
        q, k = self.q[batch, head], self.k[batch, self.kv_head(head)]
        finite = all_finite(q) & all_finite(k)
        if self.attn_mask is not None and self.attn_mask.is_floating_point():
            mask = self._mask(heads, slice(None), slice(None))
            finite = finite & (mask.isfinite() | (mask == -torch.inf)).flatten(1).all(1)
        if self.sinks is not None:
            finite = finite & self.sinks[head].isfinite()
        bound = largest(q) * abs(self.scale) * largest(k) * self.q.shape[-1]
        if bool((finite & ~bound.isfinite()).any()):
            finite = finite & self._scores_finite(heads)
        return finite

    def _scores_finite(self, heads: Tensor) -> Tensor:
        finite = torch.ones(len(heads), dtype=torch.bool, device=heads.device)
        for start in range(0, self.length, BAND):
            scores = self._scores(heads, start, min(start + BAND, self.length), 0)
            finite &= all_finite(scores.tril(start))
        return finite


@takes_sequences(q="[B, H, L, E]", k="[B, Hkv, L, E]", attn_mask=("[L, L]", "[H, L, L]", "[B, H, L, L]"))
def attention(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = True,
    window_size: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Causal softmax attention: `T_ij = exp(z_ij) / (sum_{r <= i} exp(z_ir) + exp(sink))`.

    Here `z_ij = cap(scale q_i . k_j) + mask_ij`, with the sink's term only if there are sinks. Columns `j > i` are
    always masked. A row that sees no column at all is 0. There is no finite state: `state_size` is `None`, and the
    theoretically realisable state size at position i is i.

    Args:
        q: `[B, H, L, E]`, float16, bfloat16, float32 or float64.
        k: `[B, Hkv, L, E]`; `Hkv` divides `H`, head `h` reads key head `h // (H // Hkv)` (grouped queries).
        scale: `None` means `E ** -0.5`.
        attn_mask: broadcastable to `[B, H, L, L]`; bool (True = keep) or additive floating point (-inf = drop). It is
            intersected with the causal triangle.
        is_causal: must stay True: a mixer that sees the future has no state.
        window_size: row i sees the columns `i - window_size + 1 .. i` only.
        softcap: scores become `softcap * tanh(scores / softcap)`, before the mask; positive.
        sinks: `[H]`, one more logit a head in the denominator, so that rows sum to less than 1.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `F.scaled_dot_product_attention`; SA in appendix D.2 of the paper (arXiv 2504.19561).
    """
    batch, heads, length, size = check_layout("q", q, "[B, H, L, E]")
    check_positive_size("q", "E", size)
    groups = check_layout("k", k, "[B, Hkv, L, E]")[1]
    check_shape("k", k, (batch, groups, length, size), "[B, Hkv, L, E]")
    check_groups("k", groups, "Hkv", heads)
    if is_causal is not True:
        raise ValueError(f"is_causal: expected True (a mixer that sees the future has no state), got {is_causal}")
    if attn_mask is not None:
        _check_mask(attn_mask, (batch, heads, length, length))
    if window_size is not None:
        window_size = integer("window_size", window_size, minimum=1)
    if softcap is not None:
        softcap = finite_float("softcap", softcap, positive=True)
    if sinks is not None:
        check_shape("sinks", sinks, (heads,), "[H]")
    check_same_device(q=q, k=k, attn_mask=attn_mask, sinks=sinks)
    return Attention(
        q,
        k,
        scale=size**-0.5 if scale is None else finite_float("scale", scale),
        attn_mask=attn_mask,
        window_size=window_size,
        softcap=softcap,
        sinks=sinks,
    )


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        check_floating("attn_mask (if not bool)", mask)
    check_plain("attn_mask", mask)
    sizes = (1,) * (4 - mask.dim()) + tuple(mask.shape)
    if len(sizes) != 4 or any(size not in (1, full) for size, full in zip(sizes, shape)):
        raise ValueError(
            f"attn_mask: expected a shape that broadcasts to [B, H, L, L] = {list(shape)}, got {list(mask.shape)}"
        )
