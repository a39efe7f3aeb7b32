"""From eliminations to answers that are certain: what recurrences and dense operators share.

An `EliminatingEngine` knows three things: to eliminate at given tolerances, to sum log-determinants at the nodes of a
quadrature, and to find the singular values of single positions exactly. This file decides which positions need which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .certainty import (
    BLURRED,
    ENTROPY_BOUND,
    HOPEFUL,
    HOPELESS,
    SURE,
    Counts,
    estimate_of_values,
    near_tie,
    width_of,
)
from .engine import Engine
from .quadrature import FINE, STANDARD, Estimate, Quadrature
from .soft_quadrature import SOFT, soft_count_is_certain, soft_count_of_values
from .staircase import Eliminated
from .wanted import Wanted, everywhere, grouped

Eliminate = Callable[[Wanted, Tensor], Eliminated]

# up to this many positions singular values cost less than sixteen log-determinants
FEW = 4
# where the relative error of an entropy is not known to be below this, H may be zero
NOTHING = 1.0


class EliminatingEngine(Engine):
    """An engine that eliminates: one elimination answers at all positions, each with the width of its own doubt.

    Attributes:
        group: this many positions in a row share one tolerance in an elimination.
        unsquared: whether it can also eliminate without squares.
        takes_scales: whether `estimate` can be told its scale.
    """

    group: int
    unsquared: bool = False
    takes_scales: bool = True

    @property
    def scale_span(self) -> int:
        """This many positions in a row share the scale of their log-determinants."""
        return self.group

    @abstractmethod
    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        """Counts and growth `[N, S, L]` at the positions asked for, for tolerances `[N, S, ceil(L / group)]` (scaled).

        What is said of other positions means nothing. The next elimination may overwrite it.
        """

    def eliminate_unsquared(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        """As `eliminate`, for more work, with errors in proportion to `s_1 / tau` instead of its square."""
        raise NotImplementedError

    def _blur(self, tau: Tensor) -> Tensor | None:
        """Relative widths `[N, M, ceil(L / lost_span)]` that no elimination near `tau` `[N, M]` can undercut."""
        if self.lost is None:
            return None
        nearest = tau[..., None] * (1 - HOPELESS)

        def relative() -> Tensor:
            assert self.lost is not None
            return torch.where((tau > 0)[..., None], self.lost[:, None] / nearest, 0.0)

        return self._with_own_losses(relative, lambda blur: ~(blur <= BLURRED))

    def _foreseen_width(self, tau: Tensor) -> Tensor | None:
        """Widths `[N, S, groups]` that are certain before anything is eliminated at `tau`, if there are any."""
        return None

    def counts(self, positions: Tensor, atol: Tensor) -> Counts:
        L = self.length
        tau = atol / self.unit[:, None]
        asked = self._mask(positions)
        # a tolerance of zero has no units to eliminate in, and nothing exceeds an infinite one
        possible = (tau > 0) & (tau < torch.inf)
        wanted = Wanted.alike(possible, asked, self.group)
        grouped_tau = self._to_groups(tau)
        foreseen = self._foreseen_width(grouped_tau)
        blur = self._blur(tau)
        if foreseen is None:
            result, doubtful = self.judge(self.eliminate(wanted, grouped_tau), possible, asked, blur)
        else:
            # where one elimination is known not to do, the two on both sides of the tolerance come at once, or those
            # without squares
            futile = (foreseen > SURE) & (self.unsquared | (foreseen <= HOPEFUL))
            skipped = wanted.positions & self._spread(futile)
            eliminated = self.eliminate(Wanted.of(wanted.positions & ~skipped, self.group), grouped_tau)
            result, _ = self.judge(eliminated, possible, asked, blur)
            skipped = skipped[..., 1:]
            result.redone.logical_or_(skipped)
            result.width.copy_(torch.where(skipped, self._spread(foreseen)[..., 1:], result.width))
            doubtful = bool(result.redone.any())
        left = self._settle(asked, tau, blur, result) if doubtful else None
        if not bool(possible.all()):
            untried = (tau <= 0)[..., None] & asked[1:]
            result.redone.logical_or_(untried)
            left = untried if left is None else left | untried
        if left is not None:
            self._count_by_values(self._settle_alone(left, tau, result), tau, result)
        return result if len(positions) == L - 1 else Counts(*(x[..., positions - 1] for x in result))

    def _mask(self, positions: Tensor) -> Tensor:
        """bool `[L]`, true at distinct positions."""
        if len(positions) == self.length - 1:
            return everywhere(self.length, self.unit.device)
        mask = torch.zeros(self.length, dtype=torch.bool, device=self.unit.device)
        mask[positions] = True
        return mask

    def judge(self, answer: Eliminated, possible: Tensor, asked: Tensor, blur: Tensor | None) -> tuple[Counts, bool]:
        """What an elimination says at positions 1..L-1 `[N, M, L - 1]`, and whether any position is doubtful.

        Args:
            answer: at `[N, M, L]`, in this order.
            possible: bool `[N, M]`, whether the tolerance can be eliminated at: elsewhere all is zero.
            asked: bool `[L]`; elsewhere nothing is doubtful, and the rest means nothing.
            blur: from `_blur`.

        Returns:
            Counts whose `redone` says which positions are doubtful, with `[M, N, L - 1]` contiguous.
        """
        value, growth, least = (
            x.view(*possible.shape, -1)[..., 1:].transpose(0, 1) for x in (answer.value, answer.growth, answer.least)
        )
        possible = possible.T[..., None]
        counts, width = value.to(torch.int64), width_of(growth)
        unsure = near_tie(growth, least) | ~(width <= SURE)
        if blur is not None:
            blurred = self._spread_blur(blur).transpose(0, 1)
            width = width + blurred
            unsure |= ~(blurred <= BLURRED)
        if not bool(possible.all()):
            counts, width = counts.where(possible, 0), width.where(possible, 0.0)
        doubtful = possible & asked[1:] & unsure
        found = Counts(counts.contiguous(), width.contiguous(), doubtful, torch.zeros_like(doubtful))
        return Counts(*(x.transpose(0, 1) for x in found)), bool(doubtful.any())

    def _settle(self, asked: Tensor, tau: Tensor, blur: Tensor | None, result: Counts) -> Tensor | None:
        """Counts doubtful (`redone`) positions again. Returns those still open, bool `[N, M, L - 1]`, if any are."""
        doubtful = result.redone.clone()
        # First try one width for the whole group. It is the smallest in the group, because a tie on an eliminated block
        # inflates the width of every position that uses the block. What that leaves open is tried once more with the
        # largest width of the group's doubtful positions.
        for typical in (True, False):
            if not self._settle_between(self.eliminate, typical, asked, tau, blur, doubtful, result):
                return None
        if self.unsquared:
            if not self._settle_unsquared(asked, tau, blur, doubtful, result):
                return None
            if not self._settle_between(self.eliminate_unsquared, False, asked, tau, blur, doubtful, result):
                return None
        return doubtful

    def _settle_alone(self, left: Tensor, tau: Tensor, result: Counts) -> Tensor:
        """Settles positions 1..L-1, bool `[N, M, L - 1]`, by cheaper means than singular values; returns the rest."""
        return left

    def _settle_between(
        self,
        eliminate: Eliminate,
        typical: bool,
        asked: Tensor,
        tau: Tensor,
        blur: Tensor | None,
        doubtful: Tensor,
        result: Counts,
    ) -> bool:
        """Counts doubtful positions on both sides of `tau`, four times their group's width away; says if any is left.

        Where both agree, and each is sure to within that distance, no singular value lies between: the count is right.
        Groups beyond hope are left alone. Changes `doubtful` and `result` in place.
        """
        if typical:
            width = self._typical_widths(asked, doubtful, result.width)
        else:
            width = self.group_widths(asked, doubtful, result.width, False)
        hopeful = width <= HOPEFUL
        if not bool(hopeful.any()):
            return True
        move = (4 * width).clamp(SURE / 4, HOPELESS)
        sides = tau[..., None, None] * torch.stack([1 - move, 1 + move], 2)
        answer = eliminate(self._on_both_sides(doubtful, hopeful, result.width), sides.flatten(1, 2))
        return self.compare(answer, move.masked_fill(~hopeful, torch.nan), blur, doubtful, result)

    def _settle_unsquared(
        self, asked: Tensor, tau: Tensor, blur: Tensor | None, doubtful: Tensor, result: Counts
    ) -> bool:
        """Counts doubtful positions without squares, where widths are smaller; says whether any is left."""
        open_ones = Wanted.of(torch.nn.functional.pad(doubtful, (1, 0)), self.group)
        possible = torch.ones_like(tau, dtype=torch.bool)
        again, _ = self.judge(self.eliminate_unsquared(open_ones, self._to_groups(tau)), possible, asked, blur)
        result.width.copy_(torch.where(doubtful, again.width, result.width))
        settled = doubtful & ~again.redone
        result.counts.copy_(torch.where(settled, again.counts, result.counts))
        doubtful.logical_and_(~settled)
        return bool(doubtful.any())

    def _on_both_sides(self, doubtful: Tensor, hopeful: Tensor, width: Tensor) -> Wanted:
        """The `doubtful` positions of `hopeful` groups `[N, M, groups]`, twice `[N, 2 M, L]`."""

        def twice(x: Tensor) -> Tensor:
            return x[:, :, None].expand(-1, -1, 2, -1).flatten(1, 2)

        def positions() -> Tensor:
            return twice(torch.nn.functional.pad(doubtful & ~width.isnan(), (1, 0)) & self._spread(hopeful))

        return Wanted(positions, lambda: twice(hopeful))

    def _typical_widths(self, asked: Tensor, doubtful: Tensor, width: Tensor) -> Tensor:
        """What most positions of a group can do with, `[N, M, groups]`, infinite where none is doubtful."""
        return self.group_widths(asked, doubtful, width, True)

    def group_widths(self, asked: Tensor, doubtful: Tensor, width: Tensor, typical: bool) -> Tensor:
        """A width `[N, M, groups]` of the groups with doubtful positions, infinite for the others.

        Either the smallest width of all positions asked for (`typical`), or if none is finite that of the head; or the
        largest of the doubtful ones that is not beyond hope.
        """

        def by_group(x: Tensor, fill: float) -> Tensor:
            return grouped(torch.nn.functional.pad(x, (1, 0), value=fill), self.group, fill)

        if typical:
            width = torch.where(asked[1:], width, torch.inf)
            chosen = by_group(width, torch.inf).amin(-1)
            if not bool(chosen.isfinite().all()):
                chosen = torch.where(chosen.isfinite(), chosen, width.amin(-1, keepdim=True))
        else:
            chosen = by_group(torch.where(doubtful & ~(width > HOPELESS), width, 0.0), 0.0).amax(-1)
        return torch.where(by_group(doubtful, False).any(-1), chosen, torch.inf)

    def compare(self, answer: Eliminated, move: Tensor, blur: Tensor | None, doubtful: Tensor, result: Counts) -> bool:
        """Takes counts `[N, 2 M, L]` on both sides of a tolerance where they settle it; says whether any is left.

        Args:
            answer: what was eliminated.
            move: `[N, M, groups]`, the relative distance of the sides; NaN where nothing was tried.
            blur: from `_blur`.
            doubtful, result: `[N, M, L - 1]`, changed in place.
        """
        move = self._spread(move)[..., 1:]
        value, growth = (x.view(*move.shape[:2], 2, -1)[..., 1:] for x in (answer.value, answer.growth))
        reach = width_of(growth).amax(2)
        if blur is not None:
            reach = reach + self._spread_blur(blur)
        tried = doubtful & ~move.isnan() & ~result.width.isnan()
        sure = reach <= move
        agreed = tried & sure & (value[:, :, 0] == value[:, :, 1])
        result.counts.copy_(torch.where(agreed, value[:, :, 0].to(torch.int64), result.counts))
        # Another round is for positions that are not sure enough. If the two sides disagree, a singular value lies
        # between them; moving them apart cannot help, and a width of NaN says so.
        missed = torch.where(sure, torch.nan, reach)
        result.width.copy_(torch.where(agreed, 0.0, torch.where(tried, missed, result.width)))
        doubtful.logical_and_(~agreed)
        return bool(doubtful.any())

    def _wanted_groups(self, wanted: Tensor) -> Tensor:
        """Which groups `[..., groups]` hold a position wanted, bool `[..., L]`; contiguous."""
        return grouped(wanted, self.group).any(-1)

    def _to_groups(self, tau: Tensor) -> Tensor:
        """The same tolerances `[N, M]` for every group, `[N, M, groups]`."""
        return tau[..., None].expand(-1, -1, -(-self.length // self.group))

    def _spread(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.group, -1)[..., : self.length]

    def _spread_blur(self, blur: Tensor) -> Tensor:
        """A blur of spans at positions 1..L-1, `[..., L - 1]`."""
        return blur.repeat_interleave(self.lost_span, -1)[..., 1 : self.length]

    def _entropy(self, positions: Tensor) -> Estimate:
        """From log-determinants, or from singular values where these do not tell."""
        if len(positions) <= FEW:
            return super()._entropy(positions)
        mask = self._mask(positions)
        cap = self.cap(torch.arange(self.length, device=self.unit.device)).to(torch.float64)
        wanted = mask.expand(len(self.unit), -1)
        found = self.estimate(wanted, STANDARD, cap)
        doubtful = wanted & ~(found.bound <= ENTROPY_BOUND)
        if self.seams:
            doubtful |= wanted & self._beside_seams()
        if bool(doubtful.any()):
            if not bool((found.bound[doubtful] < NOTHING).all()):
                # what rounding has made of a zero matrix has no entropy, and needs no singular values
                zero = doubtful & self.known_zero()
                for x in found:
                    x[zero] = 0.0
                doubtful &= ~zero
            doubtful = self._refine_entropy(doubtful, cap, found)
            heads, at = doubtful.nonzero(as_tuple=True)
            if len(heads):
                exact = estimate_of_values(self.values_at(heads, at))
                for x, y in zip(found, exact, strict=True):
                    x[heads, at] = y
        columns = slice(1, None) if len(positions) == self.length - 1 else positions
        return Estimate(*(x[:, columns] for x in found))

    def _beside_seams(self) -> Tensor:
        """bool `[L]`: positions of blocks that are not those of the whole sequence, whose scale they do not have."""
        beside = torch.zeros(self.length, dtype=torch.bool, device=self.unit.device)
        for token in self.seams:
            start = token - token % self.scale_span
            if start < token:
                beside[start : start + self.scale_span] = True
        return beside

    def soft_counts(self, positions: Tensor, atol: Tensor) -> Tensor:
        if len(positions) <= FEW or not self.takes_scales:
            return super().soft_counts(positions, atol)
        wanted = self._mask(positions).expand(len(self.unit), -1)
        rows = [self._soft_counts(wanted, tau) for tau in (atol[:, None] / self.unit)]
        return torch.stack([row[:, positions] for row in rows], 1)

    def _soft_counts(self, wanted: Tensor, tau: Tensor) -> Tensor:
        """At positions wanted, bool `[N, L]`, for one scaled tolerance a head, `[N]`: from log-determinants around it,
        or from singular values where these are not sure."""
        cap = self.cap(torch.arange(self.length, device=self.unit.device)).to(torch.float64)
        found = self.estimate(wanted, SOFT, cap, tau.square())
        counts = found.total / tau[:, None]
        doubtful = wanted & ~soft_count_is_certain(counts, found.bound, cap)
        if bool(doubtful.any()):
            zero = doubtful & self.known_zero()
            counts, doubtful = counts.masked_fill(zero, 0.0), doubtful & ~zero
            heads, at = doubtful.nonzero(as_tuple=True)
            if len(heads):
                counts[heads, at] = soft_count_of_values(self.values_at(heads, at), tau[heads])
        return counts

    @abstractmethod
    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        """From log-determinants at the nodes times `scale` `[N]`, or the engine's own: `[N, L]` at `wanted`, scaled.

        `total` is in the engine's units, not in those of `scale`.
        """

    @abstractmethod
    def known_zero(self) -> Tensor:
        """bool `[N, L]`: where `H` is known to be exactly zero."""

    def _refine_entropy(self, doubtful: Tensor, cap: Tensor, found: Estimate) -> Tensor:
        """Tries doubtful positions again with a finer quadrature; returns those that stay doubtful.

        That costs 1.5 times the first try, where singular values would cost many times that. Settled answers are put
        into `found` `[N, L]`.
        """
        return doubtful & ~take_settled(found, self.estimate(doubtful, FINE, cap), doubtful)


def take_settled(found: Estimate, other: Estimate, wanted: Tensor) -> Tensor:
    """Puts what is certain enough of `other` in the place of `found`; says where that was, bool."""
    settled = wanted & (other.bound <= ENTROPY_BOUND)
    for x, y in zip(found, other, strict=True):
        x[settled] = y[settled]
    return settled
