"""When a count by elimination can be believed, and what a certificate says.

Elimination is exact for a matrix that differs from the given one by rounding errors in proportion to the growth `g` of
its diagonal (in units of the tolerance): a singular value can be on the wrong side of the tolerance only if it lies
within `tau (1 +- eps g)`. That width grows like `eps (s_1 / tau)^2`, since elimination works on squares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .quadrature import Estimate

EPS = torch.finfo(torch.float64).eps
# a count whose width is below this is taken as it is
SURE = 1e-7
# a row of this many ulp of the growth is as good as zero: the tolerance is on a singular value
TINY_ROW = 4e6 * EPS
# a row above this is never taken for a tie, however large the growth
SMALL_ROW = 1e-2
# above this width elimination does not answer at all: the position goes to singular values
HOPELESS = 1e-2
# where rounding in the states makes a count unsure by less than this it is taken as it is: no elimination could make it
# any surer, and the certificate says how wide the band is. Above, the count must be the same on both sides of the band
BLURRED = 1e-5
# up to this width a count can be settled by tolerances on both sides, four times as far away
HOPEFUL = HOPELESS / 4
# errors are taken for at least this share of the sum of singular values, because a logarithm is taken of the share
LEAST_SHARE = 1e-300
# a singular value within this many ulp of the largest one of the tolerance is a true tie
TIE = 64 * EPS
# entropy-ESS whose own error bound is above this goes to more nodes, and then to singular values
ENTROPY_BOUND = 8e-5


class Certificate(NamedTuple):
    """How far each count can be trusted; tensors of the counts' shape.

    Attributes:
        width: float64, the relative band around the tolerance in which a singular value could have been miscounted, by
            the elimination or because rounding has spoilt the states that it starts from.
        redone: bool, whether the position was done again because its first width was too large, or was counted on both
            sides of the tolerance from the start because it would have been.
        unresolved: bool, whether a singular value was found equal to the tolerance to within rounding error, of the
            largest one or of the states: the count may then differ by the number of such values. In steeply graded
            spectra a few such ties are not noticed; the width, never zero for a count that was taken as it came, covers
            them. With an infinite width nothing is known of the count: numbers of the head were too small for float64
            beside its largest one.
    """

    width: Tensor
    redone: Tensor
    unresolved: Tensor


class EntropyCertificate(NamedTuple):
    """How far each entropy-ESS can be trusted; tensors of its shape.

    Attributes:
        error: float64, a bound of its relative error: of the quadrature, of rounding, and of what rounding took from
            the states of a recurrence. Infinite where `unresolved`, and 0 where `H_i` is zero.
        total: float64, the sum of the singular values, in the units of the operator: what entropy does not know.
        unresolved: bool, whether the sum is not above what rounding can have made of nothing, so that the entropy is
            given as 0. False where `H_i` is known to be exactly zero. With a total of NaN numbers of the head were too
            small for float64 beside its largest one.
    """

    error: Tensor
    total: Tensor
    unresolved: Tensor


class Entropies(NamedTuple):
    """Entropy-ESS with what a certificate needs; float64, float64, float64, bool tensors of one shape."""

    ess: Tensor
    error: Tensor
    total: Tensor
    unresolved: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: torch.device) -> Entropies:
        ess, error, total = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
        return cls(ess, error, total, torch.zeros(shape, dtype=torch.bool, device=device))

    @classmethod
    def certified(cls, found: Estimate, cap: Tensor, lost: Tensor) -> Entropies:
        """From what is known of the singular values of `H`, each of which was wrong by up to `lost` before that.

        A sum of at most `cap` values that is not above `cap * lost` may be all rounding errors: it has no entropy.
        """
        known = lost.isfinite()
        nothing = (found.total <= cap * lost) & known
        unresolved = nothing & (found.total > 0) | ~known
        error = moved_entropy(found.ess, found.total, cap, lost).add_(found.bound)
        error.masked_fill_(nothing, 0.0).masked_fill_(unresolved, torch.inf)
        return cls(found.ess.masked_fill(nothing, 0.0), error, found.total, unresolved)

    def without(self, unknown: Tensor | None) -> Entropies:
        """The same with no answer where nothing is known, bool `[N, P]`; None: that is nowhere."""
        if unknown is None:
            return self
        ess, error = self.ess.masked_fill(unknown, 0.0), self.error.masked_fill(unknown, torch.inf)
        return Entropies(ess, error, self.total.masked_fill(unknown, torch.nan), self.unresolved | unknown)

    def mark_bad(self, bad: Tensor) -> Entropies:
        """The same without an answer in heads that are `bad`, bool `[N, 1]`."""
        ess, error, total = (x.masked_fill(bad, torch.nan) for x in (self.ess, self.error, self.total))
        return Entropies(ess, error, total, self.unresolved | bad)

    def put(self, index: tuple[Tensor | slice, ...] | Tensor, other: Entropies) -> None:
        for mine, theirs in zip(self, other, strict=True):
            mine[index] = theirs


class Counts(NamedTuple):
    """Counts with what a certificate needs; int64, float64, bool, bool tensors of one shape."""

    counts: Tensor
    width: Tensor
    redone: Tensor
    unresolved: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], device: torch.device) -> Counts:
        return cls(
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def without(self, unknown: Tensor | None) -> Counts:
        """The same, certain of nothing where that is `unknown`, bool of the counts' shape; None: that is nowhere."""
        if unknown is None:
            return self
        return self._replace(width=self.width.masked_fill(unknown, torch.inf), unresolved=self.unresolved | unknown)

    def put(self, index: tuple[Tensor | slice, ...] | Tensor, other: Counts) -> None:
        for mine, theirs in zip(self, other, strict=True):
            mine[index] = theirs


def width_of(growth: Tensor) -> Tensor:
    """Relative width behind a growth; a growth that is not a number (a zero pivot) is no answer: inf."""
    return (growth * EPS).nan_to_num_(nan=torch.inf)


def near_tie(growth: Tensor, least: Tensor) -> Tensor:
    """Whether the least row is too small for the sign of its pivot to be believed."""
    return ~(least > (TINY_ROW * (1 + growth)).clamp_max(SMALL_ROW))


def count_values(values: Tensor, tau: Tensor, lost: Tensor | float = 0.0, cap: Tensor | None = None) -> Counts:
    """Counts from singular values above `tau`.

    Args:
        values: `[..., S]`, descending, exact to a few ulp of the largest for the matrix that they were computed from.
        tau: `[...]`.
        lost: `[...]`, by how much that matrix may be wrong (2-norm): no singular value is wrong by more.
        cap: `[...]`, how many values can be other than zero; the rest is zero for certain. None: all of them.
    """
    slack = TIE * values[..., 0] + lost
    possible = values > 0
    if cap is not None:
        # what was lost may have been all of a value
        below_cap = torch.arange(values.shape[-1], device=values.device) < cap[..., None]
        possible = below_cap & (possible | (torch.as_tensor(lost, device=values.device) > 0)[..., None])
    near = ((values - tau[..., None]).abs() <= slack[..., None]) & possible
    # values that are no numbers are no answer
    width = torch.where(tau > 0, slack / tau, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    # where the largest value is as many tolerances as no number can say, zeros are what is left of smaller ones
    unresolved = near.any(-1) | slack.isnan() | (width.isinf() & (values[..., :1] > 0).any(-1))
    return Counts((values > tau[..., None]).sum(-1), width, torch.ones_like(tau, dtype=torch.bool), unresolved)


def count_relative(values: Tensor, atol: Tensor, rtol: Tensor, lost: Tensor, cap: Tensor) -> Counts:
    """Counts from singular values above `max(atol, rtol s_1)`.

    `values` `[..., S]`, `lost` and `cap` are as in `count_values`. The other arguments broadcast with the axes `[...]`
    of the values, which have length 1 where the tolerances have an axis of their own.
    """
    threshold = torch.maximum(atol, rtol * values[..., 0])
    # a relative tolerance is as wrong as the largest value that it is a part of
    found = count_values(values.expand(*threshold.shape, -1), threshold, lost * (1 + rtol), cap)
    # nothing exceeds the largest value, however wrong that is
    return found._replace(unresolved=found.unresolved & ((rtol < 1) | values[..., 0].isnan()))


def moved_entropy(ess: Tensor, total: Tensor, cap: Tensor, lost: Tensor) -> Tensor:
    """A bound of the relative change of entropy-ESS where each of `cap` singular values may be wrong by `lost`.

    A value `s` that changes by `ds` changes the logarithm of `ess` by `-ds (log(s / total) + log(ess)) / total`. Over
    all values the logarithm is largest where all are as small as their errors.
    """
    share = lost / total.clamp_min(LEAST_SHARE)
    entropy = ess.clamp_min(1.0).log_()
    steepest = share.clamp_min(LEAST_SHARE).log_().neg_().add_(1.0).sub_(entropy)
    return torch.maximum(steepest, entropy).mul_(share).mul_(cap)


def estimate_of_values(values: Tensor) -> Estimate:
    """From singular values `[..., S]` (descending, exact to a few ulp of the largest)."""
    ess, total = entropy_of_values(values), values.sum(-1)
    number = torch.full_like(total, values.shape[-1])
    largest = values[..., 0] if values.shape[-1] else torch.zeros_like(total)
    return Estimate(ess, moved_entropy(ess, total, number, TIE * largest), total)


def entropy_of_values(values: Tensor) -> Tensor:
    """Entropy-ESS `exp(-sum p log p)`, `p = sigma / sum sigma`, of singular values `[..., S]`; 0 where all are 0."""
    total = values.sum(-1, keepdim=True)
    p = values / torch.where(total == 0, 1.0, total)
    return torch.where(total[..., 0] == 0, 0.0, torch.exp(-torch.special.xlogy(p, p).sum(-1)))
