"""Models that are wrapped in something else. Other packages add theirs by entry points `ess_kernels.adapters`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from .patches import Patches

GROUP = "ess_kernels.adapters"

# Takes a model and returns the module inside of it, or None for models that are not its own. What it has to change, it
# changes by the patches, which undo it.
Adapter = Callable[[Any, Patches], nn.Module | None]


@contextmanager
def unwrapped(model: Any) -> Iterator[nn.Module]:
    """The torch module to watch and to call.

    - A model of `torch.compile` becomes the model that was compiled: compiled code does not pass by the seams.
    - A TransformerBridge of TransformerLens becomes the model of transformers inside, with its own modules in place.
      TransformerLens' hooks do not act meanwhile.
    - An entry point of the group `ess_kernels.adapters` is a function of a model and of `Patches`. It returns the
      module inside, or None for models that are not its own.

    Raises:
        TypeError: there is no torch module to be found.
    """
    with Patches() as patches:
        adapters = (of_torch_compile, of_transformer_lens, *_installed())
        while True:
            found = (adapter(model, patches) for adapter in adapters)
            inner = next((module for module in found if module is not None), None)
            if inner is None or inner is model:
                break
            model = inner
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        yield model


def of_torch_compile(model: Any, patches: Patches) -> nn.Module | None:
    """The module inside of what `torch.compile(model)` returns."""
    return getattr(model, "_orig_mod", None) if type(model).__name__ == "OptimizedModule" else None


def of_transformer_lens(model: Any, patches: Patches) -> nn.Module | None:
    """The transformers model inside of a TransformerBridge, without the components that stand in for its modules."""
    if type(model).__name__ != "TransformerBridge":
        return None
    inner: nn.Module = model.original_model
    _put_originals_back(inner, patches)
    return inner


def _put_originals_back(module: nn.Module, patches: Patches) -> None:
    for name, child in list(module.named_children()):
        original = getattr(child, "original_component", None)
        if original is not None and any(base.__name__ == "GeneralizedComponent" for base in type(child).__mro__):
            patches.replace_child(module, name, original)
            child = original
        _put_originals_back(child, patches)


def _installed() -> list[Adapter]:
    return [entry.load() for entry in entry_points(group=GROUP)]
