"""Bounds of entropy-ESS, by one method each: what an approximation may lose in the nuclear norm, and what that does.

Let `s` be the singular values of `H_i` and `s~` those of another matrix, N and N~ their sums, and `nu` a bound of the
nuclear norm of the difference. Then `sum |s_k - s~_k| <= nu` (Mirsky), so that the shares `s / N` and `s~ / N~` have a
distance `sum |p_k - p~_k| / 2 <= t = nu / (N~ - nu)`. With d shares, and h the binary entropy, Audenaert's inequality
says (J. Phys. A 40, 8127, 2007; the best constants of Fannes' inequality)

    |log ESS - log ESS~| <= t log(d - 1) + h(t)      where t <= 1 - 1/d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engine.certainty import EntropyCertificate
from ..engine.compression import TooWide
from ..engine.decay import tails_of
from ..metrics import entropy_ess
from ..operators.of_heads import Banded
from ..operators.structure import Operator
from .counts import Question, compressed_head
from .results import Found

# what may be lost of the sum of singular values: a radius of 1e-4 for 4096 of them
SHARE = 4e-6
# how wrong the sum of singular values from a quadrature may be
SUM_ERROR = 1e-3
# the largest error that is called an answer
CLAIMED = 2e-4


def exact(question: Question, label: str = "exact") -> Found:
    """Entropies as `entropy_ess` has them, with its own errors on both sides."""
    ess, certificate = entropy_ess(question.op, question.positions, certificate=True)
    shape = (question.op.num_heads, -1)
    ess, error = ess.reshape(shape), certificate.error.reshape(shape)
    lower, upper = _around(ess, error, question.cap[:, 0])
    bad = ess.isnan()
    return Found(lower.masked_fill(bad, torch.nan), upper.masked_fill(bad, torch.nan), [label] * len(ess))


def _around(ess: Tensor, error: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds from an entropy-ESS and a bound of its relative error; where that says nothing, 0 and the cap."""
    known = error < 1
    lower = torch.where(known, ess * (1 - error), 0.0)
    upper = torch.where(known, ess / (1 - error), torch.inf)
    # one value is the least that is not zero
    lower = torch.where(lower > 0, lower.clamp_min(1.0), 0.0)
    return torch.minimum(lower, cap.to(lower.dtype)), torch.minimum(upper, cap.to(upper.dtype))


def audenaert(t: Tensor, d: Tensor) -> Tensor:
    """The largest difference of the entropies of two distributions on d points at a distance t; infinite beyond."""
    few = d <= 1
    d = d.clamp_min(2)
    possible = t <= 1 - 1 / d
    t = torch.where(possible, t, 0.0)
    difference = t * (d - 1).log() + torch.special.entr(t) + torch.special.entr(1 - t)
    return torch.where(few, 0.0, torch.where(possible, difference, torch.inf))


def beside(question: Question, near: Operator, nuclear: float) -> tuple[Found, Tensor]:
    """Bounds from the entropies of an operator of one head that is off by `nuclear` in the nuclear norm; and N~ `[P]`.

    Where the other `H_i` may be zero nothing is known.
    """
    ess, certificate = entropy_ess(near, question.its, certificate=True)
    ess, certificate = ess.reshape(1, -1), EntropyCertificate(*(x.reshape(1, -1) for x in certificate))
    cap, total = question.cap[:, 0], certificate.total * (1 - SUM_ERROR)
    sizes = torch.minimum(question.its, question.inner.length - question.its).to(total.dtype)
    t = torch.where(total > nuclear, nuclear / (total - nuclear), torch.inf)
    radius = audenaert(t, sizes) if nuclear > 0 else torch.zeros_like(t)
    lower, upper = _around(ess, certificate.error, cap)
    lower, upper = lower * torch.exp(-radius), upper * torch.exp(radius)
    # where all of the sum may be lost, or where it is not known
    nothing = ~(certificate.error <= SUM_ERROR) | (radius == torch.inf) | ((total <= nuclear) & (nuclear > 0))
    lower = torch.where(nothing | (lower == 0), 0.0, lower.clamp_min(1.0))
    upper = torch.minimum(torch.where(nothing, torch.inf, upper), cap.to(upper.dtype))
    return Found(torch.minimum(lower, upper), upper, [""]), certificate.total[0]


def claimed(found: Found) -> str:
    """At how many positions the bounds are an answer, in words."""
    close = (found.upper.log() - found.lower.log() <= 2 * CLAIMED) | (found.upper == found.lower)
    share = 100 * float(close.double().mean()) if close.numel() else 100.0
    return f"within {CLAIMED:g} at {share:.4g} % of positions"


def windowed(question: Question, error: float | None, widest: int) -> Found | None:
    """Of one head: from the smallest window beyond which the magnitudes sum up to little; None where that is wide."""
    op = question.inner
    tails = tails_of(op, question.source, widest)
    narrowest = tails.narrowest(goal(question) if error is None else error, nuclear=True)
    if narrowest is None:
        return None
    width, left = narrowest
    found, _ = beside(question, Banded(op, op.all_heads(), width, question.source), left)
    found.why = [f"windowed: magnitudes beyond a width of {width} add up to {left:.2g}; {claimed(found)}"]
    return found


def goal(question: Question) -> float:
    """What may be lost in the nuclear norm: a share of what the singular values at the middle add up to at least."""
    return SHARE * _sum_at_middle(question)


def first_error(question: Question) -> float:
    """What a walk may lose in the 2-norm, so that it will hardly lose more than that."""
    return goal(question) / 16


def _sum_at_middle(question: Question) -> float:
    """A lower bound of the sum of singular values at the middle: what a part of `H` next to it has."""
    L = question.inner.length
    size = min(256, L // 2)
    if not size:
        return 0.0
    h = L // 2
    part = question.source.tile(slice(h, h + size), slice(h - size, h))[0]
    return float(torch.linalg.matrix_norm(part, "nuc"))


def compressed(question: Question, error: float | None, most: float = math.inf) -> Found:
    """Of one head: from its compressed operator; once more where too much was dropped and no error was given.

    Raises:
        TooWide: the walk would take more than `most` floating-point operations.
    """
    first = first_error(question) if error is None else error
    found, nuclear, total = _compressed(question, first, most)
    allowed = SHARE * (float(total.quantile(0.1)) if len(total) else 0.0)
    if error is None and nuclear > allowed > 0:
        try:
            found = _compressed(question, first * allowed / nuclear / 2, most)[0].within(found)
        except TooWide:
            return found
        found.why = [found.why[0].rpartition(";")[0] + f"; {claimed(found)}"]
    return found


def _compressed(question: Question, error: float, most: float) -> tuple[Found, float, Tensor]:
    near = compressed_head(question.inner, question.source, error, most)
    nuclear = float(near.nuclear_error)
    found, total = beside(question, near, nuclear)
    rank = int(near.ranks.max()) if near.ranks.numel() else 0
    found.why = [
        f"compressed: ranks up to {rank}, nuclear norm of the difference at most {nuclear:.2g}; {claimed(found)}"
    ]
    return found, nuclear, total
