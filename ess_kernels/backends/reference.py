"""`backend="reference"`: the definition, one singular value decomposition per head and position."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..engine.certainty import Counts, count_values, entropy_of_values
from ..operators.structure import Operator
from .base import Backend, Task


class ReferenceBackend(Backend):
    """Slow and obvious; what every other backend is tested against."""

    name = "reference"

    def refuses(self, task: Task, subject: Operator | Tensor) -> str | None:
        return "it has no backward; use backend='torch'" if subject.requires_grad and task == "entropy_ess" else None

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        values = self.singular_values(op, positions, max(1, op.length))[:, None]
        bad = values.isnan().any(-1)
        threshold = torch.maximum(atol[:, None], rtol[:, None] * values[..., 0])
        count, width, redone, unresolved = count_values(values.expand(-1, len(atol), -1, -1), threshold)
        return Counts(count.masked_fill(bad, -1), width, torch.zeros_like(redone), unresolved | bad)

    def entropy_ess(self, op: Operator, positions: Tensor) -> Tensor:
        return entropy_of_values(self.singular_values(op, positions, max(1, op.length)))

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        values = op.inputs[0].new_zeros(op.num_heads, len(positions), k, dtype=torch.float64)
        with torch.no_grad():
            for h in range(op.num_heads):
                head = op.all_heads()[h : h + 1]
                if not bool(op.finite(head)):
                    values[h] = torch.nan
                    continue
                T = op.dense_heads(head)[0].tril(-1)
                if not bool(T.isfinite().all()):
                    values[h] = torch.nan
                    continue
                for p, i in enumerate(positions.tolist()):
                    s = torch.linalg.svdvals(T[i:, :i])[:k]
                    values[h, p, : len(s)] = s
        return values

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        return torch.linalg.svdvals(A if right is None else A @ right.mT)
