"""What engines for recurrences share: memory for the answers of an elimination, kept from one call to the next."""

from __future__ import annotations

import math

from torch import Tensor

from ...engine.staircase import Eliminated
from . import memory
from .certainty import CompiledCertainty

# the name under which that memory is kept between calls
ELIMINATED = "eliminated"


class SummingEngine(CompiledCertainty):
    """An engine that eliminates into memory which the thread keeps for its next engine."""

    _borrowed: Tensor | None = None

    def _room(self, *shape: int) -> Eliminated:
        """Three uninitialised arrays of this shape. The engine's previous answer is overwritten."""
        self._give_back()
        self._borrowed = memory.borrow(ELIMINATED, 3 * math.prod(shape))
        return Eliminated(*self._borrowed.view(3, *shape).unbind())

    def _give_back(self) -> None:
        if self._borrowed is not None:
            memory.give_back(ELIMINATED, self._borrowed)
            self._borrowed = None

    def __del__(self) -> None:
        self._give_back()
