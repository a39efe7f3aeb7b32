"""`backend="native"`: the compiled CPU kernels of `csrc/`, for CPU tensors.

The library is opened at the first use: importing this package loads nothing.
"""

from __future__ import annotations

from torch import Tensor

from ...operators.structure import Operator
from ..base import NO_BACKWARD, Task, wants_gradient
from ..torch import TorchBackend
from .loading import library


class NativeBackend(TorchBackend):
    """The same slices of heads, certainty and bad data as in PyTorch, with engines that call compiled kernels."""

    name = "native"

    def unavailable(self) -> str | None:
        return library().reason

    def refuses(self, task: Task, subject: Operator | Tensor) -> str | None:
        if subject.device.type != "cpu":
            return f"it takes CPU tensors, these are on {subject.device}"
        if wants_gradient(task, subject):
            return NO_BACKWARD
        return f"the native library has no kernel for {task} yet"

    def about(self) -> str:
        return "compiled kernels for CPU tensors; `auto` takes it for them"
