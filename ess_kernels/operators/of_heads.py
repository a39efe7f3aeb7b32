"""Some heads of an operator, or a band of each: operators that make their rows from another one's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dense import Dense
from .sparsity import Sparsity
from .structure import Operator, Tiled
from .tile_sources import TileSource, tile_source

# rows of a band that are made together
BAND = 128


class OfHeads(Tiled):
    """Some heads of another operator, each with the answers that it has there.

    Attributes:
        whole: that operator.
        which: int64 `[N]`, the heads.
    """

    def __init__(self, whole: Tiled, which: Tensor):
        super().__init__(whole.length, (len(which),), whole.state_size, whole.inputs)
        self.whole, self.which = whole, which

    def finite(self, heads: Tensor) -> Tensor:
        return self.whole.finite(self.which[heads])

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        return self.whole.rows(self.which[heads], start, stop)

    def own_tiles(self, heads: Tensor) -> TileSource | None:
        return self.whole.own_tiles(self.which[heads])

    def sparsity(self, heads: Tensor) -> Sparsity | None:
        return self.whole.sparsity(self.which[heads])

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> Tiled:
        return self.whole.of_tokens(self.which[heads], tokens)


class Banded(Tiled):
    """One head of another operator with zeros where `i - j` is at least `width`.

    Attributes:
        whole: that operator.
        head: int64 `[1]`.
        width: see above.
        source: tiles of the head.
    """

    def __init__(self, whole: Operator, head: Tensor, width: int, source: TileSource | None = None):
        super().__init__(whole.length, (1,), None, whole.inputs)
        self.whole, self.head, self.width = whole, head, width
        self.source = tile_source(whole, head) if source is None else source

    def finite(self, heads: Tensor) -> Tensor:
        return self.whole.finite(self.head)[heads]

    def _within(self, tile: Tensor, first_row: int, first_column: int) -> Tensor:
        """A tile without what is above the diagonal or beyond the width."""
        return tile.tril(first_row - first_column).triu(first_row - first_column - self.width + 1)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        first = min(max(0, start - self.width + 1), stop)
        tile = self._within(self.source.tile(slice(start, stop), slice(first, stop)), start, first)
        return torch.nn.functional.pad(tile, (first, 0))[heads]

    def sparsity(self, heads: Tensor) -> Sparsity:
        return Sparsity.of_width(torch.full_like(heads, min(self.width, self.length)))

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> Dense:
        return Dense(torch.cat([self._square(mine) for mine in tokens.tolist()]))

    def _square(self, tokens: Sequence[int]) -> Tensor:
        """`[1, m, m]`, of neighbours."""
        start, stop = tokens[0], tokens[-1] + 1
        square = torch.zeros(1, stop - start, stop - start, dtype=torch.float64, device=self.device)
        # by bands of rows, for which no columns are made that lie far away
        for top in range(start, stop, BAND):
            rows = slice(top, min(top + BAND, stop))
            columns = slice(max(start, top - self.width + 1), rows.stop)
            tile = self._within(self.source.tile(rows, columns), top, columns.start)
            square[:, top - start : rows.stop - start, columns.start - start : rows.stop - start] = tile
        return square
