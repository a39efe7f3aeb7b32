"""`bounded_entropy_ess`: the call, and which method answers which head."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .._checks import check_positions, finite_float
from .._readable import check_readable
from ..engine.compression import TooWide
from ..metrics import Positions
from ..operators.dense import as_operator
from ..operators.structure import Operator
from ..processes import on_one_thread_if_forked
from . import choice, entropies
from .counts import Question
from .heads import by_window, one_by_one
from .results import BoundedEntropy, Found, check_method, unanswered

METHODS = ("auto", "exact", "windowed", "compressed")


def bounded_entropy_ess(
    op: Operator | Tensor, positions: Positions | None = None, *, method: str = "auto", error: float | None = None
) -> BoundedEntropy:
    """Entropy-ESS between two bounds, for lengths at which exact answers would take too long or have no room.

    Args:
        op, positions: as in `entropy_ess`.
        method: how each head is answered.

            - `"exact"`: `entropy_ess`, with the error of its certificate on both sides.
            - `"windowed"`: exact where the operator has a window or a band; of any other, what lies beyond the smallest
              distance is left out beyond which magnitudes add up to no more than `error`.
            - `"compressed"`: `compress` to `error` in the 2-norm; what that has lost in the nuclear norm bounds how far
              the entropy may have moved (Audenaert's inequality).
            - `"auto"`: for each head the first that applies: `windowed` where the bandwidth is below L/6; `exact` up to
              1024 tokens; `windowed` where the error leaves a width below L/6; `compressed` where no more than L/8
              singular values of a sampled part are above it, and as long as that takes less than an exact answer;
              `exact` if it fits in memory.
        error: see `method`; None: such that about 4e-6 of the sum of the singular values is lost, a radius of 1e-4.

    Returns:
        `BoundedEntropy(lower, upper, method, why)`: float64 `[*batch, P]`, `lower <= ESS <= upper` at every position;
        NaN both at every position of a (batch, head) that holds NaN or infinity. Where nothing is known, as where what
        is left out may be all there is, the bounds are 0 and `min(i, L - i)`. `method` and `why` have an entry for each
        head, along the flattened batch shape; `why` says at how many positions the bounds are within 2e-4.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        MemoryError: nothing that is certain has room.

    Source: Mirsky's inequality for sums of singular values; Audenaert, J. Phys. A 40, 8127 (2007), for entropies.
    """
    op = as_operator(op)
    check_readable("op", op.inputs)
    wanted = check_positions(positions, op.length)
    check_method(method, METHODS)
    error = None if error is None else finite_float("error", error, positive=True)
    distinct, back = (x.to(op.device) for x in wanted.unique(return_inverse=True))
    found, methods = _answer(Question(op, distinct, [0.0]), method, error)
    lower, upper = (x[:, back].reshape(*op.batch_shape, len(back)) for x in (found.lower, found.upper))
    return BoundedEntropy(lower, upper, tuple(methods), tuple(found.why))


@torch.no_grad()
@on_one_thread_if_forked
def _answer(question: Question, method: str, error: float | None) -> tuple[Found, list[str]]:
    """Bounds `[N, P]`, and the method of each head."""
    op, N = question.op, question.op.num_heads
    bad = torch.full((N, len(question.positions)), torch.nan, dtype=torch.float64, device=op.device)
    heads = op.all_heads()
    finite = op.finite(heads) if N else heads.bool()
    good = heads[finite]
    result, methods = Found(bad, bad.clone(), unanswered(finite)), ["exact" if method == "auto" else method] * N
    if not len(good) or not bad.numel():
        return result, methods

    put = functools.partial(result.put, methods)
    first = choice.first_choices(question.inner, good) if method == "auto" else None
    if method == "exact" or first is not None:
        exact = entropies.exact(question if len(good) == N else question.of_heads(good))
        if first is not None:
            exact.why = [one.why for one in first]
        put(good, exact, *([one.method for one in first] if first else ["exact"]))
        return result, methods
    one_by_one(question, good, result, methods, lambda one: _one_head(one, method, error), entropies.exact)
    return result, methods


def _one_head(one: Question, method: str, error: float | None) -> tuple[Found | None, str]:
    """Bounds of one head and the method that has found them; or None and why an exact answer comes later."""
    op, L = one.inner, one.inner.length
    if method == "compressed":
        return entropies.compressed(one, error), method
    if method == "windowed":
        return by_window(one, error, entropies.exact, entropies.windowed), method
    first = choice.first_choice(op)
    if first is not None:
        return entropies.exact(one, first.why), first.method
    lost = entropies.first_error(one) if error is None else error
    if choice.may_have_window(one.source, entropies.goal(one) if error is None else error, nuclear=True):
        found = entropies.windowed(one, error, choice.widest_window(L))
        if found is not None:
            return found, "windowed"
    reason = choice.refusal(one.source, lost, choice.ENTROPY_SHARE)
    if reason is None:
        try:
            most = choice.PACE * choice.EXACT_ENTROPY * float(L) ** 3
            return entropies.compressed(one, error, most if choice.fits(op) else math.inf), "compressed"
        except TooWide as wide:
            reason = choice.refused(wide)
    if not choice.fits(op):
        raise choice.no_room(op, f"{reason}; ask for fewer tokens, or for bounds of counts: bounded_ess")
    return None, f"exact: {reason}"
