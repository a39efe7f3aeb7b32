"""Recurrences that are given as block parts, as compressed operators are, by the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from ...caching import cached_property
from ...engine.block_states import BlockStates
from ...engine.blocks import Blocks
from .block_parts import MAX_STATE_SIZE, Parts, PartsEngine, padded
from .memory import aligned
from .transitions import COLUMNS

# lengths of blocks that kernels take
LENGTHS = (8, 16, 32, 64)


def takes(blocks: Blocks, length: int) -> bool:
    """Whether kernels hold a head's parts `[B, c, n]`, ... of so many tokens."""
    c, n = blocks.X.shape[1:]
    return length > 0 and c in LENGTHS and n <= MAX_STATE_SIZE


class NativeBlockStates(PartsEngine, BlockStates):
    """`engine.block_states.BlockStates` with compiled eliminations; all else that is known of a head is the same.

    Numbers are in units of the largest entry of the operator, and so never too large for kernels to square them.
    """

    @cached_property
    def parts(self) -> Parts:
        parts = Parts(1, self.length, self.n, self.group, COLUMNS)
        m, c = parts.structure.n, self.group
        blocks = self.blocks
        # the roots are triangular, and symmetric as the Gramians are
        filled = {"X": blocks.X, "Z": blocks.Z, "Phi": blocks.Phi.mT, "F": self.roots, "Q": self.gramians}
        for name, x in filled.items():
            _fill(parts.array(name, m), x)
        _fill(parts.array("Y", c), blocks.Y.flip(-2))
        return parts

    @cached_property
    def _observe_roots_of_parts(self) -> Tensor:
        m = padded(self.n)
        roots = aligned(*self.observe_roots.shape[:2], m, m)
        # upper triangular row by row, which kernels read column by column
        _fill(roots, self.observe_roots)
        return roots


def _fill(room: Tensor, x: Tensor) -> None:
    """Copies matrices `[..., rows, columns]` into the first rows and columns of larger ones, with zeros around them."""
    room.zero_()
    room[..., : x.shape[-2], : x.shape[-1]] = x
