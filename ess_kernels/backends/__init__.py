"""Which backend takes a call, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor

from ..operators.structure import Operator
from .base import Backend, Task
from .native import NativeBackend
from .reference import ReferenceBackend
from .torch import TorchBackend

NAMES = ("reference", "torch", "native")


@dataclass(frozen=True)
class BackendStatus:
    """A backend, whether it can be used here, and why (not)."""

    name: str
    usable: bool
    reason: str


@cache
def _backend(name: str) -> Backend:
    return {"reference": ReferenceBackend, "torch": TorchBackend, "native": NativeBackend}[name]()


def describe() -> list[BackendStatus]:
    """Every backend as it stands on this machine."""
    usable = {
        "reference": "the definition: one singular value decomposition per position, slow",
        "torch": "the engine in PyTorch, for CPU and CUDA tensors; `auto` uses it where no faster backend can",
        "native": "compiled library loaded and self-tested; it has no kernels yet",
    }
    rows = []
    for name in NAMES:
        reason = _backend(name).unavailable()
        rows.append(BackendStatus(name, reason is None, reason or usable[name]))
    rows.append(BackendStatus("triton", False, "this version has no Triton kernels"))
    return rows


def choose(name: str, task: Task, subject: Operator | Tensor) -> Backend:
    """The backend for a call.

    Args:
        name: `"auto"` or a backend's name.

    Raises:
        ValueError: no backend of that name.
        RuntimeError: a backend asked for by name that cannot run here or does not take this call, with the reason.
    """
    if name == "auto":
        return _choose_automatically(task, subject)
    if name not in (*NAMES, "triton"):
        raise ValueError(f"backend: expected one of 'auto', {', '.join(map(repr, NAMES))}, 'triton', got {name!r}")
    if name == "triton":
        raise RuntimeError("backend 'triton' cannot be used: this version has no Triton kernels")
    backend = _backend(name)
    reason = backend.unavailable() or backend.refuses(task, subject)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot be used for {task}: {reason}")
    return backend


def _choose_automatically(task: Task, subject: Operator | Tensor) -> Backend:
    # a gradient needs the engine's differentiable path
    if subject.device.type == "cpu" and not subject.requires_grad:
        native = _backend("native")
        if native.unavailable() is None and native.refuses(task, subject) is None:
            return native
    return _backend("torch")
