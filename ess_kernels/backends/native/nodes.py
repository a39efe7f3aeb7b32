"""`ess_quadrature` of `csrc/include/ess_recurrence.h`: the nodes and weights that kernels sum log-determinants with."""

from __future__ import annotations

import ctypes

from ...engine.quadrature import Quadrature

# a multiple of this many nodes is what kernels take
TOGETHER = 8


class _Structure(ctypes.Structure):
    _fields_ = (
        ("nodes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("t", "total_weight", "mixed_weight")),
        *((name, ctypes.c_double) for name in ("total_error", "mixed_error", "total_slope", "mixed_slope")),
    )


class Nodes:
    """A quadrature as an argument of kernels; `pointer` is what ctypes passes."""

    def __init__(self, quadrature: Quadrature):
        # the largest node once more, with no weight, until all vectors are full
        rows = [*quadrature.table, *[(quadrature.table[-1][0], 0.0, 0.0)] * (-len(quadrature) % TOGETHER)]
        self._columns = [(ctypes.c_double * len(rows))(*column) for column in zip(*rows, strict=True)]
        addresses = (ctypes.addressof(column) for column in self._columns)
        self._structure = _Structure(len(rows), *addresses, *quadrature.errors, *quadrature.slopes)
        self.pointer = ctypes.byref(self._structure)
