"""Recurrences whose tokens are spread over processes: every process answers at its own positions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .._calls import largest_rank
from .._checks import position_list
from ..engine.scaling import keep_heads
from ..engine.state_space import block_length
from ..memory import Need, granted
from ..metrics import singular_values, tolerance_ess
from ..operators.spread import Spread
from ..operators.structure import Operator, StateSpace
from .agreement import DistributedError, agree, resolved_group
from .families import cuttable
from .losses import lost_everywhere, lost_in_slice
from .passage import TOGETHER, Passage, passages
from .scan import Summary, arriving
from .slices import LARGEST_BLOCK, Slice, tokens_of, turned

LAYOUTS = ("contiguous", "zigzag")
# characters of an argument that are shown where ranks were called differently
LONGEST_TEXT = 160
# tokens with diagonal transitions that are summed up at once, and for every number of the state
SUMMED_TOGETHER, SUMMED_A_STATE = 64, 4


class Span(NamedTuple):
    """Tokens in a row that a rank holds: `start..stop-1` of its own, of which the first is number `begin` of all."""

    start: int
    stop: int
    begin: int

    @property
    def positions(self) -> range:
        return range(max(self.begin, 1), self.begin + self.stop - self.start)


def spans_of_ranks(lengths: Sequence[int], layout: str) -> list[list[Span]]:
    """The spans of every rank, from the number of tokens of each."""
    if layout == "contiguous":
        begins = [sum(lengths[:rank]) for rank in range(len(lengths))]
        return [[Span(0, length, begin)] for length, begin in zip(lengths, begins)]
    half = [length // 2 for length in lengths]
    first = spans_of_ranks(half, "contiguous")
    total = sum(half)
    spans = []
    for rank, length in enumerate(half):
        begin = total + sum(half[rank + 1 :])
        spans.append([*first[rank], Span(length, 2 * length, begin)])
    return spans


@dataclass(frozen=True)
class Piece:
    """A span, and the operator that answers for its positions."""

    span: Span
    op: Slice

    def places(self, positions: Iterable[int], sub_tokens: int) -> list[int]:
        """Where the operator has these positions of the whole sequence."""
        return [self.op.first + sub_tokens * (position - self.span.begin) for position in positions]


class SequenceParallel(Spread):
    """A recurrence of which this process holds some tokens; see `sequence_parallel`.

    Attributes:
        length: of the whole sequence.
        positions: int64 `[P_mine]`, ascending: the positions that this process answers.
        group: the processes.
        shares: the spans of every rank.
        pieces: those of this process.
        good: bool `[N]`, which heads are finite on all ranks.
    """

    def __init__(
        self,
        op: Operator,
        group: dist.ProcessGroup,
        shares: Sequence[Sequence[Span]],
        pieces: Sequence[Piece],
        good: Tensor,
    ):
        length = sum(span.stop - span.start for spans in shares for span in spans)
        super().__init__(length, op.batch_shape, op.state_size, [x.detach() for x in op.inputs], block=op.block)
        self.group, self.shares, self.pieces, self.good = group, shares, tuple(pieces), good
        self.sub_tokens = getattr(op, "sub_tokens", 1)
        self._versions = self._versions_of_inputs()
        mine = [position for piece in self.pieces for position in piece.span.positions]
        self.positions = torch.tensor(mine, dtype=torch.int64, device=op.device)

    def _versions_of_inputs(self) -> list[int]:
        """How often each input was changed in place; not known of tensors of `torch.inference_mode`."""
        return [0 if x.is_inference() else x._version for x in self.inputs]

    def finite(self, heads: Tensor) -> Tensor:
        return self.good[heads]

    def dense_heads(self, heads: Tensor) -> Tensor:
        raise NotImplementedError(
            "op: no process holds the whole T of a SequenceParallel; ask tolerance_ess, entropy_ess, soft_ess, "
            "nuclear_norm or singular_values"
        )

    def answer(self, metric: Callable[..., Any], positions: Any, **arguments: Any) -> Any:
        """What the metric says at this process's share of the positions asked for, in their order.

        Every process of the group has to ask, for the same.

        Raises:
            DistributedError: on all ranks, if one has a problem or asks for something else.
        """
        positions = reusable(positions)

        def prepared() -> list[int] | None:
            if self._versions_of_inputs() != self._versions:
                # other processes know of what the inputs were, and answers would belong to neither
                raise ValueError("op: its inputs were changed in place after sequence_parallel: call it anew")
            wanted = position_list(positions, self.length)
            if metric is singular_values and arguments["k"] is None:
                arguments["k"] = largest_rank(self, wanted)
            for piece in self.pieces:
                # no position costs nothing, and whatever is wrong with the other arguments raises
                metric(piece.op, positions=[], **arguments)
            return wanted

        asked = ", ".join(f"{name}={readable(x)}" for name, x in {"positions": positions, **arguments}.items())
        wanted, _ = agree(self.group, f"{metric.__name__}({asked})", prepared, lambda _: None)
        dim = -2 if metric is singular_values else -1
        found: list[Any] = []
        order: list[int] = []
        for piece in self.pieces:
            its = piece.span.positions
            numbers = range(len(its)) if wanted is None else [i for i, x in enumerate(wanted) if x in its]
            places = piece.places(its if wanted is None else [wanted[i] for i in numbers], self.sub_tokens)
            found.append(metric(piece.op, positions=places, **arguments))
            order += [len(order) + i for i in numbers] if wanted is None else list(numbers)
        answers = joined(found, dim, torch.tensor(order, dtype=torch.int64, device=self.device).argsort())
        return self._within_caps(metric, answers, wanted)

    def _within_caps(self, metric: Callable[..., Any], answers: Any, wanted: list[int] | None) -> Any:
        """No more than `H_i` can have where a token has several rows or columns, whose rounding errors have more."""
        if self.sub_tokens == 1:
            return answers
        mine = self.positions.tolist()
        owned = set(mine)
        here = mine if wanted is None else [x for x in wanted if x in owned]
        cap = self.rank_cap(torch.tensor(here, dtype=torch.int64, device=self.device))
        if metric is tolerance_ess:
            if isinstance(answers, tuple):
                return torch.minimum(answers[0], cap), answers[1]
            return torch.minimum(answers, cap)
        if metric is singular_values:
            beyond = torch.arange(answers.shape[-1], device=answers.device) >= cap[:, None]
            return answers.masked_fill(beyond & ~answers.isnan(), 0.0)
        return answers


def reusable(positions: Any) -> Any:
    """Positions that can be looked at more than once, also where they come from an iterator."""
    return list(positions) if hasattr(positions, "__next__") else positions


def readable(x: Any) -> str:
    """An argument as text: alike where arguments are, and never long."""
    try:
        text = repr(x.tolist()) if isinstance(x, (Tensor, np.ndarray)) else repr(x)
    except Exception:  # it is told as a problem of the argument
        return type(x).__name__
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[: LONGEST_TEXT // 2]}... (checksum {zlib.crc32(text.encode()):x})"


def joined(found: Sequence[Any], dim: int, order: Tensor) -> Any:
    """Answers of several pieces, tensors or tuples of them, one behind the other along `dim` and then in an order."""
    first = found[0]
    if isinstance(first, Tensor):
        return first if len(found) == 1 else torch.cat(list(found), dim).index_select(dim, order)
    fields = [joined(each, dim, order) for each in zip(*found, strict=True)]
    return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)


def sequence_parallel(op: Operator, group: Any = None, layout: str = "contiguous") -> SequenceParallel:
    """The recurrence of a whole sequence, of which every process of a group has made the operator of its own tokens.

    Rank r holds the tokens after those of rank r - 1, however many (also none). The processes exchange what their
    slices do to states that pass through, a matrix and two roots of Gramians a head, and nothing else. Metrics then
    answer with `[..., P_mine]` at `op.positions`; `positions=` are those of the whole sequence, of which each process
    answers its own. `gather` brings them together.

    All processes of the group have to call this function, and then the same metrics in the same order.

    Args:
        op: a recurrence (`StateSpace`) of this process's tokens. All ranks have the same heads and the same state size.
            Transitions may be diagonal, diagonal plus rank one, or matrices. Normalised linear attention gets the sums
            of earlier tokens; other families whose numbers sum over the time are refused by name, and so are packed
            batches. Complex transitions are taken as real matrices.
        group: a ProcessGroup, a DeviceMesh of one dimension, or None: the world. Gloo (CPU) or NCCL (CUDA).
        layout: `"contiguous"`, or `"zigzag"`: rank r of R holds the chunks r and 2R - 1 - r of 2R, one behind the
            other, as many tokens of each (context parallelism of PyTorch cuts so by default).

    Returns:
        An operator with the `length` of the whole sequence. Gradients do not cross processes: inputs that require grad
        are refused while gradients are enabled.

    Raises:
        RuntimeError, TypeError, ValueError: there is no group, or `group` is none.
        DistributedError: on all ranks, naming rank and reason: wrong input on one of them, unlike calls, a process that
            has died or does not answer within the group's timeout.
    """
    group = resolved_group(group)
    accumulated = getattr(op, "accumulated", None)
    kind = f"{type(op).__name__}, heads {readable(getattr(op, 'batch_shape', None))}, layout={layout!r}"
    if accumulated is not None and accumulated.total is not None:
        op = _with_earlier_sums(op, group, layout, f"sequence_parallel({kind}, normalised)")

    def summarised() -> tuple[StateSpace, int, list[tuple[Passage, Passage]], Tensor]:
        inner, sub_tokens = _checked(op, layout)
        spans = [(s.start * sub_tokens, s.stop * sub_tokens) for s in spans_of_ranks([op.length], layout)[0]]
        summaries, good = [], torch.ones(op.num_heads, dtype=torch.bool, device=op.device)
        for span in spans:
            reach, observe, finite = _summary(inner, span)
            summaries.append((reach, observe))
            good &= finite
        return inner, sub_tokens, summaries, good

    called = f"sequence_parallel({kind}, {_shape_of(op)})"
    found, told = agree(group, called, summarised, lambda x: (op.length, x[3].cpu()))
    inner, sub_tokens, summaries, good = found
    shares = spans_of_ranks([length for length, _ in told], layout)
    good = torch.stack([each for _, each in told]).all(0).to(good.device)
    before, after = _between(summaries, group)

    def finished() -> list[Piece]:
        mine = shares[dist.get_rank(group)]
        return [
            _piece(inner, sub_tokens, span, good, *sides)
            for span, *sides in zip(mine, summaries, before, after, strict=True)
        ]

    # overflows in the sums of others mark the head on all ranks
    pieces, told = agree(group, called, finished, lambda x: [piece.op.good.cpu() for piece in x])
    good = torch.stack([each for rank in told for each in rank]).all(0).to(good.device)
    for piece in pieces:
        piece.op.good.copy_(good)
    return SequenceParallel(op, group, shares, pieces, good)


def _checked(op: Any, layout: Any) -> tuple[StateSpace, int]:
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {LAYOUTS}, got {layout!r}")
    inner = cuttable(op)
    if layout == "zigzag" and op.length % 2:
        raise ValueError(f"op: expected two chunks of equal length (layout='zigzag'), got {op.length} tokens")
    if op.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "op: expected inputs without requires_grad, since gradients do not cross processes: detach them, or call "
            "under torch.no_grad()"
        )
    return inner, getattr(op, "sub_tokens", 1)


def _shape_of(op: Any) -> str:
    inner = getattr(op, "inner", None)
    if not isinstance(inner, StateSpace):
        return "no recurrence"
    kind = "diagonal" if inner.diagonal and not turned(inner) else "rank-one" if inner.rank_one else "matrix"
    reads = "before" if inner.reads_before else "after"
    return (
        f"{kind} transitions of {inner.state_size} states, reads {reads} them, tokens of {op.block}, {op.device.type}"
    )


@torch.no_grad()
def _summary(op: StateSpace, span: tuple[int, int]) -> tuple[Passage, Passage, Tensor]:
    """What some tokens are to later and to earlier ones, and bool `[N]`, whether they are finite and so are those."""
    n = op.state_size
    diagonal = op.diagonal and not turned(op)
    if not op.num_heads:
        nothing = Passage.empty(0, n, diagonal, torch.empty(0, dtype=torch.float64, device=op.device))
        return nothing, nothing, torch.ones(0, dtype=torch.bool, device=op.device)
    c = max(SUMMED_TOGETHER, SUMMED_A_STATE * n) if diagonal else block_length(n, False)
    found: list[tuple[Passage, Passage, Tensor]] = []
    for heads in _some_heads(op, span, diagonal):
        tokens = tokens_of(op, heads, span)
        finite = tokens.finite()
        if not bool(finite.all()):
            tokens = keep_heads(tokens, finite)
        found.append((*passages(tokens, 1 << (c - 1).bit_length()), finite))
    reach, observe = Passage.joined([one[0] for one in found]), Passage.joined([one[1] for one in found])
    finite = torch.cat([one[2] for one in found])
    for x in (reach.Phi, reach.root, observe.root):
        finite = finite & x.flatten(1).isfinite().all(1)
    return _only(reach, finite), _only(observe, finite), finite


def _some_heads(op: StateSpace, span: tuple[int, int], diagonal: bool) -> tuple[Tensor, ...]:
    """All heads, as many at a time as have room for their tokens.

    Raises:
        MemoryError: one of them needs more than is free.
    """
    n = op.state_size
    per_token = 6 * n + (0 if diagonal else 2 * n if op.rank_one else n * n)
    own = max(1, 8 * op.length * per_token)

    def need(budget: int) -> Need:
        # tokens in float64, once more while they are made, and parts of blocks, as many together as `passages` takes
        heads = max(1, min(op.num_heads, budget // own))
        least, most = (some * own + min(TOGETHER, some * own) for some in (1, heads))
        instead = "more processes, shorter sequences, or a smaller state"
        return Need(f"one head of {op.length} tokens of this process", least, most, instead)

    return op.all_heads().split(max(1, granted(need, op.device) // own))


def _lost(
    op: StateSpace, span: tuple[int, int], own: tuple[Passage, Passage], before: Passage, after: Passage
) -> Tensor:
    """By how much `H_i` may be wrong because of what comes before and after: `[N, blocks]`, or `[N, 1]`."""
    if not own[0].diagonal or not op.num_heads or span[0] == span[1]:
        return lost_everywhere(own, before, after)
    found = []
    for heads in _some_heads(op, span, True):
        reach, observe = (side.each(itemgetter(heads)) for side in (before, after))
        found.append(lost_in_slice(tokens_of(op, heads, span), reach, observe, LARGEST_BLOCK))
    return torch.cat(found)


def _only(passage: Passage, heads: Tensor) -> Passage:
    """Zeros in place of the heads that are not meant, bool `[N]`."""
    return passage.each(lambda x: torch.where(heads.view(-1, *[1] * (x.dim() - 1)), x, 0.0))


class _Sum(Summary):
    """A sum over tokens."""

    rows = 0

    def __init__(self, total: Tensor):
        self.total = total

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.total,)

    def of(self, tensors: Sequence[Tensor], rows: int) -> _Sum:
        return _Sum(tensors[0])

    def then(self, later: _Sum) -> _Sum:
        return _Sum(self.total + later.total)


def _with_earlier_sums(op: Operator, group: dist.ProcessGroup, layout: str, called: str) -> Operator:
    """The operator of the same tokens, told what the tokens of lower ranks add up to."""

    def summed() -> _Sum:
        if layout != "contiguous":
            raise ValueError(f"layout: expected 'contiguous' where sums of earlier tokens are needed, got {layout!r}")
        return _Sum(op.accumulated.total())

    # sums of unlike shapes would be messages of unlike sizes, at which Gloo ends the process
    total, shapes = agree(group, called, summed, lambda x: list(x.total.shape))
    if any(shape != shapes[0] for shape in shapes):
        raise DistributedError(f"ranks were called differently: sums of keys of the shapes {shapes}")
    [earlier], _ = arriving([total], [], group)
    return op.accumulated.resumed(torch.zeros_like(total.total) if earlier is None else earlier.total)


def _between(
    summaries: Sequence[tuple[Passage, Passage]], group: dist.ProcessGroup
) -> tuple[list[Passage | None], list[Passage | None]]:
    """What arrives at the left and at the right edge of each of this rank's spans."""
    if len(summaries) == 1:
        [(reach, observe)] = summaries
        return arriving([reach], [observe], group)
    # first the chunks that rise with the ranks, whose last lies beside the first of those that fall with them
    (reach, observe), (later_reach, later_observe) = summaries
    left, right = arriving([reach, later_observe], [], group)[0]
    if dist.get_rank(group) == dist.get_world_size(group) - 1:
        turning_reach = reach if left is None else left.then(reach)
        turning_observe = later_observe if right is None else right.then(later_observe)
        own_left, own_right = turning_reach, turning_observe
        later_reach, observe = turning_reach.then(later_reach), turning_observe.then(observe)
        arriving([], [later_reach, observe], group)
        return [left, own_left], [own_right, right]
    later_left, earlier_right = arriving([], [later_reach, observe], group)[1]
    return [left, later_left], [earlier_right, right]


def _piece(
    op: StateSpace,
    sub_tokens: int,
    span: Span,
    good: Tensor,
    own: tuple[Passage, Passage],
    before: Passage | None,
    after: Passage | None,
) -> Piece:
    nothing = own[0].each(torch.zeros_like)
    before, after = (nothing.of(nothing.tensors, 0) if x is None else x for x in (before, after))
    good = good & before.root.flatten(1).isfinite().all(1) & after.root.flatten(1).isfinite().all(1)
    roots = [torch.where(good[:, None, None], x.root[:, : x.rows], 0.0) for x in (before, after)]
    tokens = (sub_tokens * span.start, sub_tokens * span.stop)
    lost = _lost(op, tokens, own, before, after)
    lost = torch.where(good[:, None], lost, 0.0)
    return Piece(span, Slice(op, tokens, sub_tokens * span.begin, roots[0], roots[1], lost, good))
