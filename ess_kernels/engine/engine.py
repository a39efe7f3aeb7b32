"""What a backend asks of an engine: counts, entropies and singular values at positions of some heads.

An engine finds the singular values of single positions exactly, and all that a subclass does not override comes from
them. `certain.py` has the engines that eliminate, which answer at many positions with much less work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..caching import cached_property
from ..operators.structure import rank_cap
from .certainty import Counts, Entropies, count_relative, count_values, estimate_of_values
from .cost import Cost
from .extent import FAR
from .lost import SPAN as LOST_SPAN
from .quadrature import Estimate
from .soft_quadrature import soft_count_of_values
from .wanted import grouped

Found = TypeVar("Found")


class Engine(ABC):
    """`N` heads of an operator of length `L`, scaled by powers of two.

    Attributes:
        unit: float64 `[N]`, singular values of the operator are those of the engine times `unit`.
        finite: bool `[N]`; a head that is not finite has no answer at any position.
        already_lost: float64 `[N, L]` or `[N, 1]`, scaled: by how much `H_i` may be wrong because of where the tokens
            come from; None where they are the caller's.
        seams: tokens at which blocks are cut otherwise than in the sequence that this one is a part of.
        all_finite: whether every head is known to be finite and none is growing: then nobody looks at either mask.
        lost_span: this many positions in a row share what is known of rounding in the states.
        nothing_passes: says where `H_i` of a recurrence is zero, whatever rounding does, bool `[N, L]`.
        rounded_at: says of positions `[P]` whether `H_i` may have lost numbers that are too small for the unit, bool
            `[N, P]`; None where it has not. It costs a look at all numbers.
        cost: told about exact singular values.
    """

    length: int
    state_size: int | None
    unit: Tensor
    finite: Tensor
    already_lost: Tensor | None = None
    seams: tuple[int, ...] = ()
    all_finite: bool = False
    cost: Cost
    lost_span: int = LOST_SPAN
    nothing_passes: Callable[[], Tensor] | None = None
    rounded_at: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def counts(self, positions: Tensor, atol: Tensor) -> Counts:
        """Counts above `atol` `[M]` (absolute, of the operator itself) at distinct, sorted positions: `[N, M, P]`."""

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
        return rank_cap(positions, self.length, self.state_size)

    def relative_counts(self, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        """Counts above `max(atol, rtol s_1)`, `rtol` `[M]` positive: `[N, M, P]`. Every position has its own `s_1`."""
        values = self.values_of_all_heads(positions)[:, None]
        tau, cap = (atol / self.unit[:, None])[..., None], self.cap(positions)
        threshold = torch.maximum(tau, rtol[:, None] * values[..., 0])

        def count() -> Counts:
            return count_relative(values, tau, rtol[:, None], self._lost_at_all_heads(positions)[:, None], cap)

        counts = self._with_own_losses(count, lambda found: found.unresolved)
        counts.redone.fill_(False)
        return counts.without(self.too_small(threshold, positions))

    def entropy(self, positions: Tensor) -> Entropies:
        """Entropy-ESS `[N, P]` at distinct, sorted positions; sums of singular values of the operator itself."""
        found, cap = self._entropy(positions), self.cap(positions).to(torch.float64)
        # rows may fall by so many orders of magnitude that the losses of a span are above a position's whole sum
        lost = self._with_own_losses(lambda: self._lost_at_all_heads(positions), lambda lost: found.total <= cap * lost)
        certified = Entropies.certified(found, cap, lost).without(self.too_small(found.total, positions))
        return certified._replace(total=certified.total * self.unit[:, None])

    def soft_counts(self, positions: Tensor, atol: Tensor) -> Tensor:
        """`sum s^2 / (s^2 + atol^2)` for positive `atol` `[M]` of the operator itself: `[N, M, P]`."""
        tau = (atol / self.unit[:, None])[..., None]
        return soft_count_of_values(self.values_of_all_heads(positions)[:, None], tau)

    def singular_values(self, positions: Tensor, k: int) -> Tensor:
        """The `k` largest singular values of the operator itself, `[N, P, k]`, zero padded."""
        values = self.values_of_all_heads(positions)
        largest = values[..., :1].sum(-1)
        values = torch.nn.functional.pad(values[..., :k], (0, max(0, k - values.shape[-1]))) * self.unit[:, None, None]
        unknown = self.too_small(largest, positions)
        return values if unknown is None else values.masked_fill(unknown[..., None], torch.nan)

    def too_small(self, scaled: Tensor, positions: Tensor) -> Tensor | None:
        """Where scaled tolerances or largest values are so small that numbers lost to the unit may be all that counts.

        Args:
            scaled: `[N, P]` or `[N, M, P]`; an axis of positions may have length 1.
            positions: `[P]`.

        Returns:
            bool, of the shape of `scaled` with all positions, or None where that is nowhere.
        """
        if self.rounded_at is None:
            return None
        small = scaled < FAR
        if not bool(small.any()):
            return None
        rounded = self.rounded_at(positions)
        return small & (rounded if small.dim() == 2 else rounded[:, None])

    def _entropy(self, positions: Tensor) -> Estimate:
        """What is known of the singular values, `[N, P]`, scaled."""
        return estimate_of_values(self.values_of_all_heads(positions))

    def _count_by_values(self, open_ones: Tensor, tau: Tensor, result: Counts) -> None:
        """Counts above scaled `tau` `[N, M]` at positions 1..L-1, bool `[N, M, L - 1]`, from singular values.

        What is found is put into `result` `[N, M, L - 1]`.
        """
        heads, entries = open_ones.any(1).nonzero(as_tuple=True)
        if len(heads) == 0:
            return
        values = self.values_at(heads, entries + 1)
        which, m = open_ones[heads, :, entries].nonzero(as_tuple=True)

        def count() -> Counts:
            lost, cap = self.lost_at(heads, entries + 1), self.cap(entries + 1)
            return count_values(values[which], tau[heads[which], m], lost[which], cap[which])

        found = self._with_own_losses(count, lambda found: found.unresolved)
        result.put((heads[which], m, entries[which]), found)

    # --- what rounding in the states takes ----------------------------------------------------------------------------

    def _lost(self, span: int) -> Tensor | None:
        """By how much `H_i` may be wrong before anything is computed from it (`lost.py`), scaled; None: by nothing.

        `[N, ceil(L / span)]` for spans of so many positions.
        """
        return None

    @cached_property
    def lost(self) -> Tensor | None:
        """By how much singular values may be wrong before they are computed, `[N, ceil(L / lost_span)]`."""
        return self._all_lost(self.lost_span)

    def _all_lost(self, span: int) -> Tensor | None:
        """As `_lost`, with what had been lost before there were tokens."""
        lost = self._lost(span)
        if span == 1 and lost is not None and self.nothing_passes is not None:
            # bounds that know of blocks, or of all tokens together, are too large where nothing is written or read
            lost = lost.masked_fill(self.nothing_passes(), 0.0)
        if lost is None or self.already_lost is None:
            return lost
        before = self.already_lost
        return lost + (before if before.shape[1] == 1 else grouped(before, span).amax(-1))

    def lost_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        """The same at pairs of a head and a position, of the shape that the two index tensors broadcast to."""
        if self.lost is None:
            return self.unit.new_zeros(torch.broadcast_shapes(heads.shape, positions.shape))
        return self.lost[heads, positions // self.lost_span]

    def _lost_at_all_heads(self, positions: Tensor) -> Tensor:
        """The same at `P` positions of every head, `[N, P]`."""
        return self.lost_at(torch.arange(len(self.unit), device=positions.device)[:, None], positions)

    def _with_own_losses(self, answer: Callable[[], Found], doubtful: Callable[[Found], Tensor]) -> Found:
        """`answer()`, made with what spans of positions have lost; and once more if that leaves any of it `doubtful`.

        The second time every position has its own loss, which is smaller than that of its span, and costs more.
        """
        found = answer()
        if self.lost_span > 1 and self.lost is not None and bool(doubtful(found).any()):
            self.lost_span, self.lost = 1, self._all_lost(1)
            found = answer()
        return found
