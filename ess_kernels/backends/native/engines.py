"""Which compiled engine takes which operator, on whatever library is pinned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...engine.cost import Cost
from ...engine.engine import Engine
from ...engine.tiled import Matrix
from ...operators.attention import Attention
from ...operators.compressed import Compressed
from ...operators.structure import Operator, StateSpace, Tiled
from ..base import NO_BACKWARD, Task, wants_gradient
from ..engine_backend import Work
from ..windowed import WindowedBackend
from . import attention, banded, block_states, lanes, recurrence, spectra
from .banded import NativeBandedMatrix
from .block_parts import MAX_STATE_SIZE
from .matrix import NativeMatrix, bytes_of_heads
from .tokens import surveyed


def _eliminates(work: Work) -> bool:
    """Whether the engine of small states does the work by its own eliminations, and not by singular values."""
    return work.shifts > 0 and not work.scaled


class PinnedBackend(WindowedBackend):
    """The same slices of heads, certainty and bad data as in PyTorch, with engines that call compiled kernels.

    Its tasks are called where a library is pinned (`call.pinned`).
    """

    name = "native"
    takes_bad_matrices = True
    slow_recurrences = False

    def refuses(self, task: Task, subject: Operator | Tensor) -> str | None:
        if subject.device.type != "cpu":
            return f"it takes CPU tensors, these are on {subject.device}"
        if wants_gradient(task, subject):
            return NO_BACKWARD
        return None

    def about(self) -> str:
        return "compiled kernels for CPU tensors; `auto` takes it for them"

    def _recurrences(
        self, op: StateSpace, heads: Tensor, work: Work, budget: int, cost: Cost
    ) -> Iterator[tuple[Tensor, Engine]]:
        mine, rest, found = heads, heads[:0], None
        if op.state_size > MAX_STATE_SIZE:
            mine, rest = rest, mine
        elif op.diagonal:
            supported, found = surveyed(op, heads)
            if supported is not None:
                mine, rest = heads[supported], heads[~supported]
        if len(mine):
            engine: lanes.NativeLanes | recurrence.NativeRecurrence
            if found is not None and lanes.takes(op):
                together = 1 if _eliminates(work) else len(mine)
                engine = lanes.NativeLanes(op, mine, found, together, cost)
            else:
                c = recurrence.block_length(op, work.entropy)
                engine = recurrence.NativeRecurrence(op, mine, found, c, cost)
            yield mine, engine
            if not engine.all_finite and bool(engine.growing.any()):
                rest = torch.cat([rest, mine[engine.growing]])
        if len(rest):
            # heads that are not supported: bad data, and transitions that grow
            yield from super()._recurrences(op, rest, work, budget, cost)

    def _recurrence_bytes(self, op: StateSpace, work: Work) -> int:
        if lanes.takes(op):
            if _eliminates(work):
                return lanes.bytes_per_head(op, work.entropy, work.shifts)
            work = work._replace(shifts=0)
        return recurrence.bytes_per_head(op, work.entropy) + work.by_values(op.state_size)

    def _shared_bytes(self, op: Operator, work: Work, heads: int) -> int:
        if not isinstance(op, StateSpace) or not lanes.takes(op) or not _eliminates(work):
            return 0
        # positions that eliminations leave open are found by the engine of large states, head by head
        return lanes.bytes_shared(op, work.entropy) + recurrence.bytes_per_head(op, False)

    def _block_states(self, op: Compressed, head: int, cost: Cost) -> Engine:
        parts = op.parts[head]
        if not block_states.takes(parts, op.length):
            return super()._block_states(op, head, cost)
        return block_states.NativeBlockStates(parts, op.ranks_of(head), op.length, op.unit[head, None], cost)

    def rows(self, op: Tiled, heads: Tensor) -> Tensor:
        if not isinstance(op, Attention) or not attention.takes(op):
            return super().rows(op, heads)
        return attention.Weights(op, heads).whole()

    def _matrix(self, T: Tensor, finite: Tensor, budget: int, cost: Cost) -> Matrix:
        return NativeMatrix(T, finite, budget, cost)

    def _banded(self, op: Tiled, head: Tensor, budget: int, cost: Cost) -> Matrix:
        finite = op.finite(head)
        if isinstance(op, Attention) and attention.takes(op):
            make = attention.Weights(op, head).band
        else:

            def make(start: int, stop: int) -> Tensor:
                return op.rows(head, start, stop)

        return NativeBandedMatrix(make, op.stored(head), op.length, finite, budget, cost)

    def _banded_bytes(self, op: Tiled) -> int:
        # queries and keys in float64, and keys once more in strips
        tokens = 24 * op.length * op.q.shape[-1] if isinstance(op, Attention) else 0
        return tokens + banded.bytes_per_head(op.length)

    def _matrix_bytes_of(self, op: Tiled, heads: int, work: Work, budget: int) -> int:
        if isinstance(op, Attention) and attention.takes(op):
            return bytes_of_heads(op.length, heads, work.shifts, budget)
        return max(bytes_of_heads(op.length, heads, work.shifts, budget), heads * op.bytes_of_dense())

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        most = spectra.LARGEST
        if min(A.shape[1:]) > most or (right is not None and min(right.shape[1:]) > most):
            return super().small_spectra(A, right)
        return spectra.singular_values(A, right)
