"""Which line of a kernel is running, from the Python stack: in the interpreter kernels are Python functions."""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType

import triton

TRITON = str(Path(triton.__file__).parent)
HERE = str(Path(__file__).parent)


class Places:
    """Lines by number; 0 is no line. Paths are told relative to the current folder."""

    def __init__(self) -> None:
        self.names = [""]
        self._numbers: dict[tuple[CodeType, int, int], int] = {}
        self._kernel_code: dict[CodeType, bool] = {}

    def running(self, kernel: str) -> int:
        """The number of the innermost line outside of Triton and of this package, told with the line of `kernel`."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not self._is_kernel_code(frame.f_code):
            frame = frame.f_back
        inner = outer = frame
        while outer is not None and outer.f_code.co_name != kernel:
            outer = outer.f_back
        if inner is None or outer is None:
            return 0
        key = inner.f_code, inner.f_lineno, outer.f_lineno
        if key not in self._numbers:
            self._numbers[key] = len(self.names)
            name = f"{_short(inner.f_code.co_filename)}:{inner.f_lineno}"
            if inner is not outer:
                name += f" (from {_short(outer.f_code.co_filename)}:{outer.f_lineno})"
            self.names.append(name)
        return self._numbers[key]

    def _is_kernel_code(self, code: CodeType) -> bool:
        if code not in self._kernel_code:
            self._kernel_code[code] = not code.co_filename.startswith((TRITON, HERE))
        return self._kernel_code[code]


def _short(name: str) -> str:
    path, root = Path(name), Path.cwd()
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
