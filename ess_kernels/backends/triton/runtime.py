"""Where kernels run: on a CUDA device, or in Triton's interpreter on CPU tensors (`TRITON_INTERPRET=1`)."""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch


def interpreting() -> bool:
    """Whether kernels are interpreted. Triton decides that when it is imported, from its environment variable."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def unavailable() -> str | None:
    """Why no kernel can run here, or None."""
    if not _installed():
        return "triton is not installed"
    if not torch.cuda.is_available() and not interpreting():
        return "there is no CUDA device (TRITON_INTERPRET=1, set before the start, runs the kernels slowly on the CPU)"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def refuses(device: torch.device) -> str | None:
    """Why kernels cannot take tensors on this device, or None."""
    if device.type == "cuda":
        # with the interpreter on, Triton would copy every argument to the CPU and back
        return "TRITON_INTERPRET is set: kernels take CPU tensors only" if interpreting() else None
    if device.type == "cpu" and interpreting():
        return None
    return f"its kernels take CUDA tensors, these lie on the {device.type}"


def on(device: torch.device) -> AbstractContextManager:
    """Launches inside go to this device, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
