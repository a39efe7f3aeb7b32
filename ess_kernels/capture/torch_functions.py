"""On a CPU, models call functions in PyTorch where installed packages have put kernels for a GPU in their place."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from .patches import Patches


def modules_of(model: nn.Module) -> list[ModuleType]:
    """The Python modules in which the classes of a model's modules are defined."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules())
    return [sys.modules[name] for name in names if name in sys.modules]


def original(function: Any) -> Any:
    """The function that transformers' decorators wrap, which would call a GPU kernel if its package is installed.

    transformers (5.15 and newer) decorates its PyTorch functions such that flash-linear-attention or mamba_ssm, if it
    can be imported, is called instead, on a CPU too, where it fails.
    """
    while _is_replaced(function):
        function = function.__wrapped__
    return function


def on_cpu(model: nn.Module) -> bool:
    """Whether all parameters of the model lie on a CPU."""
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


@contextmanager
def torch_functions(model: nn.Module) -> Iterator[None]:
    """Within it a model of transformers on a CPU runs with transformers' own PyTorch functions; a GPU's stays as it is.

    Without it, a model with a recurrent mixer fails on a CPU where flash-linear-attention is installed ("0 active
    drivers"), with this package or without it.
    """
    with Patches() as patches:
        use_torch_functions(model, patches)
        yield


def use_torch_functions(model: nn.Module, patches: Patches) -> None:
    """The same for as long as the patches last."""
    if not on_cpu(model):
        return
    for namespace in modules_of(model):
        if not namespace.__name__.startswith("transformers.models."):
            continue
        for name, function in list(vars(namespace).items()):
            if _is_replaced(function):
                patches.replace(namespace, name, original(function))


def _is_replaced(function: Any) -> bool:
    """Whether a function is a wrapper that transformers' decorators for hub kernels have made."""
    return (
        inspect.isfunction(function)
        and hasattr(function, "__wrapped__")
        and "hub_kernels" in function.__code__.co_filename
    )
