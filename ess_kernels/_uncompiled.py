"""Calls that end the graph being traced; with `fullgraph=True` they are errors that give the reason.

Imported while a graph is traced only: `torch.compiler.disable` loads the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


NO_GRADIENT = "the gradient of entropy_ess is not compiled, nor is any other (under torch.no_grad() there is none)"


@torch.compiler.disable(reason=NO_GRADIENT)
def differentiable(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments)


@torch.compiler.disable(reason="only operators of ess_kernels.operators can be part of a graph")
def unknown_operator(function: Callable[..., Result], *arguments: Any) -> Result:
    with torch.no_grad():
        return function(*arguments)
