"""What recurrences and dense operators share: from eliminations to answers that are certain.

An engine knows three things: to eliminate at given tolerances, to take log-determinants at the nodes of the quadrature,
and to find the singular values of single positions exactly. This file decides which positions need which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .asked import Asked, Places, everywhere, grouped
from .certainty import (
    ENTROPY_BOUND,
    HOPEFUL,
    HOPELESS,
    SURE,
    Counts,
    count_values,
    entropy_of_values,
    near_tie,
    width_of,
)
from .cost import Cost
from .quadrature import STANDARD, Quadrature
from .staircase import Answer, Eliminated

# up to this many positions singular values cost less than sixteen log-determinants
FEW = 4


class Engine(ABC):
    """`N` heads of an operator of length `L`, scaled by powers of two.

    Attributes:
        unit: float64 `[N]`, singular values of the operator are those of the engine times `unit`.
        good: bool `[N]`; a head that is not has no answer at any position.
        sound: whether every head is known to be good, and to need no other engine: then nobody looks.
        group: this many positions in a row share one tolerance in an elimination.
        cost: told about exact singular values.
    """

    length: int
    state_size: int | None
    unit: Tensor
    good: Tensor
    sound: bool = False
    group: int
    cost: Cost

    @abstractmethod
    def _eliminate(self, asked: Asked, tau: Tensor) -> Answer | Eliminated:
        """Counts and growth `[N, S, L]` at the positions asked for, for tolerances `[N, S, ceil(L / group)]` (scaled).

        What is said of other positions means nothing. The next elimination may overwrite it.
        """

    def _foreseen_width(self, tau: Tensor) -> Tensor | None:
        """Widths `[N, S, groups]` that are certain before anything is eliminated at `tau`, if there are any."""
        return None

    @abstractmethod
    def _logdets(self, wanted: Tensor, quadrature: Quadrature, scale: Tensor | None = None) -> Tensor:
        """`log det(I + H H^T / (t_k scale))` `[N, K, L]` at `wanted` `[N, L]`; no `scale` `[N]`: the engine's own."""

    @abstractmethod
    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Scaled singular values `[Q, S]`, descending and zero padded, at `Q` (head, position) pairs, exact."""

    def values_of_all_heads(self, positions: Tensor) -> Tensor:
        """Scaled singular values `[N, P, S]` at the same positions of every head."""
        N, P = len(self.unit), len(positions)
        heads = torch.arange(N, device=positions.device).repeat_interleave(P)
        return self.values_at(heads, positions.repeat(N)).view(N, P, -1)

    def cap(self, positions: Tensor) -> Tensor:
        """The largest rank that `H_i` can have."""
        cap = torch.minimum(positions, self.length - positions)
        return cap if self.state_size is None else cap.clamp_max(self.state_size)

    def counts(self, positions: Tensor, atol: Tensor) -> Counts:
        """Counts above `atol` `[M]` (absolute, of the operator itself) at distinct, sorted positions: `[N, M, P]`."""
        L = self.length
        tau = atol / self.unit[:, None]
        asked = self._mask(positions)
        # a tolerance of zero has no units to eliminate in, and nothing exceeds an infinite one
        rows = (tau > 0) & (tau < torch.inf)
        wanted = Asked.alike(rows, asked, self.group)
        grouped_tau = tau[..., None].expand(-1, -1, -(-L // self.group))
        foreseen = self._foreseen_width(grouped_tau)
        if foreseen is None:
            result, doubtful = self._judge(self._eliminate(wanted, grouped_tau), rows, asked)
        else:
            # where one elimination is known not to do, the two on both sides of the tolerance come at once
            skipped = wanted.positions & self._spread((foreseen > SURE) & (foreseen <= HOPEFUL))
            eliminated = self._eliminate(Asked.of(wanted.positions & ~skipped, self.group), grouped_tau)
            result, _ = self._judge(eliminated, rows, asked)
            skipped = skipped[..., 1:]
            result.redone.logical_or_(skipped)
            result.width.copy_(torch.where(skipped, self._spread(foreseen)[..., 1:], result.width))
            doubtful = bool(result.redone.any())
        left = self._settle(asked, tau, result) if doubtful else None
        if not bool(rows.all()):
            missing = (tau <= 0)[..., None] & asked[1:]
            result.redone.logical_or_(missing)
            left = missing if left is None else left | missing
        if left is not None:
            self._settle_by_values(left, tau, result)
        return result if len(positions) == L - 1 else Counts(*(x[..., positions - 1] for x in result))

    def _mask(self, positions: Tensor) -> Tensor:
        """bool `[L]`, true at distinct positions."""
        if len(positions) == self.length - 1:
            return everywhere(self.length, self.unit.device)
        mask = torch.zeros(self.length, dtype=torch.bool, device=self.unit.device)
        mask[positions] = True
        return mask

    def _judge(self, answer: Answer | Eliminated, rows: Tensor, asked: Tensor) -> tuple[Counts, bool]:
        """What an elimination says at positions 1..L-1 `[N, M, L - 1]`, and whether any position is doubtful.

        Args:
            answer: at `[N, M, L]`, in this order.
            rows: bool `[N, M]`, whether the tolerance can be eliminated at: elsewhere all is zero.
            asked: bool `[L]`; elsewhere nothing is doubtful, and the rest means nothing.

        Returns:
            Counts whose `redone` says which positions are doubtful, with `[M, N, L - 1]` contiguous.
        """
        value, growth, least = (
            x.view(*rows.shape, -1)[..., 1:].transpose(0, 1) for x in (answer.value, answer.growth, answer.least)
        )
        rows = rows.T[..., None]
        counts, width = value.to(torch.int64), width_of(growth)
        if not bool(rows.all()):
            counts, width = counts.where(rows, 0), width.where(rows, 0.0)
        doubtful = rows & asked[1:] & (near_tie(growth, least) | ~(width <= SURE))
        found = Counts(counts.contiguous(), width.contiguous(), doubtful, torch.zeros_like(doubtful))
        return Counts(*(x.transpose(0, 1) for x in found)), bool(doubtful.any())

    def _settle(self, asked: Tensor, tau: Tensor, result: Counts) -> Tensor | None:
        """Counts the doubtful (`redone`) positions again. Returns those still open, bool `[N, M, L - 1]`, if any."""
        # first as far as the typical width of a group, which is free of ties (a tolerance on a singular value of an
        # eliminated block widens all that stand on it); what that leaves open gets a distance that fits its own
        doubtful = Places.of(result.redone)
        for distance in (self._typical, self._widest):
            groups, own = self._groups_of(doubtful, tau.shape[1])
            width = distance(doubtful, groups, own, asked, result)
            settled = self._settle_between(doubtful, groups, own, width, tau, result)
            if bool(settled.all()):
                return None
            doubtful = doubtful.where(~settled)
        left = torch.zeros_like(result.redone)
        left[doubtful] = True
        return left

    def _groups_of(self, places: Places, tolerances: int) -> tuple[Places, Tensor]:
        """The groups of some places, `entry` being the group's number, `[J]`, and which of them is each place's."""
        number = -(-self.length // self.group)
        flat = (places.head * tolerances + places.tolerance) * number + (places.entry + 1) // self.group
        flat, own = flat.unique_consecutive(return_inverse=True)
        rows = flat // number
        return Places(rows // tolerances, rows % tolerances, flat % number), own

    def _typical(self, doubtful: Places, groups: Places, own: Tensor, asked: Tensor, result: Counts) -> Tensor:
        """The smallest width of each group `[J]`; if none is finite, the head's."""
        # the ends may be short: one of their positions is then looked at more than once
        at = groups.entry[:, None] * self.group + torch.arange(self.group, device=own.device)
        at = at.clamp(1, self.length - 1)
        widths = result.width[groups.head[:, None], groups.tolerance[:, None], at - 1]
        smallest = torch.where(asked[at], widths, torch.inf).amin(1)
        if not bool(smallest.isfinite().all()):
            of_head = torch.where(asked[1:], result.width, torch.inf).amin(-1)
            smallest = torch.where(smallest.isfinite(), smallest, of_head[groups.head, groups.tolerance])
        return smallest

    def _widest(self, doubtful: Places, groups: Places, own: Tensor, asked: Tensor, result: Counts) -> Tensor:
        """The largest width of each group's doubtful positions that is not beyond hope, `[J]`."""
        width = result.width[doubtful]
        width = torch.where(width > HOPELESS, 0.0, width)
        return width.new_zeros(len(groups.entry)).scatter_reduce_(0, own, width, "amax")

    def _settle_between(
        self, doubtful: Places, groups: Places, own: Tensor, width: Tensor, tau: Tensor, result: Counts
    ) -> Tensor:
        """Counts doubtful positions at tolerances on both sides of `tau`, four times their group's `width` `[J]` away.

        Where both agree, and each is sure to within that distance, no singular value lies between: the count is right.
        Groups beyond hope are left alone. Returns bool `[K]`, which places are settled.
        """
        hopeful = (width <= HOPEFUL)[own] & ~result.width[doubtful].isnan()
        if not bool(hopeful.any()):
            return hopeful
        move = (4 * width).clamp(SURE / 4, HOPELESS)
        places, own = doubtful.where(hopeful), own[hopeful]
        answer = self._eliminate_between(places, groups, move, width <= HOPEFUL, tau)
        n, m, entry = places
        lower, upper = answer.value[n, m, :, entry + 1].unbind(1)
        reach = width_of(answer.growth[n, m, :, entry + 1]).amax(1)
        sure = reach <= move[own]
        agreed = sure & (lower == upper)
        # another round is for those not sure enough; a value between the two tolerances stays between wider ones
        result.width[places] = torch.where(agreed, 0.0, torch.where(sure, torch.nan, reach))
        result.counts[places.where(agreed)] = lower[agreed].to(torch.int64)
        return hopeful.masked_scatter(hopeful, agreed)

    def _eliminate_between(
        self, places: Places, groups: Places, move: Tensor, hopeful: Tensor, tau: Tensor
    ) -> Eliminated:
        """Eliminates `hopeful` groups `[J]` at `tau (1 -+ move)`: `[N, M, 2, L]`, of meaning at the places only."""
        (N, M), number = tau.shape, -(-self.length // self.group)
        n, m, g = groups.where(hopeful)
        move = move[hopeful]
        sides = tau.new_ones(N, M, 2, number)
        sides[n, m, :, g] = tau[n, m, None] * torch.stack([1 - move, 1 + move], 1)

        def mask(at: tuple[Tensor, Tensor, Tensor], size: int) -> Tensor:
            mask = torch.zeros(N, M, 2, size, dtype=torch.bool, device=tau.device)
            n, m, last = at
            mask[n, m, :, last] = True
            return mask.flatten(1, 2)

        asked = Asked(
            lambda: mask((places.head, places.tolerance, places.entry + 1), self.length),
            lambda: mask((n, m, g), number),
        )
        answer = self._eliminate(asked, sides.flatten(1, 2))
        return Eliminated(*(x.view(N, M, 2, -1) for x in (answer.value, answer.growth, answer.least)))

    def _busy(self, wanted: Tensor) -> Tensor:
        """Which groups `[..., groups]` hold a position wanted, bool `[..., L]`; contiguous."""
        return grouped(wanted, self.group).any(-1)

    def _spread(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.group, -1)[..., : self.length]

    def _settle_by_values(self, missing: Tensor, tau: Tensor, result: Counts) -> None:
        """Counts at positions 1..L-1, bool `[N, M, L - 1]`, from singular values."""
        heads, entries = missing.any(1).nonzero(as_tuple=True)
        if len(heads) == 0:
            return
        values = self.values_at(heads, entries + 1)
        which, m = missing[heads, :, entries].nonzero(as_tuple=True)
        result.put((heads[which], m, entries[which]), count_values(values[which], tau[heads[which], m]))

    def entropy(self, positions: Tensor) -> Tensor:
        """Entropy-ESS `[N, P]` at distinct, sorted positions."""
        if len(positions) <= FEW:
            return entropy_of_values(self.values_of_all_heads(positions))
        mask = self._mask(positions)
        cap = self.cap(torch.arange(self.length, device=self.unit.device)).to(torch.float64)
        wanted = mask.expand(len(self.unit), -1)
        ess, bound = self._quadrature(wanted, STANDARD, cap)
        doubtful = wanted & ~(bound <= ENTROPY_BOUND)
        if bool(doubtful.any()):
            zero = doubtful & self._zero()
            ess[zero] = 0.0
            doubtful = self._refine_entropy(doubtful & ~zero, cap, ess)
            heads, at = doubtful.nonzero(as_tuple=True)
            if len(heads):
                ess[heads, at] = entropy_of_values(self.values_at(heads, at))
        return ess[:, 1:] if len(positions) == self.length - 1 else ess[:, positions]

    def _quadrature(
        self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Entropy-ESS and a bound of its relative error `[N, L]`, for an engine that need not keep log-determinants."""
        return self._entropy_of(quadrature, self._logdets(wanted, quadrature, scale), cap)

    def _entropy_of(self, quadrature: Quadrature, logdets: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
        """As `Quadrature.entropy_of`, for an engine that has it faster."""
        return quadrature.entropy_of(logdets, cap)

    @abstractmethod
    def _zero(self) -> Tensor:
        """bool `[N, L]` or `[N, 1]`: where `H` is known to be exactly zero."""

    def _refine_entropy(self, doubtful: Tensor, cap: Tensor, ess: Tensor) -> Tensor:
        """Settles positions by more nodes or scales of their own, where that is cheaper than singular values.

        Returns the rest.
        """
        return doubtful

    def singular_values(self, positions: Tensor, k: int) -> Tensor:
        """The `k` largest singular values of the operator itself, `[N, P, k]`, zero padded."""
        values = self.values_of_all_heads(positions)[..., :k]
        values = torch.nn.functional.pad(values, (0, k - values.shape[-1]))
        return values * self.unit[:, None, None]
