"""Which layers of a model are asked for."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn


def selected(layers: Any, model: nn.Module) -> list[str] | None:
    if layers is None:
        return None
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"layers: expected names of modules, * for anything, got {layers!r}")
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"layers: no module of the model is called {pattern!r}")
    return patterns


def is_selected(name: str, patterns: list[str] | None) -> bool:
    """Whether a module, or one that it is in, is asked for."""
    if patterns is None:
        return True
    return any(fnmatch.fnmatchcase(one, pattern) for one in modules_around(name) for pattern in patterns)


def modules_around(name: str) -> list[str]:
    """The names of a module and of those that it is in, itself first; without the model, whose name is empty."""
    return [name.rsplit(".", count)[0] for count in range(name.count(".") + 1)]
