"""`backend="native"`: the compiled CPU kernels of `csrc/`, for CPU tensors.

The library is opened at the first use: importing this package loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...engine.certainty import Counts, Entropies
from ...engine.cost import Cost
from ...engine.engine import Engine
from ...engine.tiled import Matrix
from ...operators.attention import Attention
from ...operators.structure import Operator, StateSpace, Tiled
from ..base import NO_BACKWARD, Task, wants_gradient
from ..engine_backend import EngineBackend
from .call import as_set
from .loading import library


class NativeBackend(EngineBackend):
    """The same slices of heads, certainty and bad data as in PyTorch, with engines that call compiled kernels."""

    name = "native"
    takes_bad_matrices = True
    slow_recurrences = False

    def unavailable(self) -> str | None:
        return library().reason

    def refuses(self, task: Task, subject: Operator | Tensor) -> str | None:
        if subject.device.type != "cpu":
            return f"it takes CPU tensors, these are on {subject.device}"
        if wants_gradient(task, subject):
            return NO_BACKWARD
        return None

    def about(self) -> str:
        return "compiled kernels for CPU tensors; `auto` takes it for them"

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        with as_set():
            return super().tolerance_ess(op, positions, atol, rtol)

    def entropy_ess(self, op: Operator, positions: Tensor) -> Entropies:
        with as_set():
            return super().entropy_ess(op, positions)

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        with as_set():
            return super().singular_values(op, positions, k)

    def _recurrences(
        self, op: StateSpace, heads: Tensor, entropy: bool, budget: int, cost: Cost
    ) -> Iterator[tuple[Tensor, Engine]]:
        from .lanes import NativeLanes, takes
        from .recurrence import MAX_STATE_SIZE, NativeRecurrence, block_length
        from .tokens import surveyed

        mine, rest, found = heads, heads[:0], None
        if op.state_size > MAX_STATE_SIZE:
            mine, rest = rest, mine
        elif op.diagonal:
            fair, found = surveyed(op, heads)
            if fair is not None:
                mine, rest = heads[fair], heads[~fair]
        if len(mine):
            engine: NativeLanes | NativeRecurrence
            if found is not None and takes(op):
                engine = NativeLanes(op, mine, found, cost)
            else:
                engine = NativeRecurrence(op, mine, found, block_length(op.state_size, entropy), cost)
            yield mine, engine
            if not engine.sound and bool(engine.unstable.any()):
                rest = torch.cat([rest, mine[engine.unstable]])
        if len(rest):
            # bad data, and transitions that grow
            yield from super()._recurrences(op, rest, entropy, budget, cost)

    def _recurrence_bytes(self, op: StateSpace, entropy: bool) -> int:
        from .recurrence import bytes_per_head

        return bytes_per_head(op.length, op.state_size, op.diagonal, entropy)

    def rows(self, op: Tiled, heads: Tensor) -> Tensor:
        from .attention import takes, weights

        if not isinstance(op, Attention) or not takes(op):
            return super().rows(op, heads)
        return weights(op, heads)

    def _matrix(self, T: Tensor, good: Tensor, budget: int, cost: Cost) -> Matrix:
        from .matrix import NativeMatrix

        return NativeMatrix(T, good, budget, cost)

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        from .spectra import LARGEST, singular_values

        if min(A.shape[1:]) > LARGEST or (right is not None and min(right.shape[1:]) > LARGEST):
            return super().small_spectra(A, right)
        with as_set():
            return singular_values(A, right)
