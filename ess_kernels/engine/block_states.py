"""A recurrence that is given as block parts, whose states have no tokens: what `compression.py` makes.

Its reachability roots are known: the states at an edge are orthonormal combinations of earlier inputs, so that the
root is the identity on as many coordinates as the edge's rank. Inside of a block the rank grows, by one for every
token of the block before the position or after it, whichever are fewer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .blocks import Blocks
from .boundary import observe_roots
from .certainty import EPS
from .cost import Cost
from .outside import ROUNDING
from .parallel import svdvals
from .state_space import Recurrence, bytes_shared

# bytes of matrices whose singular values are taken together
TOGETHER_BYTES = 1 << 24


def bytes_per_head(blocks: Blocks) -> int:
    """What one head takes beside its parts: roots of both directions, Gramians and the scan that makes them, copies of
    these and of the parts where kernels want them aligned, and what recurrences take for boundaries and nodes."""
    number, c, n = blocks.X.shape
    return 8 * number * (8 * n * n + 2 * n * c + c * c) + bytes_shared(n, c, number)


class BlockStates(Recurrence):
    """One head of a recurrence in blocks.

    Args:
        blocks: parts `[B, c, n]`, ...; Phi is dense.
        ranks: int64 `[B]`, how many states there are at the left edge of each block.
        length: L.
        unit: float64 `[1]`; the operator is that of the parts times the unit.
        cost: told about exact singular values.
    """

    def __init__(self, blocks: Blocks, ranks: Tensor, length: int, unit: Tensor, cost: Cost):
        parts = Blocks(blocks.X[None], blocks.Y[None], blocks.Z[None], blocks.Phi[None])
        self.length, (self.group, self.n) = length, blocks.X.shape[1:]
        self.state_size = None
        self.unit, self.cost, self.blocks, self.ranks = unit, cost, parts, ranks
        self.finite = torch.ones_like(unit, dtype=torch.bool)
        self.growing = ~self.finite
        self.lost_span = max(1, length)
        coordinate = torch.arange(self.n, device=unit.device)
        self.roots = torch.diag_embed((coordinate < ranks[:, None]).to(unit.dtype))[None]
        # From triangular roots and not by a recursion of squares: that would add up the rounding errors of all blocks,
        # each in proportion to the largest square.
        self._observe_roots = observe_roots(parts)
        self.gramians = self._observe_roots.mT @ self._observe_roots

    def cap(self, positions: Tensor) -> Tensor:
        """No more than the states at either edge of the block and the tokens between it and the position."""
        number, inside = positions // self.group, positions % self.group
        after = torch.cat([self.ranks[1:], self.ranks.new_zeros(1)])
        stop = ((number + 1) * self.group).clamp_max(self.length)
        return torch.minimum(self.ranks[number] + inside, after[number] + stop - positions).minimum(
            super().cap(positions)
        )

    def _lost(self, span: int) -> Tensor:
        """What the QR updates of the observability roots have lost: a few roundings of each of them."""
        sizes = torch.linalg.matrix_norm(self.observe_roots).sum(1)
        lost = EPS * ROUNDING * math.sqrt(self.n + self.group) * sizes
        return lost[:, None].expand(-1, -(-self.length // span))

    def known_zero(self) -> Tensor:
        """Where every part of `H` is zero: rows of the block and later ones, columns of the block and earlier ones."""
        blocks, shape = self.blocks, (1, self.blocks.number, self.group)
        rows = ((blocks.X @ self.roots.mT) != 0).any(-1)
        later_columns = ((self.observe_roots @ blocks.Z.mT) != 0).any(-2)
        later = ((self.observe_roots @ blocks.Phi @ self.roots) != 0).any(-1).any(-1, keepdim=True)
        # row r has its first entry in the block at column `first`: in H at s if first < s <= r
        first = torch.where(blocks.Y != 0, torch.arange(self.group, device=rows.device), self.group).amin(-1)
        s = torch.arange(self.group, device=rows.device)
        inside = ((first[..., None] < s) & (s[:, None] >= s)).any(-2)
        some = later | inside | rows.flip(-1).cummax(-1).values.flip(-1)
        before = torch.nn.functional.pad(later_columns.cummax(-1).values, (1, 0))[..., :-1]
        return ~(some | before).expand(shape).flatten(1)[:, : self.length]

    def too_small(self, scaled: Tensor, positions: Tensor) -> Tensor | None:
        """As everywhere, but for zeros: an `H` whose parts are zero has lost nothing."""
        small = super().too_small(scaled, positions)
        if small is None:
            return None
        zero = self.known_zero()[:, positions]
        return small & ~(zero if small.dim() == 2 else zero[:, None])

    def _value_work(self, positions: Tensor) -> Tensor:
        size = self.n + self.group
        return torch.full_like(positions, 8 / 3 * size**3, dtype=torch.float64)

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        """As the parts have them: from matrices of `(c - s + n) x (n + s)` at place s of a block."""
        self.cost.note(len(heads), float(self._value_work(positions).sum()))
        size = self.n + self.group
        values = self.unit.new_zeros(len(heads), min(size, max(1, self.length // 2)))
        each = max(1, TOGETHER_BYTES // (8 * size * size))
        for piece in torch.arange(len(heads), device=heads.device).split(each):
            found = svdvals(torch.stack([self._matrix_at(int(i)) for i in positions[piece]]))
            values[piece] = found[:, : values.shape[1]]
        number = torch.arange(values.shape[1], device=heads.device)
        return torch.where(number < self.cap(positions)[:, None], values, 0.0)

    def _matrix_at(self, position: int) -> Tensor:
        """`[n + c, n + c]` with the singular values of `H` at the position, and zeros."""
        b, s = divmod(position, self.group)
        parts, root, observe = self.blocks[0, b], self.roots[0, b], self.observe_roots[0, b]
        own = torch.cat([parts.X[s:] @ root.mT, parts.Y[s:, :s]], 1)
        later = torch.cat([observe @ parts.Phi @ root.mT, observe @ parts.Z[:s].mT], 1)
        return torch.nn.functional.pad(torch.cat([own, later]), (0, self.group - s, 0, s))
