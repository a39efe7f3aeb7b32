"""Operators with a window: the positions of a chunk are answered from the tokens on either side of it.

Where `T_ij = 0` for `i - j >= w`, the rows of `H_i` that are not zero end with token `i + w - 2`, and its columns begin
with token `i - w + 1`. So the positions of a chunk `[a, e)` need the tokens `a - w + 1 .. e + w - 3` only: in the
operator of these tokens `H_i` has the same singular values but zeros. With chunks of about w positions that is
`O(L w^2)` work in place of `O(L^3)`, and no more of `T` exists than that of the chunks at hand.

Rows of any distance may see s first columns as well (attention sinks, by a mask). Behind the chunk's tokens they see
nothing else, so that an s x s matrix stands for all of them (`far_rows.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .._progress import progress
from ..engine.certainty import Counts, Entropies
from ..engine.cost import one_call
from ..engine.engine import Engine
from ..engine.tiled import bytes_per_head as matrix_bytes
from ..memory import budget_in_bytes, memory_budget
from ..operators.convolution import Convolution
from ..operators.structure import Operator, Tiled
from .chunks import Alike, Chunked, Plan, Shortened, Whole
from .engine_backend import EngineBackend, Work
from .far_rows import far_rows
from .taken_out import TakenOut

# shorter operators are answered before a look at their numbers has paid for itself
SHORTEST = 512
# on a CPU more chunks at a time are not faster: bytes of workspace
ENOUGH_ON_CPU = 2**26

Answer = Callable[[Operator, Tensor], Sequence[Tensor]]


class WindowedBackend(EngineBackend):
    """A backend with engines that answers operators with a window chunk by chunk, where that pays."""

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        whole = super().tolerance_ess
        if not (plans := plans_of(op, positions)):
            return whole(op, positions, atol, rtol)
        result = Counts.empty((op.num_heads, len(atol), len(positions) + 1), op.device)
        alone = bool((rtol > 0).any())
        bad = self._by_plan(op, plans, lambda one, its: whole(one, its, atol, rtol), result, -1, alone)
        result.counts[bad], result.unresolved[bad] = -1, True
        return Counts(*(x[..., :-1] for x in result))

    def entropy_ess(self, op: Operator, positions: Tensor) -> Entropies:
        whole = super().entropy_ess
        if not (plans := plans_of(op, positions)):
            return whole(op, positions)
        result = Entropies.empty((op.num_heads, len(positions) + 1), op.device)
        bad = self._by_plan(op, plans, whole, result, -1)
        return Entropies(*(x[..., :-1] for x in result.mark_bad(bad[:, None])))

    def soft_ess(self, op: Operator, positions: Tensor, atol: Tensor) -> Tensor:
        whole = super().soft_ess
        if not (plans := plans_of(op, positions)):
            return whole(op, positions, atol)
        result = atol.new_zeros(op.num_heads, len(atol), len(positions) + 1)
        bad = self._by_plan(op, plans, lambda one, its: [whole(one, its, atol)], [result], -1)
        return result.masked_fill_(bad[:, None, None], torch.nan)[..., :-1]

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        whole = super().singular_values
        if not (plans := plans_of(op, positions)):
            return whole(op, positions, k)
        result = torch.zeros(op.num_heads, len(positions) + 1, k, dtype=torch.float64, device=op.device)
        bad = self._by_plan(op, plans, lambda one, its: [whole(one, its, k)], [result], 1, alone=True)
        return result.masked_fill_(bad[:, None, None], torch.nan)[:, :-1]

    @torch.no_grad()
    @one_call()
    def _by_plan(
        self, op: Operator, plans: Plans, answer: Answer, result: Sequence[Tensor], axis: int, alone: bool = False
    ) -> Tensor:
        """Puts what `answer(operator, positions)` says into the result, and says which heads are bad, bool `[N]`.

        Args:
            op, plans: the operator, and how its heads are answered.
            answer: of operators of fewer tokens.
            result: tensors of all heads and positions, and of one position more, for what was not asked.
            axis: that of the positions; the first one is that of the heads.
            alone: whether each position has a price of its own.
        """
        assert isinstance(op, Tiled)
        good = op.finite(op.all_heads())
        for plan, heads in plans:
            budget, need = budget_in_bytes(), matrix_bytes(plan.size)
            if op.device.type == "cpu":
                budget = min(budget, max(ENOUGH_ON_CPU, need))
            with memory_budget(budget):
                each = max(1, budget // need)
                for some, columns, one, batch in _operators(op, heads[good[heads]], plan, each, alone):
                    found = answer(one, batch.places)
                    for mine, x in zip(result, found, strict=True):
                        x = x if batch.source is None else x.index_select(axis, batch.source)
                        mine.movedim(axis, 1)[some[:, None], columns] = x.movedim(axis, 1)
                    # numbers that are finite may have made an entry that is not
                    bad = found[0].isnan() if found[0].is_floating_point() else found[0] < 0
                    good[some[bad.flatten(1).any(1)]] = False
        return ~good

    def rows(self, op: Tiled, heads: Tensor) -> Tensor:
        if not isinstance(op, TakenOut):
            return super().rows(op, heads)
        return op.with_far_rows(self.rows(op.near, heads), heads)

    def _engines(self, op: Operator, positions: Tensor, work: Work) -> Iterator[tuple[Tensor, Engine]]:
        for heads, engine in super()._engines(op, positions, work):
            if isinstance(op, TakenOut) and op.lost is not None:
                lost = op.lost[heads] / engine.unit
                engine.lost_span, engine.lost = 1, lost[:, None].repeat(1, op.length)
            yield heads, engine
            del engine  # as its users do: the budget holds one


Plans = list[tuple[Plan, Tensor]]


def plans_of(op: Operator, positions: Tensor) -> Plans:
    """How the heads are answered, each in the way that costs least; empty where that is the whole operator for all.

    Each head decides for itself, so that its answer does not depend on the other heads.
    """
    if not isinstance(op, Tiled) or op.length < SHORTEST or not op.num_heads or not len(positions):
        return []
    heads = op.all_heads()
    known = op.sparsity(heads)
    if known is None:
        return []
    kinds, which = torch.stack(known, 1).unique(dim=0, return_inverse=True)
    wanted = positions.tolist()
    plans: Plans = []
    for number, (bandwidth, window, first_columns) in enumerate(kinds.tolist()):
        choices: list[Plan] = [Whole(wanted, op.length)]
        if isinstance(op, Convolution) and op.time_invariant:
            choices.append(Shortened(wanted, op.length, bandwidth))
        elif bandwidth < op.length:
            choices.append(Chunked(wanted, op.length, bandwidth))
        if first_columns:
            choices.append(Chunked(wanted, op.length, window, first_columns))
        plans.append((min(choices, key=lambda plan: plan.cost), heads[which == number]))
    return [] if all(isinstance(plan, Whole) for plan, _ in plans) else plans


def _operators(
    op: Tiled, heads: Tensor, plan: Plan, each: int, alone: bool
) -> Iterator[tuple[Tensor, Tensor, Tiled, Alike]]:
    """Operators that answer for some heads, at most `each` at a time.

    Each comes with its heads' numbers `[n]`, the columns `[n, R]` of the result that it answers, and its batch.
    """
    batches = plan.batches(alone, op.device) if len(heads) else []
    first_columns = torch.arange(plan.first_columns, device=op.device)
    neighbours = torch.arange(plan.neighbours, device=op.device)
    far = None
    if isinstance(plan, Chunked) and plan.first_columns and batches:
        starts = torch.cat([batch.first for batch in batches]) + plan.neighbours
        far = far_rows(op, heads, starts, plan.first_columns, plan.beside, plan.chunk)
    for batch in batches:
        count = len(batch.first)
        pairs = torch.arange(len(heads) * count, device=op.device)
        for some in progress(pairs.split(each), "chunks"):
            number, chunk = some // count, some % count
            first = batch.first[chunk]
            tokens = torch.cat([first_columns.expand(len(some), -1), first[:, None] + neighbours], 1)
            near = op.of_tokens(heads[number], tokens)
            one = TakenOut(near) if far is None else TakenOut(near, *far.at(number, first + plan.neighbours))
            yield heads[number], batch.columns[chunk], one, batch
