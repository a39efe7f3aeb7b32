"""`backend="native"`: the compiled CPU kernels of `csrc/`, for CPU tensors.

The library is opened at the first use: importing this package loads nothing. The files form floors, each of which
imports only those below it: `abi`, `memory`, `call`; what calls kernels (`spectra`, `tokens`, `matrix`, `recurrence`,
...); `engines`; `selftest`; `choice`, beside `file` and `loading`; and this one.
"""

from __future__ import annotations

from torch import Tensor

from ...engine.certainty import Counts, Entropies
from ...operators.structure import Operator
from .choice import as_set, library
from .engines import PinnedBackend

__all__ = ["NativeBackend", "library"]


class NativeBackend(PinnedBackend):
    """The compiled engines on the library in use, with the settings that a call finds at its beginning."""

    def unavailable(self) -> str | None:
        return library().reason

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        with as_set():
            return super().tolerance_ess(op, positions, atol, rtol)

    def entropy_ess(self, op: Operator, positions: Tensor) -> Entropies:
        with as_set():
            return super().entropy_ess(op, positions)

    def soft_ess(self, op: Operator, positions: Tensor, atol: Tensor) -> Tensor:
        with as_set():
            return super().soft_ess(op, positions, atol)

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        with as_set():
            return super().singular_values(op, positions, k)

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        with as_set():
            return super().small_spectra(A, right)
