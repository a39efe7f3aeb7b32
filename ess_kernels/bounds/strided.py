"""Counts at some positions, and bands between them: a count moves by one from a position to the next at most."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .counts import Question, between, exact
from .results import Found

# how many positions are visited where no stride is given
VISITED = 32

Visit = Callable[[Question], Found]


def strided(question: Question, stride: int | None, refine: int | None, visit: Visit = exact) -> Found:
    """Bounds from every `stride`-th position, and middles until no band is wider than `refine`.

    Args:
        question: what is asked.
        stride: positions between two visited ones; None: such that there are `VISITED` of them.
        refine: the widest band, or None: none is looked at again.
        visit: bounds at positions to be visited.
    """
    L, device = question.op.length, question.positions.device
    stride = max(1, L // VISITED) if stride is None else stride
    at = torch.tensor(sorted({1, L - 1, *range(stride, L, stride)}), device=device)
    seen = Question(question.op, at, question.tolerances)
    found = visit(seen)
    lower, upper = found.lower, found.upper
    while True:
        bands = between(question, seen, lower, upper)
        if refine is None:
            break
        new = _middles(question.positions, (bands.upper - bands.lower).flatten(0, 1) > refine, seen.positions)
        if not len(new):
            break
        more = visit(Question(question.op, new, question.tolerances))
        at, order = torch.cat([seen.positions, new]).sort()
        lower = torch.cat([lower, more.lower], -1)[..., order]
        upper = torch.cat([upper, more.upper], -1)[..., order]
        seen = Question(question.op, at, question.tolerances)
    widest = (bands.upper - bands.lower).flatten(1).amax(1).tolist() if len(question.positions) else [0] * len(lower)
    bands.why = [f"strided: {len(seen.positions)} positions visited, bands of at most {width}" for width in widest]
    return bands


def _middles(positions: Tensor, wide: Tensor, visited: Tensor) -> Tensor:
    """The middles between visited positions around those that are `wide` `[..., P]`, if they are not visited yet."""
    here = positions[wide.any(0)]
    if not len(here):
        return here
    after = torch.searchsorted(visited, here, right=True).clamp(1, len(visited) - 1)
    middles = ((visited[after - 1] + visited[after]) // 2).unique()
    return middles[~torch.isin(middles, visited)]
