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
)
from .._readable import check_plain
from .finiteness import BAND, all_finite, finite_or_minus_inf, largest
from .layout import scale_of
from .separate import takes_sequences
from .softmax import check_window, first_column, gates_of_tile, sees, softmax_rows, softmax_sums
from .sparsity import Sparsity, sparsity_of
from .structure import Operator, Tiled
from .tile_sources import TileSource

# rows that are summed up together: few, so that some rows cost little more than they must
FEW_ROWS = 32


class SoftmaxTiles(TileSource):
    """Tiles of softmax attention from its logits. What a row is divided by is found once, at its first use."""

    def __init__(self, op: Attention, heads: Tensor):
        super().__init__(op, heads)
        self.op = op
        self.top, self.total = torch.zeros(2, len(heads), op.length, 1, dtype=torch.float64, device=op.device)
        each = max(1, min(FEW_ROWS, op.length))
        self._bands = [slice(start, min(start + each, op.length)) for start in range(0, op.length, each)]
        self._known = [False] * len(self._bands)

    def _sum_up(self, rows: slice) -> Tensor | None:
        """Finds what is missing of these rows, band by band. Logits of the rows, if they are one band that was missing.

        The logits `[N, rows, rows.stop]` have all columns up to the last row's own.
        """
        each = self._bands[0].stop if self._bands else 1
        found = None
        for number in range(rows.start // each, -(-rows.stop // each)):
            if self._known[number]:
                continue
            band = self._bands[number]
            first = 0 if band == rows else first_column(band.start, self.op.window_size, band.stop)
            logits = self.op.logits(self.heads, band, slice(first, band.stop))
            self.top[:, band], self.total[:, band] = softmax_sums(logits, self.op.sinks_of(self.heads))
            self._known[number] = True
            found = logits if band == rows else None
        return found

    def tile(self, rows: slice, columns: slice) -> Tensor:
        logits = self._sum_up(rows)
        if logits is None or columns != slice(0, rows.stop):
            logits = self.op.logits(self.heads, rows, columns)
        return logits.sub_(self.top[:, rows]).exp_().div_(self.total[:, rows])

    def largest(self) -> Tensor:
        # rows of weights sum to one, or less
        return torch.ones(len(self.heads), dtype=torch.float64, device=self.heads.device)


# A column whose mask is this far below that of the row's own column has no weight at all, where no two scores differ by
# more than the other number: `exp(-746)` is zero in float64. The lowest number of float16 is that far below 0.
FAR_BELOW = 30000.0
SCORES_APART = FAR_BELOW - 746


class Attention(Tiled):
    """Causal softmax attention; see `attention`. The attributes are its arguments, `attn_mask` with four axes."""

    TENSORS = ("q", "k", "attn_mask", "sinks", "g", "alibi_slopes")
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
        g: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
    ):
        inputs = [x for x in (q, k, attn_mask, sinks, g, alibi_slopes) if x is not None]
        super().__init__(q.shape[2], q.shape[:2], None, inputs)
        self.q, self.k = q, k
        self.scale = scale
        self.attn_mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.dim())]
        self.window_size = window_size
        self.softcap = softcap
        self.sinks = sinks
        self.g, self.alibi_slopes = g, alibi_slopes

    @property
    def depends_on_distance(self) -> bool:
        """Whether logits have terms of the tokens between row and column, which the kernels of backends do not know."""
        return self.g is not None or self.alibi_slopes is not None

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

    def _scores(self, heads: Tensor, rows: slice, columns: slice) -> Tensor:
        """`scale q_i . k_j`, float64 `[N, rows, columns]`."""
        batch, head = self.unravel(heads)
        q = self.q[batch, head, rows].double() * self.scale
        k = self.k[batch, self.kv_head(head), columns].double()
        return q @ k.mT

    def logits(self, heads: Tensor, rows: slice, columns: slice) -> Tensor:
        """The scores capped and masked, -inf where a column is not seen: float64 `[N, rows, columns]`."""
        logits = self._scores(heads, rows, columns)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.depends_on_distance:
            logits = logits + self._distance_terms(heads, rows, columns)
        seen = sees(rows, columns, self.window_size, self.device)
        if self.attn_mask is not None:
            band = self._mask(heads, rows, columns)
            if band.dtype == torch.bool:
                seen = seen & band
            else:
                logits = logits + band.double()
        return torch.where(seen, logits, -torch.inf)

    def _distance_terms(self, heads: Tensor, rows: slice, columns: slice) -> Tensor:
        """The sum of the gates from column to row, and minus the slope times their distance."""
        batch, head = self.unravel(heads)
        terms = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.g is not None:
            terms = gates_of_tile(self.g[batch, head], rows, columns)
        if self.alibi_slopes is not None:
            row = torch.arange(rows.start, rows.stop, device=self.device)[:, None]
            column = torch.arange(columns.start, columns.stop, device=self.device)
            terms = terms - self.alibi_slopes[head].double()[:, None, None] * (row - column)
        return terms

    def sparsity(self, heads: Tensor) -> Sparsity | None:
        """The window, or what rows of the mask see. Masks hide by False, by -inf, and by numbers like `finfo.min`."""
        window = self.length if self.window_size is None else min(self.window_size, self.length)
        if self.attn_mask is None:
            return None if window == self.length else Sparsity.of_width(torch.full_like(heads, window))
        alike = self._scores_alike(heads)
        known = self._mask_sparsity(heads, bool(alike.all()))
        if bool(alike.any()) and not bool(alike.all()):
            # each head decides for itself, so that it does not depend on the other heads
            low = self._mask_sparsity(heads, True)
            known = Sparsity(*(torch.where(alike, x, y) for x, y in zip(low, known, strict=True)))
        if self.depends_on_distance or window < self.length:
            # Gates, slopes and the window count every token between row and column: first columns that are taken out
            # together with a row far behind them would be at another distance from it.
            known = Sparsity.of_width(known.bandwidth)
        return known.within(window)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        first = first_column(start, self.window_size, stop)  # columns before it are zero
        logits = self.logits(heads, slice(start, stop), slice(first, stop))
        return pad(softmax_rows(logits, self.sinks_of(heads)), (first, 0))

    def sinks_of(self, heads: Tensor) -> Tensor | None:
        """The sinks of some heads, `[N]`, if there are any."""
        return None if self.sinks is None else self.sinks[self.unravel(heads)[1]]

    def own_tiles(self, heads: Tensor) -> SoftmaxTiles:
        return SoftmaxTiles(self, heads)

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> Attention:
        batch, head = self.unravel(heads)
        at, key_at = (batch[:, None], head[:, None], tokens), (batch[:, None], self.kv_head(head)[:, None], tokens)
        mask = self.attn_mask
        if mask is not None:
            mask = mask.expand(-1, -1, self.length, self.length)
            which = (x if size > 1 else torch.zeros_like(x) for x, size in zip((batch, head), mask.shape[:2]))
            mask = mask[(*(x[:, None, None] for x in which), tokens[:, :, None], tokens[:, None])][None]
        return Attention(
            self.q[at][None],
            self.k[key_at][None],
            scale=self.scale,
            attn_mask=mask,
            window_size=self.window_size,
            softcap=self.softcap,
            sinks=None if self.sinks is None else self.sinks[head],
            g=None if self.g is None else self.g[at][None],
            alibi_slopes=None if self.alibi_slopes is None else self.alibi_slopes[head],
        )

    def _masks(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """One head for each of the different masks that some heads have, and which of these is each head's."""
        assert self.attn_mask is not None
        batch, head = (
            x if size > 1 else torch.zeros_like(x) for x, size in zip(self.unravel(heads), self.attn_mask.shape[:2])
        )
        distinct, back = (batch * self.attn_mask.shape[1] + head).unique(return_inverse=True)
        return heads.new_empty(len(distinct)).scatter_(0, back, heads), back

    def _mask_sparsity(self, heads: Tensor, low_hides: bool) -> Sparsity:
        """What is known from the mask; `low_hides`: also from numbers far below that of the row's own column."""
        owners, back = self._masks(heads)

        def seen(start: int, stop: int) -> Tensor:
            mask = self._mask(owners, slice(start, stop), slice(0, stop))
            if mask.dtype == torch.bool:
                return mask
            if not low_hides:
                return mask != -torch.inf
            mask = mask.to(torch.promote_types(mask.dtype, torch.float32))
            own = mask.diagonal(start, 1, 2)[..., None]
            # A row whose own column is hidden as well may see all others, as rows of padding do. Only -inf is certain
            # to be lower than a number that is so low itself.
            return torch.where(own.abs() <= FAR_BELOW, mask > own - FAR_BELOW, mask != -torch.inf)

        return sparsity_of(seen, len(owners), self.length, self.device).of_heads(back)

    def _scores_alike(self, heads: Tensor) -> Tensor:
        """bool `[N]`: whether no two scores differ by more than `SCORES_APART`."""
        if self.depends_on_distance:
            return torch.zeros_like(heads, dtype=torch.bool)
        bound = self._largest_score(heads)
        if self.softcap is not None:
            bound = bound.clamp_max(self.softcap)
        return 2 * bound <= SCORES_APART

    def _largest_score(self, heads: Tensor) -> Tensor:
        """An upper bound of every score's magnitude, `[N]`."""
        batch, head = self.unravel(heads)
        q, k = largest(self.q[batch, head]), largest(self.k[batch, self.kv_head(head)])
        return q * abs(self.scale) * k * self.q.shape[-1]

    @torch.no_grad()
    def finite(self, heads: Tensor) -> Tensor:
        """Looks at the raw tensors, for a mask or a window would hide a bad key, and softmax an overflowing score."""
        batch, head = self.unravel(heads)
        finite = all_finite(self.q[batch, head]) & all_finite(self.k[batch, self.kv_head(head)])
        bound = self._largest_score(heads)
        if self.attn_mask is not None and self.attn_mask.is_floating_point():
            usable, magnitude = self._mask_finite(heads)
            finite, bound = finite & usable, bound + magnitude
        if self.sinks is not None:
            finite = finite & finite_or_minus_inf(self.sinks[head, None])
        if self.g is not None:
            g = self.g[batch, head]
            finite = finite & finite_or_minus_inf(g)
            bound = bound + self.length * largest(g.masked_fill(g == -torch.inf, 0.0))
        if self.alibi_slopes is not None:
            slopes = self.alibi_slopes[head]
            finite = finite & slopes.isfinite()
            bound = bound + self.length * largest(slopes[:, None])
        if bool((finite & ~bound.isfinite()).any()):
            finite = finite & self._logits_finite(heads)
        return finite

    def _mask_finite(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each head's additive mask is usable, and its largest magnitude but for -inf; by bands of rows."""
        owners, back = self._masks(heads)
        usable = torch.ones(len(owners), dtype=torch.bool, device=heads.device)
        magnitude = torch.zeros(len(owners), dtype=torch.float64, device=heads.device)
        for start in range(0, self.length, BAND):
            mask = self._mask(owners, slice(start, start + BAND), slice(None))
            usable &= finite_or_minus_inf(mask)
            magnitude = torch.maximum(magnitude, largest(mask.masked_fill(mask == -torch.inf, 0.0)))
        return usable[back], magnitude[back]

    def _logits_finite(self, heads: Tensor) -> Tensor:
        """Whether no score overflows, and no logit upwards, `[N]`; downwards it becomes a column that is not seen."""
        finite = torch.ones(len(heads), dtype=torch.bool, device=heads.device)
        for start in range(0, self.length, BAND):
            stop = min(start + BAND, self.length)
            rows, columns = slice(start, stop), slice(0, stop)
            finite &= all_finite(self._scores(heads, rows, columns).tril(start))
            finite &= finite_or_minus_inf(self.logits(heads, rows, columns))
        return finite


@takes_sequences(
    q="[B, H, L, E]",
    k="[B, Hkv, L, E]",
    attn_mask=("[L]", "[L, L]", "[H, L, L]", "[B, H, L, L]"),
    g="[B, H, L]",
)
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
    g: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Causal softmax attention: `T_ij = exp(z_ij) / (sum_{r <= i} exp(z_ir) + exp(sink))`.

    Here `z_ij = cap(scale q_i . k_j) + mask_ij + g_{j+1} + ... + g_i - slope (i - j)`, each term only if there are
    sinks, a mask, gates, slopes. Columns `j > i` are always masked. A row that sees no column at all is 0. There is no
    finite state: `state_size` is `None`, and the theoretically realisable state size at position i is i.

    Args:
        q: `[B, H, L, E]`, float16, bfloat16, float32 or float64.
        k: `[B, Hkv, L, E]`; `Hkv` divides `H`, head `h` reads key head `h // (H // Hkv)` (grouped queries).
        scale: `None` means `E ** -0.5`.
        attn_mask: broadcastable to `[B, H, L, L]`; bool (True = keep) or additive floating point (-inf = drop). It is
            intersected with the causal triangle.
        is_causal: must stay True: a mixer that sees the future has no state.
        window_size: row i sees the columns `i - window_size + 1 .. i` only.
        softcap: scores become `softcap * tanh(scores / softcap)`, before the mask; positive.
        sinks: `[H]`, one more logit a head in the denominator, so that rows sum to less than 1. -inf is no sink.
        g: `[B, H, L]`, natural logarithms of decays (forgetting attention); -inf hides all that lies before its token.
        alibi_slopes: `[H]`, how much a logit loses with every token between row and column (ALiBi), positive.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Attention to chosen keys (top-k, blocks) is `attn_mask` with those keys True.

    Source: `F.scaled_dot_product_attention`; `fla.ops.forgetting_attn` for `g`, flash-attn for `alibi_slopes`; SA in
    appendix D.2 of the paper (arXiv 2504.19561).
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
    window_size = check_window(window_size)
    if softcap is not None:
        softcap = finite_float("softcap", softcap, positive=True)
    if sinks is not None:
        check_shape("sinks", sinks, (heads,), "[H]")
    if g is not None:
        check_shape("g", g, (batch, heads, length), "[B, H, L]")
    if alibi_slopes is not None:
        check_shape("alibi_slopes", alibi_slopes, (heads,), "[H]")
    check_same_device(q=q, k=k, attn_mask=attn_mask, sinks=sinks, g=g, alibi_slopes=alibi_slopes)
    return Attention(
        q,
        k,
        scale=scale_of(scale, size),
        attn_mask=attn_mask,
        window_size=window_size,
        softcap=softcap,
        sinks=sinks,
        g=g,
        alibi_slopes=alibi_slopes,
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
