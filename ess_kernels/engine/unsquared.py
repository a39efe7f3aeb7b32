"""Many positions that elimination by squares leaves open, settled without squares, each at a tolerance of its own.

An engine cuts its positions into pieces and takes the outside of each apart (`outside.Outside`), once; then relative
tolerances, tolerances of zero, ties at every position and tolerances far below the largest singular value cost a small
factorisation a position. A few positions are cheaper by singular values, and stay for them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .certain import EliminatingEngine
from .certainty import EPS, HOPELESS, SURE, Counts, count_relative, near_tie, width_of
from .outside import Found, Outside
from .parallel import over_items
from .wanted import Wanted

# up to this many positions of a piece, singular values cost less than taking its outside apart
FEW = 2
# a head whose open positions take no more floating-point operations than this for singular values gets these at once
CHEAP = 3e7
# floating-point operations that a head may spend on singular values of what stays open at the end
AFFORDABLE = 1e9
# tolerances on both sides are this many widths away, and no further down or up than so many times the tolerance
APART, FURTHEST, FAR_UP = 2.0, 0.75, 1e6
# the width of a count is about this many times the error of taking the outside apart
GUESS = 4.0
# a tolerance of zero is replaced by this many times the error of the factorisations
NOISE = 1e3
# a share of the norm at which squares leave widths of a sixteenth of the hopeless one
ROOT = (16 * EPS / HOPELESS) ** 0.5
TINIEST = 1e-300
# Lanczos steps for the largest singular values, and how far above what they find it is looked for
STEPS = (12, 24)
SLACKS = (1e-9, 1e-6, 1e-4, 1e-2)


class UnsquaredEngine(EliminatingEngine):
    """An engine that can take the outside of a piece of its positions apart."""

    _known: dict[tuple[int, int], Outside]

    @abstractmethod
    def _pieces(self) -> list[tuple[int, int]]:
        """Where pieces start and stop, from position 0 to `L`."""

    def _prepare(self) -> None:
        """Makes what all pieces share, before threads take them apart."""

    @abstractmethod
    def _take_apart(self, head: int, start: int, stop: int) -> Outside:
        """`J` blocks of `c` positions from `start` on, the last of them filled up."""

    @abstractmethod
    def _value_work(self, positions: Tensor) -> Tensor:
        """Floating-point operations that the singular values of positions take."""

    def _norm_bound(self) -> Tensor | None:
        """Upper bounds `[N]` of the operators' largest singular values, where they are cheap."""
        return None

    def _rank_cap(self) -> Tensor:
        """The largest rank that `H_i` can have, `[N, L]`."""
        cap = self.cap(torch.arange(self.length, device=self.unit.device))
        return cap.expand(len(self.unit), -1)

    def _settle_alone(self, left: Tensor, tau: Tensor, result: Counts) -> Tensor:
        wanted = self._crowds(torch.nn.functional.pad(left, (1, 0)))
        if not bool(wanted.any()):
            return left
        alone = tau[..., None].expand(-1, -1, self.length)
        # A width of NaN says that a singular value lies between two tolerances near tau. There is no point in counting
        # at tau itself then: both sides of it come first.
        tied = torch.nn.functional.pad(result.width.isnan(), (1, 0))
        found, decided = self._count_alone(wanted, tied, alone, torch.zeros_like(alone))
        decided = decided[..., 1:]
        for mine, theirs in zip(result, found, strict=True):
            mine.copy_(torch.where(decided, theirs[..., 1:], mine))
        return left & ~decided

    def relative_counts(self, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        mask = self._mask(positions).expand(len(self.unit), len(atol), -1)
        wanted = self._crowds(mask)
        if not bool(wanted.any()):
            return super().relative_counts(positions, atol, rtol)
        absolute = (atol / self.unit[:, None])[..., None]
        least, most = self._bounds_of_largest(wanted.any(1))
        # with rtol of one or more nothing exceeds the tolerance
        share = rtol[:, None].clamp_max(1.0)
        tau, high = (torch.maximum(absolute, share * x[:, None]) for x in (least, most))
        possible = wanted & (tau < torch.inf) & (rtol < 1)[:, None]
        found, decided = self._count_alone(
            possible, torch.zeros_like(possible), tau, torch.where(tau > 0, high / tau - 1, 0.0)
        )
        decided |= wanted & ~possible
        heads, at = (mask & ~decided).any(1).nonzero(as_tuple=True)
        if len(heads):
            values = self.values_at(heads, at)[:, None]

            def count() -> Counts:
                lost, cap = self.lost_at(heads, at)[:, None], self.cap(at)[:, None]
                return count_relative(values, absolute[heads, :, 0], rtol, lost, cap)

            exact = self._with_own_losses(count, lambda found: found.unresolved)
            which, m = (mask & ~decided)[heads, :, at].nonzero(as_tuple=True)
            found.put((heads[which], m, at[which]), Counts(*(x[which, m] for x in exact)))
        found.redone.fill_(False)
        return Counts(*(x[..., positions] for x in found)).without(self.too_small(tau[..., positions], positions))

    def _crowds(self, wanted: Tensor) -> Tensor:
        """Those of bool `[N, M, L]` with enough others in their piece, and too much work for singular values."""
        work = self._value_work(torch.arange(self.length, device=wanted.device))
        # decided head by head, so that no head's answer depends on another's
        wanted = wanted & ((wanted.any(1) * work).sum(1) > CHEAP)[:, None, None]
        crowded = torch.zeros_like(wanted)
        for start, stop in self._pieces():
            many = wanted[..., start:stop].sum((1, 2)) > FEW
            crowded[..., start:stop] = wanted[..., start:stop] & many[:, None, None]
        crowded[..., 0] = False
        return crowded

    def _outside(self, head: int, start: int, stop: int) -> Outside:
        if "_known" not in self.__dict__:
            self._known = {}
        if (head, start) not in self._known:
            self._known[head, start] = self._take_apart(head, start, stop)
        return self._known[head, start]

    def _over_pieces(self, wanted: Tensor, work: Callable[[int, int, int], None]) -> None:
        """`work(head, start, stop)` for every piece with a position wanted, bool `[N, L]`."""
        self._prepare()
        wanted_pieces = torch.stack([wanted[:, start:stop].any(1) for start, stop in self._pieces()], 1)
        pieces = self._pieces()
        over_items(
            lambda task: work(task[0], *pieces[task[1]]),
            [tuple(x) for x in wanted_pieces.nonzero().tolist()],
            wanted.device,
        )

    def _counts_at(
        self, wanted: Tensor, tau: Tensor, count: Callable[[Outside, Tensor, Tensor], Found] = Outside.counts
    ) -> Found:
        """Counts and widths `[N, M, L]` at tolerances `[N, M, L]` where wanted; a tolerance of zero is replaced."""
        found = Found(torch.zeros_like(tau), torch.full_like(tau, torch.inf))

        def work(head: int, start: int, stop: int) -> None:
            outside = self._outside(head, start, stop)
            shape = outside.inner.shape[:2]
            padding = shape[0] * shape[1] - (stop - start)
            noise = (NOISE * outside.error).clamp_min(1e-300)[:, None]
            for m in range(tau.shape[1]):
                own = torch.nn.functional.pad(tau[head, m, start:stop], (0, padding), value=1.0).view(shape)
                here = torch.nn.functional.pad(wanted[head, m, start:stop], (0, padding)).view(shape)
                if not bool(here.any()):
                    continue
                piece = count(outside, torch.where(own > 0, own, noise), here)
                for mine, theirs in zip(found, piece, strict=True):
                    mine[head, m, start:stop] = theirs.flatten()[: stop - start]

        self._over_pieces(wanted.any(1), work)
        return found

    def _count_alone(self, wanted: Tensor, tied: Tensor, tau: Tensor, slack: Tensor) -> tuple[Counts, Tensor]:
        """Counts above `tau` `[N, M, L]`, known up to a relative `slack`, where wanted; and which are decided, bool.

        Where a singular value is known to be close (`tied`), and where the width is going to be too large, the counts
        on both sides of the tolerance come first. A position that stays open is decided, and marked `unresolved`, where
        its head has too many of them for singular values.
        """
        cap = self._rank_cap()[:, None].to(tau.dtype)
        zero = wanted & (tau == 0)
        full = wanted & self._full_above(wanted, tau * (1 + slack))
        if bool((full == wanted).all()):
            exact = torch.where(wanted, cap, 0.0).to(torch.int64)
            return Counts(exact, torch.zeros_like(tau), wanted.clone(), torch.zeros_like(wanted)), full
        foreseen = self._noise(wanted & ~full) / tau
        easy = wanted & ~full & ~tied & (foreseen <= SURE / 2)
        count, width = self._counts_at(easy | zero & ~full, tau)
        width = width + slack
        settled = full | easy & (width <= SURE) | zero & (count >= cap) & (width < FURTHEST)
        count, width = torch.where(full, cap, count), width.masked_fill(full, 0.0)
        rest = wanted & ~settled & ~zero
        guess = torch.where(easy, width, GUESS * foreseen + slack)
        for last in (False, True):
            if not bool(rest.any()):
                break
            move = (APART * guess).nan_to_num(nan=torch.inf)
            down, up = move.clamp_max(FURTHEST), move.clamp_max(FAR_UP)
            low, high = self._counts_at(rest, tau * (1 - down)), self._counts_at(rest, tau * (1 + up))
            # whether singular values that either side may have miscounted lie between the two sides
            sure = high.width <= (up - slack) / (1 + up)
            alike = (low.width <= (down - slack) / (1 - down)) & (low.above == high.above)
            between = rest & sure & (alike | (high.above >= cap))
            # a singular value between the two sides cannot be told from the tolerance, and is not counted
            caught = rest & sure & ~between & (up <= HOPELESS)
            count = torch.where(between | caught, high.above, count)
            width = torch.where(caught, up, width.masked_fill(between, 0.0))
            settled |= between
            rest &= ~(between | caught | easy)
            if last or not bool(rest.any()):
                break
            # The count at the tolerance itself comes next: its width says how far apart the sides should have been.
            late = self._counts_at(rest, tau)
            count, width = torch.where(rest, late.above, count), torch.where(rest, late.width + slack, width)
            guess = width
            rest &= APART * width > move
        undecided = wanted & ~settled
        work = torch.where(undecided, self._value_work(torch.arange(self.length, device=tau.device)), 0.0).sum((1, 2))
        unresolved = undecided & (work > AFFORDABLE)[:, None, None]
        count = torch.where(zero & ~settled, cap, torch.minimum(count, cap))
        width = width.masked_fill(zero, 0.0)
        return Counts(count.to(torch.int64), width, wanted.clone(), unresolved), settled | unresolved

    def _full_above(self, wanted: Tensor, tau: Tensor) -> Tensor:
        """Where `H_i` has as many singular values as it can have above `tau`, bool `[N, M, L]`, as far as squares tell.

        They do at the smallest tolerance whose square is above the rounding errors: a singular value above that
        tolerance is above all smaller ones.
        """
        norm = self._norm_bound()
        least = None if norm is None else ROOT * norm[:, None, None]
        if least is None or not bool((wanted & (tau < least / 2)).any()):
            return torch.zeros_like(wanted)
        at = least.clamp_min(TINIEST).expand(-1, 1, -(-self.length // self.group))
        found = self.eliminate(Wanted.of(wanted.any(1, keepdim=True), self.group), at)
        above, growth, smallest = (x.view(len(wanted), 1, -1) for x in (found.value, found.growth, found.least))
        believed = (width_of(growth) <= HOPELESS) & ~near_tie(growth, smallest)
        return believed & (above >= self._rank_cap()[:, None]) & (tau < least / 2)

    def _noise(self, wanted: Tensor) -> Tensor:
        """What taking the outside apart loses, `[N, 1, L]`, of pieces with positions wanted `[N, M, L]`."""
        lost = torch.zeros(len(self.unit), self.length, dtype=torch.float64, device=wanted.device)

        def work(head: int, start: int, stop: int) -> None:
            outside = self._outside(head, start, stop)
            lost[head, start:stop] = outside.error.repeat_interleave(outside.inner.shape[1])[: stop - start]

        self._over_pieces(wanted.any(1), work)
        return lost[:, None]

    def _bounds_of_largest(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of the largest singular value, `[N, L]` and `[N, L]`, of positions wanted, bool `[N, L]`."""
        least = torch.zeros(wanted.shape, dtype=torch.float64, device=wanted.device)
        most = torch.zeros_like(least)
        open_ones = wanted & (self._rank_cap() > 0)
        for steps in STEPS:

            def work(head: int, start: int, stop: int, steps=steps) -> None:
                found = self._outside(head, start, stop).largest(steps).flatten()[: stop - start]
                least[head, start:stop] = torch.maximum(least[head, start:stop], found)

            self._over_pieces(open_ones, work)
            for slack in SLACKS if steps == STEPS[-1] else SLACKS[:2]:
                if not bool(open_ones.any()):
                    break
                beyond = self._counts_at(open_ones[:, None], (least * (1 + slack))[:, None], Outside.none_above)
                proved = open_ones & ((beyond.above == 0) & (beyond.width < slack + SURE))[:, 0]
                most = torch.where(proved, least * (1 + slack) * (1 + beyond.width[:, 0]), most)
                open_ones &= ~proved
        heads, at = open_ones.nonzero(as_tuple=True)
        if len(heads):
            least[heads, at] = most[heads, at] = self.values_at(heads, at)[:, 0]
        return least, most
