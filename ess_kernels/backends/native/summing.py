"""What engines share whose kernels sum log-determinants over the nodes as they go, and keep none of them."""

from __future__ import annotations

from torch import Tensor

from ...engine.certainty import ENTROPY_BOUND
from ...engine.positions import Engine
from ...engine.quadrature import FINE, Quadrature


class SummingEngine(Engine):
    """An engine that overrides `_quadrature` in place of `_logdets`."""

    def _logdets(self, wanted: Tensor, quadrature: Quadrature, scale: Tensor | None = None) -> Tensor:
        raise NotImplementedError("the kernel sums log-determinants as it goes: see _quadrature")

    def _refine_entropy(self, doubtful: Tensor, cap: Tensor, ess: Tensor) -> Tensor:
        """More nodes: half as much again, where singular values would be many times that."""
        mine, bound = self._quadrature(doubtful, FINE, cap)
        settled = doubtful & (bound <= ENTROPY_BOUND)
        ess[settled] = mine[settled]
        return doubtful & ~settled
