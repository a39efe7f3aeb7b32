"""Tiles of `T`, made when they are needed: for algorithms that read an operator once and never hold it.

A family whose tiles need nothing but their own rows and columns has a source of its own, which makes once what all
tiles share, such as the sums of softmax rows. Any other operator's tiles are cut from rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..memory import budget_in_bytes

if TYPE_CHECKING:
    from .structure import Operator, Tiled

# numbers of a tile that are worked on together where a whole column of tiles is looked at
BAND = 1 << 20
# arrays of the size of T that exist while it is made
COPIES = 4


class TileSource(ABC):
    """Tiles of some heads, float64.

    Attributes:
        heads: int64 `[N]`.
        length: L.
    """

    def __init__(self, op: Operator, heads: Tensor):
        self.heads, self.length = heads, op.length

    @abstractmethod
    def tile(self, rows: slice, columns: slice) -> Tensor:
        """`T[:, rows, columns]`, zero above the diagonal: `[N, rows, columns]`. The slices have a start and a stop."""

    def bands(self) -> list[slice]:
        """All rows in bands of which one with all of its columns is no large array."""
        each = max(1, BAND // max(1, len(self.heads) * self.length))
        return [slice(start, min(start + each, self.length)) for start in range(0, self.length, each)]

    def largest(self) -> Tensor:
        """An upper bound of the magnitudes below the diagonal, `[N]`, at most some times the largest; NaN stays."""
        peak = torch.zeros(len(self.heads), dtype=torch.float64, device=self.heads.device)
        for rows in self.bands():
            below = self.tile(rows, slice(0, rows.stop)).tril(rows.start - 1)
            peak = torch.maximum(peak, below.abs().flatten(1).amax(1))
        return peak


class HeldTiles(TileSource):
    """Tiles of `T` `[N, L, L]` that is there."""

    def __init__(self, op: Operator, heads: Tensor, T: Tensor):
        super().__init__(op, heads)
        self.T = T

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return self.T[:, rows, columns]


class TilesOfRows(TileSource):
    """Tiles cut from bands of rows, which are made anew for each: where `T` has no room, and no family knows better."""

    def __init__(self, op: Tiled, heads: Tensor):
        super().__init__(op, heads)
        self.op = op

    def tile(self, rows: slice, columns: slice) -> Tensor:
        each = max(1, BAND // max(1, len(self.heads) * self.length))
        pieces = []
        for start in range(rows.start, rows.stop, each):
            band = self.op.rows(self.heads, start, min(start + each, rows.stop))
            # a band of rows ends at its own diagonal
            missing = max(0, columns.stop - band.shape[-1])
            pieces.append(torch.nn.functional.pad(band, (0, missing))[..., columns])
        if not pieces:
            return torch.zeros(len(self.heads), 0, columns.stop - columns.start, dtype=torch.float64)
        return torch.cat(pieces, 1)


def bytes_of_source(op: Operator) -> int:
    """What the tiles of one head take by themselves: the inputs of the head in float64, a band of rows in the copies
    that its making takes, and T where it is held."""
    from .structure import Operator, Tiled  # which imports this module

    whole = op.bytes_of_dense()
    bands = min(whole, 8 * COPIES * max(BAND, op.length))
    if type(op).own_tiles is not Operator.own_tiles:
        return bands + min(whole, sum(8 * x.numel() for x in op.inputs) // max(1, op.num_heads))
    return whole if not isinstance(op, Tiled) or whole <= budget_in_bytes() else bands


def tile_source(op: Operator, heads: Tensor) -> TileSource:
    """Tiles of some heads of any operator: as its family makes them, or else from `T`, held if the budget allows."""
    own = op.own_tiles(heads)
    if own is not None:
        return own
    from .structure import Tiled  # which imports this module

    if not isinstance(op, Tiled) or 8 * COPIES * len(heads) * op.length**2 <= budget_in_bytes():
        return HeldTiles(op, heads, op.dense_heads(heads))
    return TilesOfRows(op, heads)
