"""What bounds of counts and bounds of entropies have in common: heads are answered one by one, or by a window.

`exact(question, label)` answers all heads of a question, and its lines begin with the label; `windowed(question, error,
widest)` answers one head, or is None where no window up to the widest will do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._progress import progress
from . import choice
from .counts import Question
from .results import Found

Exact = Callable[[Question, str], Found]
Windowed = Callable[[Question, float | None, int], Found | None]
# bounds of one head and the method that has found them; or None and why an exact answer comes later
OneHead = Callable[[Question], tuple[Found | None, str]]


def by_window(one: Question, error: float | None, exact: Exact, windowed: Windowed) -> Found:
    """Bounds of one head by the window that it has, or by one that leaves out little."""
    width, L = one.inner.bandwidth, one.inner.length
    if width is not None:
        return exact(one, f"windowed: its bandwidth is {width}")
    # narrow windows take little memory to be found, and are what there is mostly
    found = windowed(one, error, choice.widest_window(L)) or windowed(one, error, max(1, L - 1))
    return found or exact(one, "windowed: no width below the length leaves out so little")


def one_by_one(
    question: Question, good: Tensor, result: Found, methods: list[str], one_head: OneHead, exact: Exact
) -> None:
    """Puts the answers of some heads into the result; those that come to an exact answer have it together, at last."""
    exactly: dict[int, str] = {}
    for head in progress(list(good[:, None]), "heads"):
        found, name = one_head(question.of_heads(head))
        if found is None:
            exactly[int(head)] = name
        else:
            result.put(methods, head, found, name)
    if exactly:
        rest = torch.tensor(list(exactly), device=good.device)
        found = exact(question if len(rest) == question.op.num_heads else question.of_heads(rest), "")
        found.why = [f"{why}{line}" for why, line in zip(exactly.values(), found.why, strict=True)]
        result.put(methods, rest, found, "exact")
