"""`backend="triton"`: the engine's inner work in Triton kernels, for CUDA tensors.

Kernels are imported when they are first needed: importing this package imports no triton and looks for no device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...engine.cost import Cost
from ...engine.engine import Engine
from ...engine.thin_products import Stored, ThinProducts
from ...engine.tiled import Matrix, bytes_per_head
from ...memory import free_on
from ...operators.attention import Attention
from ...operators.compressed import Compressed
from ...operators.structure import Operator, StateSpace, Tiled
from ..base import NO_BACKWARD, Task, wants_gradient
from ..engine_backend import Work
from ..sources import supported_heads
from ..windowed import WindowedBackend
from . import runtime

# the largest state of a recurrence that the kernels hold
MAX_STATE_SIZE = 256


class TritonBackend(WindowedBackend):
    """The same slices of heads, certainty and bad data as in PyTorch, with engines that run kernels."""

    name = "triton"

    def lacks(self, task: Task, subject: Operator | Tensor) -> str | None:
        if task != "randomized_ess":
            return None
        if not isinstance(subject, Attention):
            return "it multiplies with attention only"
        return "its products with attention know no g and no alibi_slopes" if subject.depends_on_distance else None

    def unavailable(self) -> str | None:
        return runtime.unavailable()

    def refuses(self, task: Task, subject: Operator | Tensor) -> str | None:
        if reason := runtime.refuses(subject.device):
            return reason
        if wants_gradient(task, subject):
            return NO_BACKWARD
        if isinstance(subject, StateSpace) and subject.state_size > MAX_STATE_SIZE:
            return f"its kernels take recurrences of at most {MAX_STATE_SIZE} states, this one has {subject.state_size}"
        if isinstance(subject, Compressed) and subject.length and subject.num_heads:
            from .recurrence.block_states import takes

            if not any(takes(parts, subject.length, MAX_STATE_SIZE) for parts in subject.parts):
                return (
                    f"its kernels take compressed operators of at most {MAX_STATE_SIZE} states in blocks of 64 tokens "
                    "(or of 16 up to 16 states, 32 up to 64 states), and no head here is such a one"
                )
        return None

    def about(self) -> str:
        if runtime.interpreting():
            return "kernels in Triton's interpreter, for CPU tensors and only when asked for by name: slow, for tests"
        count = torch.cuda.device_count()
        return f"kernels for CUDA tensors, {count} device{'s' * (count != 1)}"

    def thin_products(self, op: Operator, heads: Tensor, budget: int) -> ThinProducts:
        from .attention.products import AttentionProducts
        from .attention.softmax import tiles

        assert isinstance(op, Attention)
        # forming scores costs as much as multiplying with them: where T has room it is formed once for all products
        if 8 * len(heads) * op.length**2 <= budget:
            return Stored(tiles(op, heads))
        return AttentionProducts(op, heads)

    def _recurrences(
        self, op: StateSpace, heads: Tensor, work: Work, budget: int, cost: Cost
    ) -> Iterator[tuple[Tensor, Engine]]:
        from .recurrence.engine import TritonRecurrence

        supported, read, write = supported_heads(op, heads)
        rest = heads[~supported]
        if len(rest) < len(heads):
            mine = heads[supported]
            engine = TritonRecurrence(op, mine, read[supported], write[supported], cost)
            yield mine, engine
            rest = torch.cat([rest, mine[engine.growing]])
        if len(rest):
            # heads that are not supported: bad data, and transitions that grow
            yield from super()._recurrences(op, rest, work, budget, cost)

    def _recurrence_bytes(self, op: StateSpace, work: Work) -> int:
        from .recurrence.engine import bytes_per_head as recurrence_bytes

        return recurrence_bytes(op.length, op.state_size, op.rank_one)

    def _shared_bytes(self, op: Operator, work: Work, heads: int) -> int:
        return 0

    def _block_states(self, op: Compressed, head: int, cost: Cost) -> Engine:
        from .recurrence.block_states import TritonBlockStates, takes

        parts = op.parts[head]
        if not takes(parts, op.length, MAX_STATE_SIZE):
            return super()._block_states(op, head, cost)
        return TritonBlockStates(parts, op.ranks_of(head), op.length, op.unit[head, None], cost)

    def rows(self, op: Tiled, heads: Tensor) -> Tensor:
        if not isinstance(op, Attention) or op.depends_on_distance:
            return super().rows(op, heads)
        from .attention.softmax import tiles

        return tiles(op, heads)

    def _matrix(self, T: Tensor, finite: Tensor, budget: int, cost: Cost) -> Matrix:
        from .matrix.engine import TritonMatrix

        return TritonMatrix(T, finite, budget, cost)

    def _takes_whole(self, op: Tiled, budget: int) -> bool:
        # there are no kernels for bands: PyTorch takes them where the whole does not fit the device
        free = free_on(op.device)
        return free is None or bytes_per_head(op.length) <= max(budget, free)

    def _matrix_bytes_of(self, op: Tiled, heads: int, work: Work, budget: int) -> int:
        # nodes are taken as many at a time as fit the budget
        return heads * bytes_per_head(op.length) + budget

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        from .spectra.values import LARGEST, singular_values

        columns = A.shape[2] if right is None else right.shape[1]
        if min(A.shape[1], columns) > LARGEST:
            # a product may be larger than its factors
            return super().small_spectra(A, right)
        return singular_values(A, right)
