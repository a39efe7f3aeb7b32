"""`backend="torch"`: the engine of `ess_kernels.engine` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..engine.thin_products import ThinProducts, thin_products
from ..operators.structure import Operator
from .base import Task
from .windowed import WindowedBackend


class TorchBackend(WindowedBackend):
    """Plain PyTorch on CPU and CUDA tensors."""

    name = "torch"

    def about(self) -> str:
        return "the engine in PyTorch, for CPU and CUDA tensors; `auto` uses it where no faster backend can"

    def lacks(self, task: Task, subject: Operator | Tensor) -> str | None:
        return None

    def thin_products(self, op: Operator, heads: Tensor, budget: int) -> ThinProducts:
        return thin_products(op, heads, budget)
