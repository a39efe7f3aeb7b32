"""How small `T` is beyond a distance: the width of a window that leaves out no more than an error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.convolution import Convolution
from ..operators.structure import Operator
from ..operators.tile_sources import TileSource

# distances are looked at in steps of so many tokens
STEP = 32
# rows that are looked at first
SAMPLES = 8
# what rounding errors of sums of positive terms add to them
SUMMED = 1 + 1e-9


class Tails(NamedTuple):
    """What lies at distances `i - j` of at least each of some widths, in one head; float64 `[K]`.

    Attributes:
        widths: ascending.
        norm: upper bounds of its 2-norm: `sqrt(max row sum x max column sum)` of the magnitudes.
        nuclear: upper bounds of its nuclear norm: the sum of the magnitudes.
    """

    widths: Tensor
    norm: Tensor
    nuclear: Tensor

    def narrowest(self, error: float, nuclear: bool = False) -> tuple[int, float] | None:
        """The smallest width that leaves out no more than `error`, and what it leaves out, if there is any."""
        left = self.nuclear if nuclear else self.norm
        fits = (left <= error).nonzero()
        return (int(self.widths[fits[0, 0]]), float(left[fits[0, 0]])) if len(fits) else None


def tails_of(op: Operator, source: TileSource, most: int) -> Tails:
    """Of the one head of `source`, for widths up to `most`."""
    if isinstance(op, Convolution) and op.time_invariant:
        return _tails_of_kernel(op.kernel(source.heads)[0], most)
    return _tails_of_tiles(source, most)


def _tails_of_kernel(kernel: Tensor, most: int) -> Tails:
    L = len(kernel)
    lag = torch.arange(L, device=kernel.device)
    size = kernel.abs()
    norm, nuclear = ((x.flip(0).cumsum(0).flip(0) * SUMMED)[1 : most + 1] for x in (size, size * (L - lag)))
    return Tails(lag[1 : most + 1], norm, nuclear)


def _tails_of_tiles(source: TileSource, most: int) -> Tails:
    """By square tiles of `STEP` tokens: one k tiles off the diagonal is beyond a width of `STEP k`, as far as known."""
    L, g = source.length, STEP
    number = -(-L // g)
    kinds = min(number, most // g + 1)  # tiles at least that many off the diagonal are alike
    rows = torch.zeros(number * g, kinds, dtype=torch.float64, device=source.heads.device)
    columns = torch.zeros(number, g, kinds, dtype=torch.float64, device=source.heads.device)
    for i in range(number):
        band = slice(i * g, min((i + 1) * g, L))
        tile = source.tile(band, slice(0, band.stop))[0].tril(band.start - 1).abs()
        blocks = torch.nn.functional.pad(tile, (0, (i + 1) * g - band.stop)).unflatten(1, (i + 1, g))
        off = (i - torch.arange(i + 1, device=tile.device)).clamp_max(kinds - 1)
        rows[band].index_add_(1, off, blocks.sum(2))
        at = torch.arange(i + 1, device=tile.device)
        columns[at, :, off] += blocks.sum(0)
    by_row, by_column = rows, columns.flatten(0, 1)
    for k in range(kinds - 2, -1, -1):  # in place: these are the largest arrays
        by_row[:, k] += by_row[:, k + 1]
        by_column[:, k] += by_column[:, k + 1]
    norm = by_row.amax(0).sqrt() * by_column.amax(0).sqrt() * SUMMED  # a product of sums may underflow
    widths = g * torch.arange(kinds, device=rows.device)
    return Tails(widths[1:], norm[1:], (by_row.sum(0) * SUMMED)[1:])


def surely_beyond(source: TileSource, width: int, error: float, nuclear: bool = False) -> bool:
    """Whether a few rows show that what lies at distances of at least `width` is above `error`.

    A row's own sum, and an entry of it for a column's, are no more than the largest ones. Cheap, so that most heads
    that have no window are not looked at any further.
    """
    L = source.length
    for i in torch.linspace(L - 1, width, SAMPLES).round().long().tolist():
        row = source.tile(slice(i, i + 1), slice(0, i - width + 1))[0, 0].abs()
        if not len(row):
            continue
        left = float(row.sum()) if nuclear else float(row.sum().sqrt() * row.max().sqrt())
        if left > error:
            return True
    return False


def sampled_rank(source: TileSource, threshold: float, size: int, pieces: int = 4) -> int:
    """How many singular values of `H` at the middle are above a threshold, at least: a part of it has no larger ones.

    The part has at most `size` rows and columns, in a few runs of neighbours: the nearest to the middle, and others.
    """
    h, L = source.length // 2, source.length
    each = max(1, size // pieces)
    at = torch.linspace(0, L - h - each, pieces).round().long().tolist()
    # whole rows of H cost less than many calls
    rows = [source.tile(slice(h + a, h + a + each), slice(0, h))[0] for a in at]
    part = torch.cat([torch.cat([row[:, max(0, h - a - each) : max(0, h - a)] for a in at], 1) for row in rows])
    return int((torch.linalg.svdvals(part) > threshold).sum())
