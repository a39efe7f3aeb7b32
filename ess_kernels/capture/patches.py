"""Changes to other people's objects that are always taken back, in reverse order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MISSING = object()
MOST_NUMBERS = 1 << 20  # of a tensor that is copied to be set back


class Patches:
    """A context manager. What `replace` and `hook` have done within it is undone at its end, whatever happens."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []
        self._handles: list[RemovableHandle] = []
        self._children: list[tuple[nn.Module, str, nn.Module | None]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """`owner.name = value`. What the owner had not itself, as an instance whose class has a method, goes again."""
        before = vars(owner).get(name, MISSING)
        setattr(owner, name, value)
        self._undo.append((owner, name, before))

    def replace_child(self, module: nn.Module, name: str, child: nn.Module) -> None:
        """`module.name = child` for a submodule, in its place among the others."""
        self._children.append((module, name, module._modules[name]))
        module._modules[name] = child

    def hook(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        while self._children:
            module, name, child = self._children.pop()
            module._modules[name] = child
        while self._undo:
            owner, name, before = self._undo.pop()
            if before is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


@contextmanager
def attributes_kept(module: nn.Module, tensors_only: bool = False) -> Iterator[None]:
    """What calls within it set on a module or on its submodules, such as a recurrent state, is set back.

    So are the numbers of tensors among it that calls change in place, but for large ones, which are weights and masks.

    Args:
        module: with all its submodules.
        tensors_only: leave what is neither a tensor nor None. A flag may say how weights are at present: RWKV-4
            rescales them at its first call in eval mode, and would do so again.
    """
    inner = list(module.modules())
    before = [(_of(vars(m), tensors_only), dict(m._buffers)) for m in inner]
    numbers = [
        (x, x._version, x.clone())
        for names in before
        for x in [*names[0].values(), *names[1].values()]
        if isinstance(x, Tensor) and x.numel() <= MOST_NUMBERS and not x.is_inference()
    ]
    try:
        yield
    finally:
        for m, (attributes, buffers) in zip(inner, before):
            for name in _of(vars(m), tensors_only).keys() - attributes.keys():
                delattr(m, name)
            vars(m).update(attributes)
            m._buffers.clear()
            m._buffers.update(buffers)
        with torch.no_grad():
            for x, version, kept in numbers:
                if x._version != version:
                    x.copy_(kept)


def _of(attributes: dict[str, Any], tensors_only: bool) -> dict[str, Any]:
    return {name: x for name, x in attributes.items() if not tensors_only or x is None or isinstance(x, Tensor)}
