"""Which backend takes a call, and why the others do not."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from ..operators.structure import Operator
from .base import Backend, Task, wants_gradient
from .native import NativeBackend
from .reference import ReferenceBackend
from .torch import TorchBackend
from .triton import TritonBackend

logger = logging.getLogger("ess_kernels")

NAMES = ("reference", "torch", "native", "triton")
# what `auto` tries before the engine in PyTorch, by the kind of device
FASTER = {"cpu": "native", "cuda": "triton"}


@dataclass(frozen=True)
class BackendStatus:
    """A backend, whether it can be used here, and why (not)."""

    name: str
    usable: bool
    reason: str


@cache
def _backend(name: str) -> Backend:
    kinds = (ReferenceBackend, TorchBackend, NativeBackend, TritonBackend)
    return {kind.name: kind for kind in kinds}[name]()


def describe() -> list[BackendStatus]:
    """Every backend as it stands on this machine."""
    rows = []
    for name in NAMES:
        backend = _backend(name)
        reason = backend.unavailable()
        rows.append(BackendStatus(name, reason is None, reason or backend.about()))
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
    if name not in NAMES:
        raise ValueError(f"backend: expected one of 'auto', {', '.join(map(repr, NAMES))}, got {name!r}")
    backend = _backend(name)
    reason = _why_not(backend, task, subject)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot be used for {task}: {reason}")
    return backend


def _choose_automatically(task: Task, subject: Operator | Tensor) -> Backend:
    # a gradient needs the engine's differentiable path
    faster = None if wants_gradient(task, subject) else FASTER.get(subject.device.type)
    if faster is not None:
        backend = _backend(faster)
        reason = _why_not(backend, task, subject)
        if reason is None:
            return backend
        if faster == "triton":
            say_once(f"CUDA tensors are left to backend 'torch', not 'triton': {reason}")
    return _backend("torch")


def _why_not(backend: Backend, task: Task, subject: Operator | Tensor) -> str | None:
    """Why a backend cannot take a call, or None."""
    return backend.lacks(task, subject) or backend.unavailable() or backend.refuses(task, subject)


@cache
def say_once(line: str) -> None:
    logger.warning(line)
