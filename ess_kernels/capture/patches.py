"""Changes to other people's objects that are always taken back, in reverse order."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch.utils.hooks import RemovableHandle

MISSING = object()


class Patches:
    """A context manager. What `replace` and `hook` have done within it is undone at its end, whatever happens."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []
        self._handles: list[RemovableHandle] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """`owner.name = value`. What the owner had not itself, as an instance whose class has a method, goes again."""
        before = vars(owner).get(name, MISSING)
        setattr(owner, name, value)
        self._undo.append((owner, name, before))

    def hook(self, handle: RemovableHandle) -> None:
        self._handles.append(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        while self._undo:
            owner, name, before = self._undo.pop()
            if before is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
