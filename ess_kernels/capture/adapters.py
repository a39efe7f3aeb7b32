"""Models that are wrapped in something else. Other packages add theirs by entry points `ess_kernels.adapters`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from torch import nn

GROUP = "ess_kernels.adapters"


def unwrap(model: Any) -> nn.Module:
    """The torch module to watch and to call.

    A model of `torch.compile` becomes the model that was compiled, because compiled code does not pass by the seams. An
    entry point of the group `ess_kernels.adapters` is a function that takes a model and returns the module inside, or
    None for models that are not its own.

    Raises:
        TypeError: there is no torch module to be found.
    """
    for adapter in (of_torch_compile, of_transformer_lens, *_installed()):
        inner = adapter(model)
        if inner is not None and inner is not model:
            return unwrap(inner)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def of_torch_compile(model: Any) -> nn.Module | None:
    """The module inside of what `torch.compile(model)` returns."""
    return getattr(model, "_orig_mod", None) if type(model).__name__ == "OptimizedModule" else None


def of_transformer_lens(model: Any) -> nn.Module | None:
    """The transformers model inside of a TransformerBridge of TransformerLens."""
    return getattr(model, "original_model", None) if type(model).__name__ == "TransformerBridge" else None


def _installed() -> list[Callable[[Any], nn.Module | None]]:
    return [entry.load() for entry in entry_points(group=GROUP)]
