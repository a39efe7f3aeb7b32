"""Recurrences that are given as block parts, as compressed operators are, on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ....engine.block_states import BlockStates
from ....engine.blocks import Blocks
from ....engine.cost import Cost
from ..runtime import on
from .engine import block_length
from .parts import padded
from .passes import PartsEngine

# tokens a block of operators that were compressed without a word about blocks
LENGTH = 64


def takes(blocks: Blocks, length: int, most: int) -> bool:
    """Whether there are kernels for a head's parts `[B, c, n]`, ... of so many tokens, with `most` states or fewer."""
    c, n = blocks.X.shape[1:]
    return length > 0 and n <= most and c in (LENGTH, block_length(n))


class TritonBlockStates(PartsEngine, BlockStates):
    """`engine.block_states.BlockStates` with eliminations by kernels; all else that is known of a head is the same.

    Numbers are in units of the largest entry of the operator, and so never too large to be squared.
    """

    def __init__(self, blocks: Blocks, ranks: Tensor, length: int, unit: Tensor, cost: Cost):
        BlockStates.__init__(self, blocks, ranks, length, unit, cost)
        self.number = self.blocks.number
        mine = self.blocks
        self.parts = Blocks(self._padded(mine.X, 1), mine.Y[0], self._padded(mine.Z, 1), self._padded(mine.Phi, 2))
        self.Q = self._padded(self.gramians, 2)
        self.F = self._padded(self.roots, 2)

    def _padded(self, x: Tensor, axes: int) -> Tensor:
        """The one head's `[B, ..., n]` or `[B, n, n]`, with states as kernels hold them."""
        return torch.nn.functional.pad(x[0], (0, padded(self.n) - self.n) * axes).contiguous()

    def _roots(self, item: Tensor | slice, tau: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Identities, which have no error."""
        with on(self.unit.device):
            carried = self.F[item] @ self.parts.Phi[item].mT
            size = (carried.square() @ self.Q[item].diagonal(dim1=1, dim2=2)[..., None])[..., 0].amax(1)
        return self.F[item], size, torch.zeros_like(size)
