"""Unpivoted elimination of a batch of `[E | V]`: diagonal blocks and block rows in kernels, the rest by products.

A panel is 64 pivots. `diagonal` factorises its diagonal block `L D L^T` in tiles of 16; `rows` solves with it for the
rest of the panel's rows, tile by tile, scales them, and adds up how much they update later pivots. Pivots are taken by
halves, recursively: the first half is eliminated, its effect on the second half is one product, then the second half is
eliminated. So nearly all work is in a few large products, and these touch an entry only `log2(h / 64)` times, not
`h / 64` times.
"""

# tuples that grow have no type that mypy knows
# mypy: disable-error-code="assignment"

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....engine.elimination import Elimination, factor_block, substitute
from ..compilation import Variant
from ..launches import Launch
from ..runtime import on
from ..tiles import (
    diagonal16,
    factor16,
    indices16,
    larger,
    largest,
    ldl16,
    log_of_pivots16,
    magnitude16,
    reciprocal,
    solve16,
    updates16,
)

PANEL = 64
# columns of a block row that a program holds
ROWS_WIDTH = 32
DIAGONAL_LAUNCH, ROWS_LAUNCH = Launch(1), Launch(4)
# later rows are updated so many at a time, from the column of the first of them on: entries below it are never read
CHUNK = 256


@triton.jit
def diagonal_kernel(
    M, RECIPROCAL, VALUE, GROWTH, MAGNITUDE, SIGN, h, width, first, NB: tl.constexpr, DEFINITE: tl.constexpr
):
    """One program an item: pivots `first .. first + NB - 1` of `M` `[B, h, width]`, see `diagonal`."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, 16)
    w = tl.arange(0, 16 if NB == 16 else 32 if NB == 32 else 64)
    ii, jj = indices16()
    E = M + (t * h + first) * width + first
    R = RECIPROCAL + t * h + first
    value = tl.load(VALUE + t)
    sign = tl.load(SIGN + t)
    for p in range(0, NB, 16):
        a = tl.load(E + (p + ii) * width + p + jj)
        G = GROWTH + t * width + first + p + i
        grown = tl.sum(a * 0.0, 0)
        if not DEFINITE:
            grown += tl.load(G)
        for q in range(0, p, 16):
            u = tl.load(E + (q + ii) * width + p + jj)
            scaled = u * tl.load(R + q + i)[:, None]
            a -= tl.dot(tl.trans(scaled), u, out_dtype=tl.float64)
            grown += tl.sum(tl.abs(scaled * u), 0)
        B = ldl16(a)
        d = diagonal16(B)
        r = reciprocal(d)
        magnitude = magnitude16(B)
        # the load above and the store below may give one number to different lanes
        tl.debug_barrier()
        tl.store(E + (p + ii) * width + p + jj, factor16(B, r))
        tl.store(R + p + i, r)
        if DEFINITE:
            wrong = tl.max(tl.where(d * sign > 0.0, 0, 1), 0)
            value += tl.where(wrong > 0, float("nan"), log_of_pivots16(d))
        else:
            value += tl.sum(tl.where(d > 0.0, 1.0, 0.0), 0)
            tl.store(G, grown + updates16(B, r))
        # the rest of the block's rows p .. p + 15, in place: rows above are subtracted, then the factor is solved with
        for j in range(p + 16, NB, 16):
            x = tl.load(E + (p + ii) * width + j + jj)
            for q in range(0, p, 16):
                u = tl.load(E + (q + ii) * width + p + jj) * tl.load(R + q + i)[:, None]
                x -= tl.dot(tl.trans(u), tl.load(E + (q + ii) * width + j + jj), out_dtype=tl.float64)
            tl.debug_barrier()
            tl.store(E + (p + ii) * width + j + jj, x)
        if NB > 16:
            live = (w > p + 15) & (w < NB)
            solve16(E + p * width + p, width, E + p * width + w, width, live)
        if not DEFINITE:
            for j in range(p + 16, NB, 16):
                magnitude = larger(magnitude, largest(tl.load(E + (p + ii) * width + j + jj), 1))
            tl.store(MAGNITUDE + t * h + first + p + i, magnitude)
        # other lanes read in the next pass what this one has stored
        tl.debug_barrier()
    tl.store(VALUE + t, value)


@triton.jit(do_not_specialize=["blocks", "reaches"])
def rows_kernel(
    M, SCALED, RECIPROCAL, GROWTH, REACH, h, width, first, blocks, reaches,
    NB: tl.constexpr, W: tl.constexpr, DEFINITE: tl.constexpr,
):  # fmt: skip
    """One program an item and `W` columns right of the panel `first .. first + NB - 1`, see `rows`."""
    t = tl.program_id(0).to(tl.int64) // blocks
    block = tl.program_id(0) % blocks
    i = tl.arange(0, 16)
    j = first + NB + block * W + tl.arange(0, W)
    live = (j < width)[None, :]
    E = M + (t * h + first) * width
    R = RECIPROCAL + t * h + first
    X = ()
    for p in tl.static_range(NB // 16):
        x = tl.load(E + (16 * p + i)[:, None] * width + j[None, :], mask=live, other=0.0)
        for q in tl.static_range(p):
            u = tl.load(E + (16 * q + i)[:, None] * width + (first + 16 * p + i)[None, :])
            u *= tl.load(R + 16 * q + i)[:, None]
            x -= tl.dot(tl.trans(u), X[q], out_dtype=tl.float64)
        # the loads above and the stores below may give one number to different lanes
        tl.debug_barrier()
        tl.store(E + (16 * p + i)[:, None] * width + j[None, :], x, mask=live)
        row = E + 16 * p * width
        solve16(row + first + 16 * p, width, row + j, width, j < width)
        X = X + (tl.load(E + (16 * p + i)[:, None] * width + j[None, :], mask=live, other=0.0),)
    G = GROWTH + t * width + j
    grown = tl.zeros([W], tl.float64)
    if not DEFINITE:
        grown += tl.load(G, mask=j < width, other=0.0)
    for p in tl.static_range(NB // 16):
        at = (t * h + first + 16 * p + i)[:, None] * width + j[None, :]
        scaled = X[p] * tl.load(R + 16 * p + i)[:, None]
        tl.store(SCALED + at, scaled, mask=live)
        if not DEFINITE:
            grown += tl.sum(tl.abs(X[p] * scaled), 0)
            tl.store(REACH + (t * reaches + block) * h + first + 16 * p + i, largest(X[p], 1))
    if not DEFINITE:
        tl.store(G, grown, mask=j < width)


def _columns(width: int) -> int:
    return triton.cdiv(width, ROWS_WIDTH)


def diagonal(
    M: Tensor, size: int, reciprocals: Tensor, value: Tensor, growth: Tensor, magnitude: Tensor, sign: Tensor,
    first: int, definite: bool,
) -> None:  # fmt: skip
    """Factorises the diagonal block of one panel of every item.

    Args:
        M: float64 `[B, h, width]`; columns `0..h-1` are symmetric `E`. The block receives `D L^T` above its
            diagonal and the pivots' reciprocals on it, which `rows` reads; what is below is workspace.
        size: pivots: 16, 32, 48 or 64.
        reciprocals: `[B, h]`; receives `1 / d` at `first .. first + size - 1`.
        value: `[B]`, to which the number of positive pivots is added, or the sum of `log |d|`.
        growth: `[B, width]`, to which sums of absolute updates of the block's own diagonal entries are added.
        magnitude: `[B, h]`; receives the largest magnitude of each row of `D L^T` within the block.
        sign: `[B]`, of all pivots where they are known to be `definite`; another one makes the value NaN.
        first: the panel's first pivot.
        definite: log-determinants; growth and magnitudes are left alone.
    """
    batch, h, width = M.shape
    with on(M.device):
        diagonal_kernel[(batch,)](
            M, reciprocals, value, growth, magnitude, sign, h, width, first,
            NB=size, DEFINITE=definite, **DIAGONAL_LAUNCH.options(),
        )  # fmt: skip


def diagonal_twin(
    M: Tensor, size: int, reciprocals: Tensor, value: Tensor, growth: Tensor, magnitude: Tensor, sign: Tensor,
    first: int, definite: bool,
) -> None:  # fmt: skip
    """`diagonal` in PyTorch."""
    panel = slice(first, first + size)
    block = factor_block(M[:, panel, panel])
    reciprocals[:, panel] = 1 / block.pivots
    M[:, panel, panel] = block.upper.triu(1) * block.pivots[..., None] + reciprocals[:, panel].diag_embed()
    if definite:
        wrong = ~(block.pivots * sign[:, None] > 0).all(-1)
        value += torch.where(wrong, torch.nan, block.pivots.abs().log().sum(-1))
    else:
        value += (block.pivots > 0).sum(-1)
        growth[:, panel] += block.growth
        magnitude[:, panel] = block.magnitude


def rows(
    M: Tensor, size: int, scaled: Tensor, reciprocals: Tensor, growth: Tensor, reach: Tensor, first: int, definite: bool
) -> None:
    """Solves with a panel's `L` for all columns right of it.

    Args:
        M: float64 `[B, h, width]` with the panel's block as `diagonal` leaves it; the panel's rows `W = L^-1 M` are
            written in place.
        size: pivots, as for `diagonal`.
        scaled: like `M`; receives `W / d`.
        reciprocals: `[B, h]`, `1 / d`.
        growth: `[B, width]`, to which the panel's `sum_k W_kj^2 / |d_k|` is added at the columns right of it.
        reach: `[B, ceil(width / 32), h]`; receives the largest `|W|` of the panel's rows in every 32 columns.
        first: the panel's first pivot.
        definite: growth and reach are left alone.
    """
    batch, h, width = M.shape
    blocks = _columns(width - first - size)
    if blocks == 0:
        return
    with on(M.device):
        rows_kernel[(batch * blocks,)](
            M, scaled, reciprocals, growth, reach, h, width, first, blocks, reach.shape[1],
            NB=size, W=ROWS_WIDTH, DEFINITE=definite, **ROWS_LAUNCH.options(),
        )  # fmt: skip


def rows_twin(
    M: Tensor, size: int, scaled: Tensor, reciprocals: Tensor, growth: Tensor, reach: Tensor, first: int, definite: bool
) -> None:
    """`rows` in PyTorch."""
    panel, rest = slice(first, first + size), slice(first + size, None)
    substitute(M[:, panel, panel] * reciprocals[:, panel, None], M[:, panel, rest])
    scaled[:, panel, rest] = M[:, panel, rest] * reciprocals[:, panel, None]
    if not definite:
        growth[:, rest] += (M[:, panel, rest] * scaled[:, panel, rest]).abs().sum(1)
        for block, some in enumerate(M[:, panel, rest].abs().split(ROWS_WIDTH, -1)):
            reach[:, block, panel] = some.amax(-1)


def eliminate(M: Tensor, value: Tensor, sign: Tensor, definite: bool) -> Elimination:
    """Eliminates symmetric `E` next to `V`, given together: about `h^3 / 6 + h^2 w / 2` multiplications.

    Args:
        M: float64 `[B, h, h + w]` contiguous, `[E | V]`, `h` a multiple of 16; of `E` the upper triangle is read, by
            tiles of 16. Overwritten.
        value: `[B]`, to which the number of positive pivots is added, or the sum of `log |d|`.
        sign: `[B]`, see `diagonal`.
        definite: log-determinants or counts.

    Returns:
        As `engine.elimination.eliminate`, with reciprocals of the pivots in place of pivots; growth and least row are
        zeros where `definite`. `rows` and `scaled` are views.
    """
    batch, h, width = M.shape
    scaled = torch.empty_like(M)
    reciprocals = M.new_empty(batch, h)
    watched = 0 if definite else 1
    growth = M.new_zeros(batch * watched, width)
    magnitude = M.new_zeros(batch * watched, h)
    reach = M.new_zeros(batch * watched, _columns(width), h)

    def descend(first: int, last: int) -> None:
        """Eliminates the pivots `first .. last - 1`, whose rows have been updated by all earlier ones."""
        if last - first <= PANEL:
            size = last - first
            diagonal(M, size, reciprocals, value, growth, magnitude, sign, first, definite)
            rows(M, size, scaled, reciprocals, growth, reach, first, definite)
            return
        # whole panels, and of an odd number the first half takes one more
        panels = triton.cdiv(last - first, PANEL)
        middle = first + triton.cdiv(panels, 2) * PANEL
        descend(first, middle)
        for a in range(middle, last, CHUNK):
            b = min(a + CHUNK, last)
            M[:, a:b, a:].baddbmm_(scaled[:, first:middle, a:b].mT, M[:, first:middle, a:], alpha=-1)
        descend(middle, last)

    descend(0, h)
    zeros = value.new_zeros(batch) if definite else value
    return Elimination(
        M[..., h:],
        scaled[..., h:],
        reciprocals,
        zeros[:, None] if definite else growth,
        zeros if definite else torch.maximum(magnitude, reach.amax(1)).amin(-1),
    )


def variants() -> Iterator[Variant]:
    numbers = dict.fromkeys(["h", "width", "first", "blocks", "reaches"], "i32")
    arrays = ["M", "SCALED", "RECIPROCAL", "VALUE", "GROWTH", "MAGNITUDE", "REACH", "SIGN"]
    arguments = dict.fromkeys(arrays, "*fp64") | numbers
    for size in (16, 32, 48, 64):
        for definite in (False, True):
            what = "log-determinants" if definite else "counts"
            constants = {"NB": size, "DEFINITE": definite}
            yield Variant(f"diagonal {size} {what}", diagonal_kernel, arguments, constants, DIAGONAL_LAUNCH)
            constants = {"NB": size, "W": ROWS_WIDTH, "DEFINITE": definite}
            yield Variant(f"rows {size} {what}", rows_kernel, arguments, constants, ROWS_LAUNCH)
