"""`backend="reference"`: the definition, one singular value decomposition per head and position."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.certainty import Counts, Entropies, count_relative, estimate_of_values
from ..engine.parallel import product_values
from ..engine.soft_quadrature import soft_count_of_values
from ..engine.state_space import lost_in
from ..memory import Need, make_sure
from ..operators.structure import Operator
from ..reference import reference_singular_values
from .base import NO_BACKWARD, Backend, Task, wants_gradient


class ReferenceBackend(Backend):
    """Slow and obvious; what every other backend is tested against."""

    name = "reference"

    def refuses(self, task: Task, subject: Operator | Tensor) -> str | None:
        return NO_BACKWARD if wants_gradient(task, subject) else None

    def about(self) -> str:
        return "the definition: one singular value decomposition per position, slow"

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        values = self._values(op, positions)[:, None]
        bad = values[..., 0].isnan()
        lost = lost_in(op, op.all_heads())[:, positions][:, None]
        found = count_relative(values, atol[:, None], rtol[:, None], lost, op.rank_cap(positions))
        counts, redone = found.counts.masked_fill(bad, -1), torch.zeros_like(found.redone)
        return Counts(counts, found.width, redone, found.unresolved | bad)

    def entropy_ess(self, op: Operator, positions: Tensor) -> Entropies:
        values = self._values(op, positions)
        bad = values.isnan().any(-1)
        lost = lost_in(op, op.all_heads())[:, positions]
        return Entropies.certified(estimate_of_values(values), op.rank_cap(positions), lost).mark_bad(bad)

    def soft_ess(self, op: Operator, positions: Tensor, atol: Tensor) -> Tensor:
        return soft_count_of_values(self._values(op, positions)[:, None], atol[:, None])

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        values = self._values(op, positions)[..., :k]
        return torch.nn.functional.pad(values, (0, k - values.shape[-1]))

    def _values(self, op: Operator, positions: Tensor) -> Tensor:
        rows, columns = op.inner.block
        size = 5 * 8 * op.num_heads * op.length**2 * rows * columns + 16 * op.num_heads * len(positions) * op.length
        unit = f"T of {op.num_heads} heads of {op.length} tokens"
        make_sure(Need(unit, size, size, "another backend, or fewer heads"), op.device)
        with torch.no_grad():
            return reference_singular_values(op, positions).reshape(op.num_heads, len(positions), -1)

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        return product_values(torch.linalg.svdvals, A, right)
