"""`method="auto"`: what answers a head, by what is known of it before anything expensive is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..engine.compression import TooWide
from ..engine.decay import sampled_rank, surely_beyond
from ..memory import free_memory, free_on_gpu, size_text
from ..operators.structure import Operator, Tiled
from ..operators.tile_sources import TileSource
from .counts import BLOCK, Question

# windows wider than a share of the length cost as much as the whole
WINDOW_SHARE = 6
# up to this length nothing is cheaper than an exact answer
SHORT = 1024
# compression is not tried where more singular values of a sampled part than a share of the length are too large
COUNT_SHARE, ENTROPY_SHARE = 16, 8
# operations of the exact engine and of an answer from block parts, in units of L^3 and of rank^2 L
FIRST_COUNT, NEXT_COUNT, EXACT_ENTROPY = 0.56, 0.31, 5.2
# the exact engine runs nearer to the machine's limit than a walk
PACE = 0.75
# bytes of one dense head that is in work, for every entry of T
BYTES = {"cpu": 16, "cuda": 40}


@dataclass
class Choice:
    """What answers a head, and why.

    Attributes:
        method: `"exact"`, `"windowed"`, `"compressed"` or `"randomized"`.
        why: what has been found out on the way.
        most: operations that a walk may take, for `"compressed"`.
    """

    method: str
    why: str = ""
    most: float = math.inf


def fits(op: Operator) -> bool:
    """Whether one dense head of the operator has room in the memory that is free."""
    on_gpu = op.device.type == "cuda"
    free = free_on_gpu() if on_gpu else free_memory()
    return free is None or BYTES["cuda" if on_gpu else "cpu"] * op.length**2 <= free


def exact_work(length: int, tolerances: int) -> float:
    """Floating-point operations of counts of one dense head at all positions."""
    return (FIRST_COUNT + NEXT_COUNT * max(0, tolerances - 1)) * float(length) ** 3


def widest_window(length: int) -> int:
    return (length - 1) // WINDOW_SHARE


def first_choices(op: Operator, heads: Tensor) -> list[Choice] | None:
    """Of heads that need no approximation, for a recurrence, a window, a short sequence; None where one of them may."""
    if not isinstance(op, Tiled):
        return [Choice("exact", "exact: it has a finite state, or several sequences")] * len(heads)
    known = op.sparsity(heads)
    widths = [op.length] * len(heads) if known is None else known.bandwidth.tolist()
    short = op.length <= SHORT and fits(op)
    if not short and any(WINDOW_SHARE * width >= op.length for width in widths):
        return None
    return [
        Choice("windowed", f"windowed: its bandwidth is {width}")
        if WINDOW_SHARE * width < op.length
        else Choice("exact", f"exact: no more than {SHORT} tokens")
        for width in widths
    ]


def first_choice(op: Operator) -> Choice | None:
    """The same of an operator of one head."""
    found = first_choices(op, op.all_heads())
    return found[0] if found else None


def may_have_window(source: TileSource, error: float, nuclear: bool = False) -> bool:
    """Whether a window that pays might leave out no more than `error`, as far as a few rows tell."""
    return not surely_beyond(source, widest_window(source.length), error, nuclear)


def refusal(source: TileSource, error: float, share: int) -> str | None:
    """Why compression to an error is not tried, or None where it is."""
    L = source.length
    threshold = error / math.sqrt(max(1, -(-L // BLOCK) - 1))
    # a part that is hardly larger than the rank that is too large says no at a fraction of the price
    for size in (L // share + L // (4 * share), 2 * L // share):
        rank = sampled_rank(source, threshold, size)
        if rank * share > L:
            return f"rank of a {size} x {size} part already {rank}: compression refused"
    return None


def choose(question: Question, error: float) -> Choice:
    """How a head is answered that `first_choice` has left open; `question` is of one head."""
    if may_have_window(question.source, error):
        return Choice("windowed")
    return after_window(question, error)


def after_window(question: Question, error: float) -> Choice:
    """As `choose`, where there is no window."""
    reason = refusal(question.source, error, COUNT_SHARE)
    if reason is None:
        work = exact_work(question.inner.length, len(question.tolerances))
        return Choice("compressed", most=PACE * work)
    return without_compression(question.inner, reason)


def without_compression(op: Operator, reason: str) -> Choice:
    """Exact if it has room, else a sketch."""
    if fits(op):
        return Choice("exact", f"exact: {reason}")
    return Choice("randomized", reason)


def refused(error: TooWide) -> str:
    """Why a walk was given up, in words."""
    return f"rank {error.rank} at position {error.edge}: compression given up"


def no_room(op: Operator, instead: str) -> MemoryError:
    """The error where nothing that is certain has room."""
    need = BYTES["cuda" if op.device.type == "cuda" else "cpu"] * op.length**2
    return MemoryError(f"one head of length {op.length} needs {size_text(need)}, which are not free; {instead}")
