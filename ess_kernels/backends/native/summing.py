"""What engines for recurrences share: room for answers, and log-determinants summed over the nodes by the kernels."""

from __future__ import annotations

import math

from torch import Tensor

from ...engine.certainty import ENTROPY_BOUND
from ...engine.quadrature import FINE, Quadrature
from ...engine.staircase import Eliminated
from . import memory
from .certainty import CompiledCertainty

# the name of what is kept between calls
ELIMINATED = "eliminated"


class SummingEngine(CompiledCertainty):
    """An engine that overrides `_quadrature` in place of `_logdets`, and eliminates into memory that is kept."""

    _borrowed: Tensor | None = None

    def _room(self, *shape: int) -> Eliminated:
        """An answer of this shape, undefined, in the place of the one before."""
        self._give_back()
        self._borrowed = memory.borrow(ELIMINATED, 3 * math.prod(shape))
        return Eliminated(*self._borrowed.view(3, *shape).unbind())

    def _give_back(self) -> None:
        if self._borrowed is not None:
            memory.give_back(ELIMINATED, self._borrowed)
            self._borrowed = None

    def __del__(self) -> None:
        self._give_back()

    def _logdets(self, wanted: Tensor, quadrature: Quadrature, scale: Tensor | None = None) -> Tensor:
        raise NotImplementedError("the kernel sums log-determinants as it goes: see _quadrature")

    def _refine_entropy(self, doubtful: Tensor, cap: Tensor, ess: Tensor) -> Tensor:
        """More nodes: half as much again, where singular values would be many times that."""
        mine, bound = self._quadrature(doubtful, FINE, cap)
        settled = doubtful & (bound <= ENTROPY_BOUND)
        ess[settled] = mine[settled]
        return doubtful & ~settled
