"""`bounded_ess`: the call, and which method answers which head."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import check_positions, finite_float, integer, tolerance_lists
from .._readable import check_readable
from ..engine.compression import TooWide
from ..metrics import Positions, Tolerance
from ..operators.dense import as_operator
from ..operators.structure import Operator
from ..processes import on_one_thread_if_forked
from . import choice, counts
from .counts import Question
from .heads import by_window, one_by_one
from .results import BoundedESS, Found, check_method, unanswered
from .strided import strided

METHODS = ("auto", "exact", "windowed", "compressed", "randomized", "strided")
# positions that a sketch answers where none are asked for in particular
EVENLY_SPACED = 16


def bounded_ess(
    op: Operator | Tensor,
    atol: Tolerance | None = None,
    positions: Positions | None = None,
    *,
    method: str = "auto",
    error: float | None = None,
    rank: int = 64,
    stride: int | None = None,
    refine: int | None = None,
    seed: int = 0,
) -> BoundedESS:
    """Tolerance-ESS between two bounds, for lengths at which exact counts would take too long or have no room.

    Args:
        op: an operator of `ess_kernels.operators`, or a dense `T` `[..., L, L]`.
        atol: absolute tolerance, in the units of `T`: a float, or a list or 1-D tensor of `M` of them. None: 1e-3.
            There are no relative tolerances here.
        positions: as in `tolerance_ess`.
        method: how each head is answered.

            - `"exact"`: both bounds are the count of `tolerance_ess`, but where that cannot tell a singular value from
              the tolerance (`Certificate.unresolved`): there the counts beside it bound it.
            - `"windowed"`: an operator with a window or a band (`bandwidth`) is answered exactly; of any other, what
              lies beyond the smallest distance w with `sqrt(max row sum * max column sum) <= error` is left out. For
              decaying attention (ALiBi, forgetting attention) and decaying convolutions.
            - `"compressed"`: `compress` to `error`; then values above `atol + spectral_error` are sure, and no others
              than those above `atol - spectral_error` are possible. For long convolutions of few modes or power laws.
            - `"randomized"`: `randomized_ess` with `rank` and `seed`; its count is a lower bound, and where it is not
              certified, the largest rank possible is the upper one. It fails with probability 1e-10 at a position.
            - `"strided"`: exact counts at every `stride`-th position, and bands between: from one position to the next
              a count moves by one at most. It pays where a position has a price of its own: few positions, or where `T`
              has no room, sketches. A stride of 8 or 32 takes the exact engine as long as all positions; about
              `L / refine` positions are needed for bands of a width.
            - `"auto"`: for each head the first that applies: `windowed` where the bandwidth is below L/6; `exact` up to
              1024 tokens; `windowed` where the error leaves a width below L/6; `compressed` where no more than L/16
              singular values of a sampled part are above `error / sqrt(edges)`, and as long as that takes less than an
              exact answer; `exact` if it fits in memory; else `randomized` at the positions asked for, or 16 of them
              with bands between.
        error: what an approximation may lose, in the units of `T` (`windowed`, `compressed`); None: 1e-4 of the
            smallest tolerance, and for `compressed` once more 1e-6 of it where positions stay open.
        rank: columns of the sketch (`randomized`).
        stride, refine: of `strided`; None: L/32, and no refinement. With `refine` middles are visited until no band is
            wider than that.
        seed: of the sketch.

    Returns:
        `BoundedESS(lower, upper, method, why)`: int64 `[*batch, P]`, with a leading axis `M` where `atol` is a list,
        and `lower <= ESS <= upper` at every position; -1 both at every position of a (batch, head) that holds NaN or
        infinity. `method` and `why` have an entry for each head, along the flattened batch shape.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        MemoryError: `method="exact"` has no room.

    Source: Weyl's inequality for what is left out, Cauchy's interlacing for bands; `engine/compression.py`,
    `engine/decay.py` and `engine/interlacing.py` have the proofs.
    """
    op = as_operator(op)
    check_readable("op", op.inputs)
    tolerances, _, listed = tolerance_lists(atol, None)
    wanted = check_positions(positions, op.length)
    check_method(method, METHODS)
    error = None if error is None else finite_float("error", error, positive=True)
    rank = integer("rank", rank, minimum=1)
    stride = None if stride is None else integer("stride", stride, minimum=1)
    refine = None if refine is None else integer("refine", refine, minimum=0)
    seed = integer("seed", seed, minimum=0)
    distinct, back = (x.to(op.device) for x in wanted.unique(return_inverse=True))
    at = _evenly_spaced(op) if positions is None else None
    found, methods = _answer(Question(op, distinct, tolerances), method, error, rank, stride, refine, seed, at)

    def shaped(x: Tensor) -> Tensor:
        x = x[..., back].movedim(1, 0).reshape(len(tolerances), *op.batch_shape, len(back))
        return x if listed else x[0]

    return BoundedESS(shaped(found.lower), shaped(found.upper), tuple(methods), tuple(found.why))


def _evenly_spaced(op: Operator) -> Tensor:
    at = torch.linspace(0, op.length, EVENLY_SPACED + 2, dtype=torch.float64).round().long()[1:-1]
    return at.clamp(1, max(1, op.length - 1)).unique().to(op.device)


@torch.no_grad()
@on_one_thread_if_forked
def _answer(
    question: Question,
    method: str,
    error: float | None,
    rank: int,
    stride: int | None,
    refine: int | None,
    seed: int,
    at: Tensor | None,
) -> tuple[Found, list[str]]:
    """Bounds `[N, M, P]`, and the method of each head. `at`: where a sketch is made if nothing else is asked for."""
    op = question.op
    N, shape = op.num_heads, (op.num_heads, len(question.tolerances), len(question.positions))
    bad = torch.full(shape, -1, dtype=torch.int64, device=op.device)
    heads = op.all_heads()
    finite = op.finite(heads) if N else heads.bool()
    good = heads[finite]
    result, methods = Found(bad, bad.clone(), unanswered(finite)), [method if method != "auto" else "exact"] * N
    if not len(good) or not bad.numel():
        return result, methods

    put = functools.partial(result.put, methods)
    # where all heads are good the operator is asked as it is
    asked = question if len(good) == N else question.of_heads(good)

    def sketch(some: Question, at: Tensor | None = None) -> Found:
        return counts.randomized(some, rank, seed, at)

    if method == "exact":
        put(good, counts.exact(asked), method)
    elif method == "randomized":
        put(good, sketch(asked), method)
    elif method == "strided":
        visit: Callable[[Question], Found] = counts.exact if choice.fits(asked.inner) else sketch
        put(good, strided(asked, stride, refine, visit), method)
    elif method == "auto" and (first := choice.first_choices(question.inner, good)) is not None:
        exact = counts.exact(asked, "")
        exact.why = [f"{one.why}{line}" for one, line in zip(first, exact.why, strict=True)]
        put(good, exact, *(one.method for one in first))
    else:

        def one_head(one: Question) -> tuple[Found | None, str]:
            return _one_head(one, method, error, lambda one: sketch(one, _inner(question, at)))

        one_by_one(question, good, result, methods, one_head, counts.exact)
    return result, methods


def _inner(question: Question, at: Tensor | None) -> Tensor | None:
    return None if at is None else question.op.inner_positions(at)


def _one_head(
    one: Question, method: str, error: float | None, sketch: Callable[[Question], Found]
) -> tuple[Found | None, str]:
    """Bounds of one head and the method that has found them; or None and why an exact answer comes later."""
    op, L = one.inner, one.inner.length
    if method == "compressed":
        return counts.compressed(one, error), method
    if method == "windowed":
        return by_window(one, error, counts.exact, counts.windowed), method
    allowed = one.first_error(counts.SHARES[0]) if error is None else error
    chosen = choice.first_choice(op) or choice.choose(one, allowed)
    if chosen.method == "windowed":
        if chosen.why:
            return counts.exact(one, chosen.why), chosen.method
        found = counts.windowed(one, error, choice.widest_window(L))
        if found is not None:
            return found, chosen.method
        chosen = choice.after_window(one, allowed)
    if chosen.method == "compressed":
        try:
            return counts.compressed(one, error, chosen.most), chosen.method
        except TooWide as wide:
            chosen = choice.without_compression(op, choice.refused(wide))
    if chosen.method == "randomized":
        found = sketch(one)
        found.why = [f"{line}; {chosen.why}" for line in found.why]
        return found, chosen.method
    return None, chosen.why
