"""Bounds of counts, by one method each. All heads are good, positions are distinct and ascending, float64 tolerances.

`op` is what the caller has, `inner` what the engine sees of it, which has a position of its own for each of the
caller's. Every function answers for all heads of its operator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..caching import cached_property
from ..compressing import one_head
from ..engine.compression import TooWide
from ..engine.decay import tails_of
from ..engine.interlacing import interlaced
from ..metrics import tolerance_ess
from ..operators.compressed import Compressed
from ..operators.dense import Dense
from ..operators.of_heads import Banded, OfHeads
from ..operators.structure import Operator, Tiled
from ..operators.tile_sources import TileSource, tile_source
from ..randomized import randomized_ess
from .results import Found

# what an approximation may lose, in units of the tolerance: the first try, and one more where positions stay open
SHARES = (1e-4, 1e-6)
# the same where no tolerance is above zero
SMALLEST = 1e-7
# how much farther away than the error a tolerance is asked for, in units of itself: a share of the error, within limits
BESIDE = 0.1
LEAST_BESIDE, MOST_BESIDE = 1e-6, 1e-3
BLOCK = 64


class Question:
    """What is asked: an operator, positions and tolerances.

    Attributes:
        op: the caller's operator.
        positions: int64 `[P]`, distinct and ascending, of `op`.
        inner, its: the operator that the engine sees, and its positions with the same `H_i`.
        tolerances: M of them.
        cap: int64 `[N, M, P]`, the largest rank that `H_i` can have.
    """

    def __init__(self, op: Operator, positions: Tensor, tolerances: list[float], cap: Tensor | None = None):
        self.op, self.positions, self.tolerances = op, positions, tolerances
        self.inner, self.its = op.inner, op.inner_positions(positions)
        if cap is None:
            cap = op.rank_cap(positions).expand(*op.batch_shape, len(positions))
            cap = cap.reshape(op.num_heads, 1, len(positions)).expand(-1, len(tolerances), -1)
        self.cap = cap

    @cached_property
    def source(self) -> TileSource:
        """Tiles of an operator of one head, with what they share, such as the sums of rows."""
        return tile_source(self.inner, self.inner.all_heads())

    def of_heads(self, heads: Tensor) -> Question:
        """The same of some heads only, asked of the operator that the engine sees."""
        if len(heads) == self.op.num_heads:
            one: Operator = self.inner
        elif isinstance(self.inner, Tiled):
            one = OfHeads(self.inner, heads)
        else:
            one = Dense(self.inner.dense_heads(heads))
        return Question(one, self.its, self.tolerances, self.cap[heads])

    def flat(self, x: Tensor) -> Tensor:
        """`[M, *batch, P]` as `[N, M, P]`."""
        return x.reshape(len(self.tolerances), self.op.num_heads, -1).movedim(0, 1)

    def tightened(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds as narrow as those at other positions and the cap allow."""
        lower, upper = interlaced(lower.clamp_min(0), torch.minimum(upper, self.cap), self.its)
        return lower.clamp_min(0), torch.minimum(upper, self.cap)

    def first_error(self, share: float) -> float:
        """What may be lost if every tolerance may be off by a share of itself."""
        positive = [t for t in self.tolerances if 0 < t < math.inf]
        return share * min(positive) if positive else SMALLEST


def exact(question: Question, label: str = "exact") -> Found:
    """Counts as `tolerance_ess` has them; where it cannot tell a singular value from a tolerance, its neighbours' word.

    At all other positions both bounds are its count.
    """
    op = question.op
    counts, certificate = tolerance_ess(op, atol=question.tolerances, positions=question.positions, certificate=True)
    counts, unresolved = question.flat(counts), question.flat(certificate.unresolved)
    unresolved = unresolved & (counts >= 0)
    lower, upper = counts, counts
    if bool(unresolved.any()):
        lower, upper = question.tightened(
            counts.masked_fill(unresolved, 0), torch.where(unresolved, question.cap, counts)
        )
        lower, upper = (torch.where(unresolved, x, counts) for x in (torch.minimum(lower, upper), upper))
    number = unresolved.flatten(1).sum(1).tolist()
    lines = [label if not n else f"{label}; a singular value is the tolerance at {n} positions" for n in number]
    return Found(lower, upper, lines)


def beside(question: Question, near: Operator, error: float) -> Found:
    """Bounds from the counts of an operator of one head whose singular values are off by no more than `error`.

    Its values above `tau + error` are sure to be above tau, and no others than those above `tau - error` can be. Both
    are asked for a little farther away, so that the engine's own width does not matter.
    """
    more = [
        min(max(BESIDE * error / t, LEAST_BESIDE), MOST_BESIDE) if t > 0 else MOST_BESIDE for t in question.tolerances
    ]
    high = [(t + error) * (1 + m) for t, m in zip(question.tolerances, more, strict=True)]
    low = [max((t - error) * (1 - m), 0.0) for t, m in zip(question.tolerances, more, strict=True)]
    counts, certificate = tolerance_ess(near, atol=high + low, positions=question.its, certificate=True)
    M = len(question.tolerances)
    allowed = torch.tensor(more, dtype=torch.float64, device=counts.device).repeat(2)[:, None, None] / 2
    known = ~certificate.unresolved & (certificate.width <= allowed)
    # below the error nothing is known of singular values that are zero in the other operator
    some = torch.tensor([x > 0 for x in low], device=counts.device)[:, None, None]
    lower = torch.where(known[:M], counts[:M], 0).movedim(0, 1)
    upper = torch.where(known[M:] & some, counts[M:], question.cap.movedim(1, 0)).movedim(0, 1)
    return Found(*question.tightened(lower, upper), [""])


def windowed(question: Question, error: float | None, widest: int) -> Found | None:
    """Of one head: bounds from the smallest window beyond which the operator's norm is at most `error`.

    None where that is wider than `widest`.
    """
    error = question.first_error(SHARES[0]) if error is None else error
    head = question.inner.all_heads()
    narrowest = tails_of(question.inner, question.source, widest).narrowest(error)
    if narrowest is None:
        return None
    width, left = narrowest
    found = beside(question, Banded(question.inner, head, width, question.source), left)
    found.why = [f"windowed: beyond a width of {width} the norm is at most {left:.2g}; {found.closed}"]
    return found


def compressed(question: Question, error: float | None, most: float = math.inf) -> Found:
    """Of one head: bounds from its compressed operator, once more with a smaller error where positions are open.

    `most`: floating-point operations that a walk may take.

    Raises:
        TooWide: it would take more.
    """
    found = _compressed(question, question.first_error(SHARES[0]) if error is None else error, most)
    if error is None and bool(found.open.any()):
        try:
            again = _compressed(question, question.first_error(SHARES[1]), most)
        except TooWide:
            return found
        found = again.within(found)
        found.why = [f"{again.why[0].split(';')[0]}; {found.closed}"]
    return found


def _compressed(question: Question, error: float, most: float) -> Found:
    near = compressed_head(question.inner, question.source, error, most)
    left = float(near.spectral_error)
    found = beside(question, near, left)
    rank = int(near.ranks.max()) if near.ranks.numel() else 0
    found.why = [f"compressed: ranks up to {rank}, norm of the difference at most {left:.2g}; {found.closed}"]
    return found


def compressed_head(inner: Operator, source: TileSource, error: float, most: float = math.inf) -> Compressed:
    """The one head of an operator, a good one, as a compressed operator; see `ess_kernels.compress`."""
    unit, walked = one_head(source, error, None, BLOCK, most)
    assert walked is not None, "a good head has finite entries"
    device = inner.device
    errors = torch.tensor([walked.spectral, walked.frobenius, walked.nuclear], dtype=torch.float64, device=device)
    return Compressed(
        inner.length,
        (1,),
        BLOCK,
        [walked.blocks],
        torch.tensor([walked.ranks], dtype=torch.int64, device=device),
        torch.tensor([unit], dtype=torch.float64, device=device),
        torch.ones(1, dtype=torch.bool, device=device),
        unit * errors[:, None],
    )


def randomized(question: Question, rank: int, seed: int, at: Tensor | None = None) -> Found:
    """Sketches at the positions, or `at` some positions that need not be among them, with bands between these."""
    positions = question.positions if at is None else at
    seen = Question(question.op, positions, question.tolerances)
    count, certified, _ = randomized_ess(question.op, positions, atol=question.tolerances, rank=rank, seed=seed)
    count, certified = question.flat(count), question.flat(certified)
    # a product that overflows has no answer
    known = count >= 0
    lower, upper = count.clamp_min(0), torch.where(certified & known, count, seen.cap)
    found = between(question, seen, lower, upper)
    share = certified.double().mean((1, 2)).tolist() if certified.numel() else [1.0] * len(certified)
    failure = "the bound fails with probability 1e-10 a position"
    found.why = [
        f"randomized: rank {rank}, {100 * x:.4g} % of {len(positions)} positions certified; {failure}" for x in share
    ]
    return found


def between(question: Question, seen: Question, lower: Tensor, upper: Tensor) -> Found:
    """Bounds at the positions of a question from those at the positions of another one, of the same operator."""
    every, back = torch.cat([question.its, seen.its]).unique(return_inverse=True)
    mine, theirs = back.split([len(question.its), len(seen.its)])
    shape = (*lower.shape[:2], len(every))
    low, high = lower.new_zeros(shape), upper.new_full(shape, question.inner.length * max(question.op.block))
    high[..., mine] = question.cap
    low[..., theirs], high[..., theirs] = lower, upper
    low, high = interlaced(low, high, every)
    low, high = low[..., mine].clamp_min(0), torch.minimum(high[..., mine], question.cap)
    return Found(low, high, [""] * len(lower))
