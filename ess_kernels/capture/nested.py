"""What modules are given and return: tensors in nested tuples, lists and dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for x in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(x)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers, with everything else changed."""
    if isinstance(value, dict):
        changed = copy.copy(value)
        for key, x in value.items():
            changed[key] = mapped(x, change)
        return changed
    if isinstance(value, (tuple, list)):
        return _like(value, [mapped(x, change) for x in value])
    return change(value)


def merged(before: Any, now: Any, merge: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """`now`, with each floating-point tensor merged with the one of `before` at the same place."""
    if isinstance(now, Tensor):
        return merge(before, now) if isinstance(before, Tensor) and now.is_floating_point() else now
    if isinstance(now, dict):
        found = copy.copy(now)
        for key, x in now.items():
            found[key] = merged(before.get(key) if isinstance(before, dict) else None, x, merge)
        return found
    if isinstance(now, (tuple, list)) and isinstance(before, (tuple, list)) and len(before) == len(now):
        return _like(now, [merged(b, x, merge) for b, x in zip(before, now)])
    return now


def _like(container: Any, items: list[Any]) -> Any:
    """A tuple, a named tuple or a list of the same type."""
    return type(container)(*items) if hasattr(container, "_fields") else type(container)(items)
