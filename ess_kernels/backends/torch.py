"""`backend="torch"`: the engine of `ess_kernels.engine`, as many heads at a time as fit the workspace budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from .._progress import progress
from ..engine import smooth
from ..engine.certainty import Counts, count_values
from ..engine.cost import Cost
from ..engine.direct import FewPositions
from ..engine.parallel import product_values, svdvals
from ..engine.positions import Engine
from ..engine.state_space import Recurrence, block_length
from ..engine.state_space import bytes_per_head as recurrence_bytes
from ..engine.tiled import Matrix
from ..engine.tiled import bytes_per_head as matrix_bytes
from ..environment import memory_budget
from ..operators.structure import Operator, StateSpace, Tiled
from .base import Backend

# up to this many positions of a recurrence are found one by one
FEW = 2


class TorchBackend(Backend):
    """Plain PyTorch on CPU and CUDA tensors; differentiable entropy."""

    name = "torch"

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        result = Counts.empty((op.num_heads, len(atol), len(positions)), op.device)
        with torch.no_grad():
            for heads, engine in _slices(op, positions, entropy=False):
                part = _counts(engine, positions, atol, rtol)
                bad = ~engine.good
                part.counts[bad], part.unresolved[bad] = -1, True
                result.put(heads, part)
        return result

    def entropy_ess(self, op: Operator, positions: Tensor) -> Tensor:
        if op.requires_grad and torch.is_grad_enabled():
            return smooth.entropy_ess(op, positions)
        result = torch.zeros(op.num_heads, len(positions), dtype=torch.float64, device=op.device)
        with torch.no_grad():
            for heads, engine in _slices(op, positions, entropy=True):
                result[heads] = engine.entropy(positions).masked_fill(~engine.good[:, None], torch.nan)
        return result

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        result = torch.zeros(op.num_heads, len(positions), k, dtype=torch.float64, device=op.device)
        with torch.no_grad():
            for heads, engine in _slices(op, positions, entropy=False):
                values = engine.singular_values(positions, k)
                result[heads] = values.masked_fill(~engine.good[:, None, None], torch.nan)
        return result

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        return product_values(svdvals, A, right)


def _counts(engine: Engine, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
    """Absolute tolerances by elimination; relative ones need every position's largest singular value, so by values."""
    relative = rtol > 0
    if not bool(relative.any()):
        return engine.counts(positions, atol)
    result = Counts.empty((len(engine.unit), len(atol), len(positions)), positions.device)
    if not bool(relative.all()):
        result.put((slice(None), ~relative), engine.counts(positions, atol[~relative]))
    values = engine.values_of_all_heads(positions)[:, None]
    threshold = torch.maximum(
        (atol[relative] / engine.unit[:, None])[..., None], rtol[relative][:, None] * values[..., 0]
    )
    counts = count_values(values.expand(-1, threshold.shape[1], -1, -1), threshold)
    counts.redone.fill_(False)
    result.put((slice(None), relative), counts)
    return result


def _slices(op: Operator, positions: Tensor, entropy: bool) -> Iterator[tuple[Tensor, Engine]]:
    """The operator's heads, as many at a time as fit the budget, and at least one; what comes later replaces."""
    budget, cost = memory_budget(), Cost()
    if isinstance(op, StateSpace):
        c = block_length(op.state_size, entropy)
        need = recurrence_bytes(op.length, op.state_size, op.diagonal, c)
    else:
        need = matrix_bytes(op.length)
    for heads in progress(op.all_heads().split(max(1, budget // max(1, need))), "heads"):
        if isinstance(op, Tiled):
            yield heads, Matrix(op.rows(heads, 0, op.length), op.finite(heads), budget, cost)
            continue
        tokens = cast(StateSpace, op).tokens(heads)
        if tokens.diagonal and len(positions) <= FEW:
            few = FewPositions(tokens, cost)
            if few.safe:
                yield heads, few
                continue
        engine = Recurrence(tokens, c, cost)
        yield heads, engine
        if bool(engine.unstable.any()):
            # transitions that grow: squares of the recurrence overflow, T itself may not
            wild = heads[engine.unstable]
            yield wild, Matrix(op.dense_heads(wild), torch.ones_like(wild, dtype=torch.bool), budget, cost)
