"""What backends with engines share: an engine for as many heads at a time as fit the workspace budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from .._progress import progress
from ..engine import few_dense
from ..engine.banded import BandedMatrix
from ..engine.banded import bytes_per_head as banded_bytes
from ..engine.block_states import BlockStates
from ..engine.block_states import bytes_per_head as block_states_bytes
from ..engine.certain import FEW as FEW_ENTROPIES
from ..engine.certainty import Counts, Entropies
from ..engine.cost import Cost, cost_of_call
from ..engine.direct import FewPositions
from ..engine.engine import Engine
from ..engine.extent import rounded_positions
from ..engine.parallel import product_values, svdvals
from ..engine.state_space import Recurrence, block_length, lost_in
from ..engine.state_space import bytes_per_head as recurrence_bytes
from ..engine.state_space import bytes_shared as recurrence_bytes_shared
from ..engine.tiled import Matrix, bytes_of_heads
from ..engine.tiled import bytes_per_head as matrix_bytes
from ..engine.zeros import zero_positions_of
from ..memory import Need, granted, make_sure
from ..operators.compressed import Compressed
from ..operators.structure import Operator, StateSpace, Tiled
from .base import Backend

# up to this many positions of a recurrence are found one by one
FEW = 2
# shifts of an entropy, and of a soft count
SHIFTS = 16
# arrays of all singular values that exist together, while they are found, sorted and added up
VALUES_ARRAYS = 6
LESS_OF_A_MATRIX = "positions=..., window_size, bounded_ess, randomized_ess, a machine or GPU with more memory"


class Work(NamedTuple):
    """What a call asks of its engines.

    Attributes:
        entropy: whether log-determinants are summed up; else singular values are counted, or found.
        shifts: how many tolerances or shifts there are to eliminate at; 0: positions are found one by one, by their
            singular values.
        positions: how many the call asks for.
        results: bytes of the call's result, and of what is put together to it.
        scaled: whether the call says what log-determinants are scaled by, which not every engine takes.
    """

    entropy: bool
    shifts: int
    positions: int
    results: int
    scaled: bool = False

    def by_values(self, n: int) -> int:
        """Bytes that singular values of a head take, n of each position, while they are found and looked at."""
        return 0 if self.shifts else 8 * VALUES_ARRAYS * n * self.positions


class EngineBackend(Backend):
    """A backend whose answers come from engines: `torch`, `native` and `triton`.

    The engines are those in PyTorch. A backend with engines of its own overrides the methods that make engines, and
    `small_spectra`; heads that its engines do not take are left to those of this class.
    """

    # whether a few positions of a recurrence are cheaper one by one
    slow_recurrences: ClassVar[bool] = True

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        result: Counts | None = None
        with torch.no_grad():
            for heads, engine in self._counting_engines(op, positions, atol, rtol):
                _watched(op, heads, engine)
                some = _counts(engine, positions, atol, rtol)
                if _forgets_states(op, engine):
                    torch.minimum(some.counts, op.rank_cap(positions), out=some.counts)
                if not engine.all_finite and not bool(engine.finite.all()):
                    bad = ~engine.finite
                    some.counts[bad], some.unresolved[bad] = -1, True
                # the engine's workspace goes before the generator builds the next engine: the budget holds one of them
                del engine
                if result is None and len(heads) == op.num_heads:
                    result = some
                    continue
                if result is None:
                    result = Counts.empty((op.num_heads, len(atol), len(positions)), op.device)
                result.put(heads, some)
        assert result is not None
        return result

    def entropy_ess(self, op: Operator, positions: Tensor) -> Entropies:
        """Without a gradient."""
        result: Entropies | None = None
        with torch.no_grad():
            for heads, engine in self._engines(op, positions, _entropy_work(op, positions)):
                _watched(op, heads, engine)
                some = engine.entropy(positions)
                if not engine.all_finite and not bool(engine.finite.all()):
                    some = some.mark_bad(~engine.finite[:, None])
                del engine  # as above
                if result is None and len(heads) == op.num_heads:
                    result = some
                    continue
                if result is None:
                    result = Entropies.empty((op.num_heads, len(positions)), op.device)
                result.put(heads, some)
        assert result is not None
        return result

    def soft_ess(self, op: Operator, positions: Tensor, atol: Tensor) -> Tensor:
        result = torch.zeros(op.num_heads, len(atol), len(positions), dtype=torch.float64, device=op.device)
        with torch.no_grad():
            for heads, engine in self._engines(op, positions, _soft_work(op, positions, atol)):
                _watched(op, heads, engine)
                counts = engine.soft_counts(positions, atol)
                unknown = engine.too_small((atol / engine.unit[:, None])[..., None], positions)
                counts = counts if unknown is None else counts.masked_fill(unknown, torch.nan)
                result[heads] = counts.masked_fill(~engine.finite[:, None, None], torch.nan)
                del engine  # as above
        return result

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        result = torch.zeros(op.num_heads, len(positions), k, dtype=torch.float64, device=op.device)
        with torch.no_grad():
            for heads, engine in self._engines(op, positions, _values_work(op, positions, k)):
                _watched(op, heads, engine)
                values = engine.singular_values(positions, k)
                if _forgets_states(op, engine):
                    beyond = torch.arange(k, device=op.device) >= op.rank_cap(positions)[:, None]
                    values = values.masked_fill(beyond & ~values.isnan(), 0.0)
                result[heads] = values.masked_fill(~engine.finite[:, None, None], torch.nan)
                del engine  # as above
        return result

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        return product_values(svdvals, A, right)

    def _counting_engines(
        self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor
    ) -> Iterator[tuple[Tensor, Engine]]:
        """As `_engines`, or engines of a few positions of a dense operator, where these are cheaper one by one."""
        work = _counts_work(op, positions, atol, rtol)
        heads, asked = op.all_heads(), positions.tolist()
        possible = isinstance(op, Tiled) and op.device.type == "cpu" and not any(rtol.tolist())
        if not possible or not few_dense.pays(asked, op.length) or op.own_tiles(heads[:1]) is None:
            yield from self._engines(op, positions, work)
            return
        size = few_dense.bytes_per_head(asked, op.length) + work.results
        need = Need(f"{len(asked)} positions of {op.length} tokens", size, size, LESS_OF_A_MATRIX)
        granted(lambda _: need, op.device)
        cost = Cost()
        for head in progress(list(heads[:, None]), "heads"):
            source = op.own_tiles(head)
            assert source is not None
            yield head, few_dense.FewDense(source, op.finite(head), cost)

    def _engines(self, op: Operator, positions: Tensor, work: Work) -> Iterator[tuple[Tensor, Engine]]:
        """Engines with the numbers of their heads: as many heads at a time as fit the budget, and at least one.

        A head may be yielded twice: the later answer overwrites the earlier one.
        """
        if isinstance(op, Compressed):
            size = max((block_states_bytes(x) for x in op.parts), default=0) + work.results
            instead = "a larger error of compress, fewer heads, or fewer positions"
            make_sure(Need(f"one head of {op.length} tokens", size, size, instead), op.device)
            yield from self._compressed(op, Cost())
            return
        budget = granted(lambda budget: self.need(op, work, budget), op.device)
        cost = cost_of_call()
        need = self._bytes(op, work)
        each = self._heads_at_once(op, work, budget)
        every = op.all_heads()
        if isinstance(op, Tiled) and not self._takes_whole(op, budget):
            for head in progress(every.split(1), "heads"):
                yield head, self._banded(op, head, budget, cost)
            return
        for heads in progress([every] if len(every) <= each else every.split(each), "heads"):
            if isinstance(op, Tiled):
                yield heads, self._matrix(self.rows(op, heads), op.finite(heads), budget, cost)
                continue
            space = cast(StateSpace, op)
            if space.diagonal and len(positions) <= FEW and (self.slow_recurrences or need > budget):
                few = FewPositions(space.tokens(heads), cost)
                if few.supported:
                    yield heads, _with_losses(space, heads, few)
                    continue
            for mine, engine in self._recurrences(space, heads, work, budget, cost):
                yield mine, _with_losses(space, mine, engine)
                del engine  # as its users do: see above

    def _compressed(self, op: Compressed, cost: Cost) -> Iterator[tuple[Tensor, Engine]]:
        """As `_engines`, head by head: each has a state size of its own."""
        for head in progress(list(op.all_heads()[:, None]), "heads"):
            engine = self._block_states(op, int(head), cost)
            engine.finite = op.good[head]
            yield head, engine

    def _block_states(self, op: Compressed, head: int, cost: Cost) -> Engine:
        """The engine of ready-made block parts."""
        return BlockStates(op.parts[head], op.ranks_of(head), op.length, op.unit[head, None], cost)

    def _recurrences(
        self, op: StateSpace, heads: Tensor, work: Work, budget: int, cost: Cost
    ) -> Iterator[tuple[Tensor, Engine]]:
        """As `_engines`, for some heads of a recurrence."""
        c, period = block_length(op.state_size, work.entropy), op.one_period(heads)
        if period is None:
            engine = Recurrence(op.tokens(heads), c, cost)
        else:
            engine = Recurrence(period, c, cost, repeated_to=op.length)
        yield heads, engine
        if bool(engine.growing.any()):
            # The squares of a growing recurrence overflow; T itself may not, so these heads become dense operators.
            every = heads[engine.growing]
            del engine
            for growing in every.split(max(1, budget // max(1, matrix_bytes(op.length)))):
                size = matrix_bytes(op.length)
                unit = f"one head of {op.length} tokens, whose transitions grow so much that it takes a matrix,"
                make_sure(Need(unit, size, len(growing) * size, "shorter sequences"), op.device)
                finite = torch.ones_like(growing, dtype=torch.bool)
                matrix = self._matrix(op.dense_heads(growing), finite, budget, cost)
                matrix.lost_span, matrix.lost = 1, lost_in(op, growing) / matrix.unit[:, None]
                yield growing, matrix
                del matrix

    def need(self, op: Operator, work: Work, budget: int) -> Need:
        """What a call takes, with its result."""
        heads = self._heads_at_once(op, work, budget)
        if isinstance(op, Tiled):
            least = self._banded_bytes(op)
            most = self._matrix_bytes_of(op, heads, work, budget) if self._takes_whole(op, budget) else least
            instead = f"{LESS_OF_A_MATRIX}, and with any of these shorter sequences"
        else:
            own, instead = self._bytes(op, work), "shorter sequences, or a smaller state"
            least, most = (self._shared_bytes(op, work, some) + some * own for some in (1, heads))
        return Need(f"one head of {op.length} tokens", least + work.results, max(least, most) + work.results, instead)

    def _heads_at_once(self, op: Operator, work: Work, budget: int) -> int:
        """As many heads as fit the budget, at least one."""
        return max(1, min(op.num_heads, (budget - self._shared_bytes(op, work, 1)) // self._bytes(op, work)))

    def _bytes(self, op: Operator, work: Work) -> int:
        """The workspace of one head where there is room for several."""
        return max(1, self._recurrence_bytes(op, work) if isinstance(op, StateSpace) else matrix_bytes(op.length))

    def _recurrence_bytes(self, op: StateSpace, work: Work) -> int:
        """The workspace of one head in `_recurrences`."""
        return recurrence_bytes(op, block_length(op.state_size, work.entropy)) + work.by_values(op.state_size)

    def _shared_bytes(self, op: Operator, work: Work, heads: int) -> int:
        """The workspace that so many heads share: it does not grow in proportion to them."""
        if not isinstance(op, StateSpace):
            return 0
        c = block_length(op.state_size, work.entropy)
        return recurrence_bytes_shared(op.state_size, c, heads * -(-op.length // c))

    def rows(self, op: Tiled, heads: Tensor) -> Tensor:
        """`T` `[N, L, L]` of some heads, float64."""
        return op.rows(heads, 0, op.length)

    def _matrix(self, T: Tensor, finite: Tensor, budget: int, cost: Cost) -> Matrix:
        """The engine of `T` `[N, L, L]`, float64, which it may overwrite; `finite` `[N]`: whose input was finite."""
        return Matrix(T, finite, budget, cost)

    def _banded(self, op: Tiled, head: Tensor, budget: int, cost: Cost) -> Matrix:
        """The engine of one head `[1]` whose `T` is never whole."""
        return BandedMatrix(lambda start, stop: op.rows(head, start, stop), op.length, op.finite(head), budget, cost)

    def _takes_whole(self, op: Tiled, budget: int) -> bool:
        """Whether heads are taken whole; else one by one, by bands. It depends on the length and the budget only."""
        return matrix_bytes(op.length) <= budget

    def _banded_bytes(self, op: Tiled) -> int:
        """The workspace of one head in `_banded`."""
        return banded_bytes(op.length)

    def _matrix_bytes_of(self, op: Tiled, heads: int, work: Work, budget: int) -> int:
        """The workspace of some heads together in `_matrix`."""
        return bytes_of_heads(op.length, heads, work.shifts, budget)


def _counts_work(op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Work:
    # counts with their certificates, here and once more where they are put into their final shape
    results = 2 * 18 * op.num_heads * len(atol) * len(positions)
    # relative tolerances need the largest singular value of every position
    return Work(False, 0 if any(rtol.tolist()) else len(atol), len(positions), results)


def _entropy_work(op: Operator, positions: Tensor) -> Work:
    results = 2 * 25 * op.num_heads * len(positions)
    return Work(True, SHIFTS if len(positions) > FEW_ENTROPIES else 0, len(positions), results)


def _soft_work(op: Operator, positions: Tensor, atol: Tensor) -> Work:
    results = 2 * 8 * op.num_heads * len(atol) * len(positions)
    return Work(True, SHIFTS if len(positions) > FEW_ENTROPIES else 0, len(positions), results, scaled=True)


def _values_work(op: Operator, positions: Tensor, k: int) -> Work:
    return Work(False, 0, len(positions), 2 * 8 * op.num_heads * len(positions) * k)


def _with_losses(space: StateSpace, heads: Tensor, engine: Engine) -> Engine:
    """The engine, told what its tokens have lost before, where they are all zero, and where others begin."""
    engine.nothing_passes = lambda: zero_positions_of(space, heads)
    engine.seams = space.seams
    lost = space.already_lost(heads)
    if lost is not None:
        engine.already_lost = lost / engine.unit[:, None]
    return engine


def _watched(op: Operator, heads: Tensor, engine: Engine) -> None:
    """Tells the engine where its unit may have been too large for the numbers of its heads."""
    if engine.rounded_at is None:
        unit = engine.unit
        engine.rounded_at = lambda positions: rounded_positions(op, heads, unit)[:, positions]


def _forgets_states(op: Operator, engine: Engine) -> bool:
    """Whether the engine has `T` only, whose rounding errors have a higher rank than the states that made it."""
    return op.state_size is not None and engine.state_size is None


def _counts(engine: Engine, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
    """Absolute tolerances, and relative ones, which need every position's largest singular value."""
    if not any(rtol.tolist()):
        return _absolute_counts(engine, positions, atol)
    relative = rtol > 0
    result = Counts.empty((len(engine.unit), len(atol), len(positions)), positions.device)
    if not bool(relative.all()):
        result.put((slice(None), ~relative), _absolute_counts(engine, positions, atol[~relative]))
    result.put((slice(None), relative), engine.relative_counts(positions, atol[relative], rtol[relative]))
    return result


def _absolute_counts(engine: Engine, positions: Tensor, atol: Tensor) -> Counts:
    """Counts that are certain of nothing where the tolerance is as small as what the unit has made zero."""
    tau = (atol / engine.unit[:, None])[..., None]
    return engine.counts(positions, atol).without(engine.too_small(tau, positions))
