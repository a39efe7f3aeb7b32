"""Passes over blocks: all of their positions, at tolerances or at the nodes of a quadrature.

For every batch of blocks roots, products by cuBLAS, and for every pair of a block and a tolerance (or shift) the
boundary's elimination and the staircase.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ....engine.blocks import Blocks
from ....engine.boundary import norm_bound
from ....engine.certain import EliminatingEngine
from ....engine.quadrature import Estimate, Quadrature
from ....engine.staircase import Answer, Eliminated
from ....engine.wanted import Wanted
from ..runtime import on
from ..staircase.descent import descend
from . import weights
from .boundary import Outside, eliminate
from .roots import EPS

# bytes of boundaries in work at once, without the eliminations' scratch
BLOCK_WORKSPACE = 1 << 29
# but at least so many blocks: fewer would leave a GPU idle
FEWEST_BLOCKS = 512
# bytes of staircase nodes in work at once
NODE_WORKSPACE = 1 << 30


def blocks_at_once(n: int, c: int) -> int:
    """How many boundaries of padded state size `n` are made before their pairs with the shifts are eliminated."""
    return max(FEWEST_BLOCKS, BLOCK_WORKSPACE // (8 * (3 * n * n + 4 * n * c + 2 * c * c)))


def pairs_at_once(c: int) -> int:
    """How many of these pairs are carried down the staircase together."""
    return max(1, NODE_WORKSPACE // (8 * 9 * c * c))


# (heads, numbers of blocks) -> [J, S]
Shifts = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Work:
    """One pass over blocks.

    Attributes:
        wanted_groups: bool `[N, S, blocks]`, which pairs of a shift and a block are to be done.
        answer: `[N S, L]`, filled in.
        shifts, definite, scale: as in `_pass`.
        own: `[N, blocks]`, for log-determinants: every block's scale.
        rounding: `[N, blocks]`, for log-determinants: the error of squared singular values in units of that scale.
    """

    wanted_groups: Tensor
    answer: Answer
    shifts: Shifts
    definite: bool
    scale: Tensor | None
    own: Tensor
    rounding: Tensor

    @property
    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.answer.value.view(-1), self.answer.growth.view(-1), self.answer.least.view(-1)

    def note(self, head: Tensor, number: Tensor, own: Tensor, magnitude: Tensor) -> None:
        """Notes the scales `own` of some blocks `[J]` and the errors of their squared values, `magnitude` times eps."""
        self.own[head, number] = own
        self.rounding[head, number] = torch.where(own > 0, EPS * magnitude / own, 0.0)


class PartsEngine(EliminatingEngine):
    """An engine of `N` heads in blocks of `group` tokens, whose eliminations are those of kernels on block parts.

    Attributes:
        parts: of all blocks, `number` of each head in a row: `[items, c, n]`, ..., states padded.
        Q: `[items, n, n]`, observability Gramians at the blocks' right edges.
    """

    number: int
    parts: Blocks
    Q: Tensor

    @abstractmethod
    def _roots(self, item: Tensor | slice, tau: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Roots of the reachability Gramians at the left edges of some blocks.

        Args:
            item: the blocks.
            tau: `[J, S]`, tolerances that the roots must do for, or None.

        Returns:
            `F^T` `[J, n, n]`, overwritten where Phi is diagonal; how large the terms behind a diagonal entry of `S`
            are, `[J]`; the error of squared singular values that the roots come with, `[J]`, in units of eps.
        """

    def _fused(self, work: Work, heads: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Does blocks that one kernel can take whole; returns the others."""
        return heads, numbers

    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        return self._pass(wanted.positions, lambda head, number: tau[head, :, number], False, None).answer.eliminated

    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        nodes = quadrature.nodes(wanted.device)
        each = wanted[:, None].expand(-1, len(nodes), -1)
        work = self._pass(each, lambda head, number: nodes.expand(len(head), -1), True, scale)
        with on(wanted.device):
            rounding = self._spread(work.rounding)
            found = weights.estimate(quadrature, work.answer.value.view(each.shape), cap, rounding)
        return found._replace(total=found.total * self._spread(work.own.sqrt()))

    def _pass(self, wanted: Tensor, shifts: Shifts, definite: bool, scale: Tensor | None) -> Work:
        """Values and growth at `wanted` `[N, S, L]`.

        All positions of a block come together: those not wanted are filled in too.

        Args:
            wanted: bool.
            shifts: `(heads, numbers) -> [J, S]`, the tolerances of some blocks, or (`definite`) the nodes of a
                quadrature, in units of `scale` `[N]`, or of each block's own scale if there is none.
            definite: log-determinants or counts.
            scale: see above.
        """
        answer = Answer.of(wanted.flatten(0, 1))
        wanted_groups = self._wanted_groups(wanted)
        own, rounding = self.unit.new_zeros(2, len(wanted_groups), self.number).unbind(0)
        work = Work(wanted_groups, answer, shifts, definite, scale, own, rounding)
        heads, numbers = wanted_groups.any(1).nonzero(as_tuple=True)
        with on(wanted.device):
            if scale is None:
                heads, numbers = self._fused(work, heads, numbers)
            self._blocks(work, heads, numbers)
        return work

    def _place(self, work: Work, head: Tensor, number: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the flat answer the positions of some (block, shift) pairs begin, and how many there are."""
        start = number * self.group
        return (head * work.wanted_groups.shape[1] + s) * self.length + start, (self.length - start).clamp_max(
            self.group
        )

    def _blocks(self, work: Work, heads: Tensor, numbers: Tensor) -> None:
        """All of some blocks' positions: products for the blocks, then pairs of a block and a shift."""
        if len(heads) == 0:
            return
        c, n = self.group, self.parts.X.shape[-1]
        step, each = blocks_at_once(n, c), pairs_at_once(c)
        everything = len(heads) == len(self.Q)
        for first, head, number in zip(range(0, len(heads), step), heads.split(step), numbers.split(step), strict=True):
            # where all blocks are done, ranges of them are read in place; otherwise blocks are gathered
            item = slice(first, first + len(head)) if everything else head * self.number + number
            outside, shift, growth = self._boundaries(work, item, head, number)
            which, s = work.wanted_groups[head, :, number].nonzero(as_tuple=True)
            tau, brought = shift[which, s], growth[which, s]
            place, limit = self._place(work, head[which], number[which], s)
            for start in range(0, len(which), each):
                piece = slice(start, start + each)
                pairs = (which[piece], tau[piece], brought[piece], place[piece], limit[piece])
                descend(eliminate(outside, *pairs, work.definite), *work.flat, work.definite, budget=NODE_WORKSPACE)

    def _boundaries(
        self, work: Work, item: Tensor | slice, head: Tensor, number: Tensor
    ) -> tuple[Outside, Tensor, Tensor]:
        """Boundaries of some blocks, their shifts `[J, S]`, and the growth that their data bring, `[J, S]`."""
        parts, Q, shift = self.parts[item], self.Q[item], work.shifts(head, number)
        F, size, coarse = self._roots(item, None if work.definite else shift)
        corner = (parts.Z.square() @ Q.diagonal(dim1=1, dim2=2)[..., None])[..., 0].amax(1)
        magnitude = coarse + torch.maximum(size, corner)
        outside = _products(F, parts, Q)
        if work.definite:
            own = _scale(outside) if work.scale is None else work.scale[head]
            work.note(head, number, own, magnitude)
            shift = (shift * torch.where(own == 0, 1.0, own)[:, None]).sqrt()
            return outside, shift, torch.zeros_like(shift)
        return outside, shift, magnitude[:, None] * inverse_square(shift)


def _products(F: Tensor, blocks: Blocks, Q: Tensor) -> Outside:
    """Boundaries of blocks from `F^T`, which is overwritten where Phi is diagonal."""
    c = blocks.X.shape[1]
    AE = F.new_empty(*F.shape[:2], 2 * c)
    torch.bmm(F, blocks.X.mT, out=AE[..., :c])
    carried = F.mul_(blocks.Phi[:, None]) if blocks.Phi.dim() == 2 else F @ blocks.Phi.mT
    seen = carried @ Q
    torch.bmm(seen, blocks.Z.mT, out=AE[..., c:])
    return Outside(seen @ carried.mT, AE, blocks.Z @ (Q @ blocks.Z.mT), blocks.Y)


def inverse_square(tolerance: Tensor) -> Tensor:
    """`1 / tolerance^2`, zero where there is no tolerance to eliminate at."""
    return torch.where(tolerance > 0, tolerance.square().reciprocal(), 0.0)


def _scale(outside: Outside) -> Tensor:
    """`[J]`: a bound of the squared largest singular value at all positions of each block."""
    c = outside.Y.shape[1]
    past_rows = outside.AE[..., :c]
    grams = (outside.S, past_rows.mT @ past_rows, outside.G, outside.Y.mT @ outside.Y)
    return torch.stack([norm_bound(gram) for gram in grams]).sum(0)
