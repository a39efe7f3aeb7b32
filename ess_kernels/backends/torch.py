"""`backend="torch"`: the engine of `ess_kernels.engine` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import smooth
from ..engine.certainty import Entropies
from ..engine.thin_products import ThinProducts, thin_products
from ..operators.structure import Operator
from .base import Task, wants_gradient
from .engine_backend import EngineBackend


class TorchBackend(EngineBackend):
    """Plain PyTorch on CPU and CUDA tensors; differentiable entropy."""

    name = "torch"

    def about(self) -> str:
        return "the engine in PyTorch, for CPU and CUDA tensors; `auto` uses it where no faster backend can"

    def lacks(self, task: Task, subject: Operator | Tensor) -> str | None:
        return None

    def thin_products(self, op: Operator, heads: Tensor, budget: int) -> ThinProducts:
        return thin_products(op, heads, budget)

    def entropy_ess(self, op: Operator, positions: Tensor) -> Entropies:
        found = super().entropy_ess(op, positions)
        if not wants_gradient("entropy_ess", op):
            return found
        # values without a gradient decide where there is no entropy
        return found._replace(ess=torch.where(found.ess == 0, 0.0, smooth.entropy_ess(op, positions)))
