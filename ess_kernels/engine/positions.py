"""What recurrences and dense operators share: from eliminations to answers that are certain.

An engine knows three things: to eliminate at given tolerances, to take log-determinants at the nodes of the quadrature,
and to find the singular values of single positions exactly. This file decides which positions need which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

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
        group: this many positions in a row share one tolerance in an elimination.
        cost: told about exact singular values.
    """

    length: int
    state_size: int | None
    unit: Tensor
    good: Tensor
    group: int
    cost: Cost

    @abstractmethod
    def _eliminate(self, wanted: Tensor, tau: Tensor) -> Answer | Eliminated:
        """Counts and growth at `wanted` `[N, S, L]` for tolerances `[N, S, ceil(L / group)]` (scaled).

        What is said of other positions means nothing.
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
        N, M, L = len(self.unit), len(atol), self.length
        tau = atol / self.unit[:, None]
        asked = torch.zeros(L, dtype=torch.bool, device=self.unit.device)
        asked[positions] = True
        # a tolerance of zero has no units to eliminate in, and nothing exceeds an infinite one
        wanted = ((tau > 0) & (tau < torch.inf))[..., None] & asked
        missing = (tau <= 0)[..., None] & asked
        grouped_tau = tau[..., None].expand(-1, -1, -(-L // self.group))
        foreseen = self._foreseen_width(grouped_tau)
        if foreseen is None:
            answer = self._eliminate(wanted, grouped_tau)
            width = width_of(answer.growth).view(N, M, L)
        else:
            # where one elimination is known not to do, the two on both sides of the tolerance come at once
            skipped = wanted & self._spread((foreseen > SURE) & (foreseen <= HOPEFUL))
            answer = self._eliminate(wanted & ~skipped, grouped_tau)
            width = torch.where(skipped, self._spread(foreseen), width_of(answer.growth).view(N, M, L))
        doubtful = wanted & (near_tie(answer.growth, answer.least).view(N, M, L) | ~(width <= SURE))
        counts = answer.value.to(torch.int64).view(N, M, L)
        result = Counts(counts, width, doubtful | missing, torch.zeros_like(doubtful))
        if bool(tau.isinf().any()):
            for field in (counts, width):
                field.masked_fill_(tau.isinf()[..., None], 0)
        if bool(result.redone.any()):
            self._settle(wanted, doubtful, missing, tau, result)
        if len(positions) == L - 1:
            return Counts(*(x[..., 1:] for x in result))
        return Counts(*(x[..., positions] for x in result))

    def _settle(self, wanted: Tensor, doubtful: Tensor, missing: Tensor, tau: Tensor, result: Counts) -> None:
        """Counts again where the elimination of the `wanted` is not sure (`doubtful`), or impossible (`missing`)."""
        # first as far as the typical width of a group, which is free of ties (a tolerance on a singular value of an
        # eliminated block widens all that stand on it); what that leaves open gets a distance that fits its own
        if bool(doubtful.any()):
            doubtful &= ~self._settle_between(doubtful, self._typical(doubtful, wanted, result.width), tau, result)
        if bool(doubtful.any()):
            doubtful &= ~self._settle_between(doubtful, self._widest(doubtful, result.width), tau, result)
        self._settle_by_values(missing | doubtful, tau, result)

    def _typical(self, doubtful: Tensor, wanted: Tensor, width: Tensor) -> Tensor:
        """The smallest width of each group with doubtful positions `[N, M, groups]`; if none is finite, the head's."""
        busy = self._grouped(doubtful, 0.0).any(-1)
        n, m, g = busy.nonzero(as_tuple=True)
        # the last group may be short: its last position is then looked at more than once
        at = (g[:, None] * self.group + torch.arange(self.group, device=g.device)).clamp_max(self.length - 1)
        n, m = n[:, None], m[:, None]
        smallest = torch.where(wanted[n, m, at], width[n, m, at], torch.inf).amin(1)
        if not bool(smallest.isfinite().all()):
            of_head = width.masked_fill(~wanted, torch.inf).amin(-1)
            smallest = torch.where(smallest.isfinite(), smallest, of_head[n[:, 0], m[:, 0]])
        return torch.zeros_like(busy, dtype=width.dtype).masked_scatter_(busy, smallest)

    def _widest(self, doubtful: Tensor, width: Tensor) -> Tensor:
        """The largest width of each group's doubtful positions that is not beyond hope, `[N, M, groups]`."""
        n, m, p = doubtful.nonzero(as_tuple=True)
        own = width[n, m, p]
        own = torch.where(own > HOPELESS, 0.0, own)
        widest = width.new_zeros(*width.shape[:2], -(-self.length // self.group))
        g = (n * widest.shape[1] + m) * widest.shape[2] + p // self.group
        widest.view(-1).scatter_reduce_(0, g, own, "amax")
        return widest

    def _settle_between(self, doubtful: Tensor, width: Tensor, tau: Tensor, result: Counts) -> Tensor:
        """Counts doubtful positions at tolerances on both sides of `tau`, four times `width` `[N, M, groups]` away.

        Where both agree, and each is sure to within that distance, no singular value lies between: the count is right.
        Groups beyond hope are left alone. Returns bool like `doubtful`, the positions settled.
        """
        N, M, L = doubtful.shape
        hopeful = doubtful & self._spread(width <= HOPEFUL) & ~result.width.isnan()
        if not bool(hopeful.any()):
            return hopeful
        move = (4 * width).clamp(SURE / 4, HOPELESS)
        sides = tau[..., None, None] * torch.stack([1 - move, 1 + move], 2)
        answer = self._eliminate(hopeful[:, :, None].expand(N, M, 2, L).flatten(1, 2), sides.flatten(1, 2))
        n, m, p = hopeful.nonzero(as_tuple=True)
        lower, upper = answer.value.view(N, M, 2, L)[n, m, :, p].unbind(1)
        reach = width_of(answer.growth.view(N, M, 2, L)[n, m, :, p]).amax(1)
        sure = reach <= move[n, m, p // self.group]
        agreed = sure & (lower == upper)
        settled = torch.zeros_like(hopeful).masked_scatter_(hopeful, agreed)
        result.counts.masked_scatter_(settled, lower[agreed].to(torch.int64))
        # another round is for those not sure enough; a value between the two tolerances stays between wider ones
        missed = torch.where(sure, torch.nan, reach)
        result.width.masked_scatter_(hopeful, torch.where(agreed, 0.0, missed))
        return settled

    def _grouped(self, x: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(x, (0, -self.length % self.group), value=fill).unflatten(-1, (-1, self.group))

    def _spread(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.group, -1)[..., : self.length]

    def _settle_by_values(self, missing: Tensor, tau: Tensor, result: Counts) -> None:
        heads, positions = missing.any(1).nonzero(as_tuple=True)
        if len(heads) == 0:
            return
        values = self.values_at(heads, positions)
        which, m = missing[heads, :, positions].nonzero(as_tuple=True)
        result.put((heads[which], m, positions[which]), count_values(values[which], tau[heads[which], m]))

    def entropy(self, positions: Tensor) -> Tensor:
        """Entropy-ESS `[N, P]` at distinct, sorted positions."""
        if len(positions) <= FEW:
            return entropy_of_values(self.values_of_all_heads(positions))
        wanted = torch.zeros(len(self.unit), self.length, dtype=torch.bool, device=self.unit.device)
        wanted[:, positions] = True
        cap = self.cap(torch.arange(self.length, device=self.unit.device)).to(torch.float64)
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
