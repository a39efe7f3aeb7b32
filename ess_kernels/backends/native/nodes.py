"""`ess_quadrature`: the nodes and weights that kernels sum log-determinants with."""

from __future__ import annotations

import ctypes

from ...engine.quadrature import Quadrature
from . import abi

# a multiple of this many nodes is what kernels take
TOGETHER = 8


class Nodes:
    """A quadrature as an argument of kernels; `pointer` is what their jobs take."""

    def __init__(self, quadrature: Quadrature):
        # the largest node once more, with no weight, until all vectors are full
        rows = [*quadrature.table, *[(quadrature.table[-1][0], 0.0, 0.0)] * (-len(quadrature) % TOGETHER)]
        self._columns = [(ctypes.c_double * len(rows))(*column) for column in zip(*rows, strict=True)]
        addresses = (ctypes.addressof(column) for column in self._columns)
        self._structure = abi.Quadrature(len(rows), *addresses, *quadrature.errors, *quadrature.slopes)
        self.pointer = ctypes.pointer(self._structure)
