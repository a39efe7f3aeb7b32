"""`ess_quadrature` of `csrc/ess_recurrence.h`: the nodes and weights that kernels sum log-determinants with."""

from __future__ import annotations

import ctypes

from ...engine.quadrature import Quadrature


class _Structure(ctypes.Structure):
    _fields_ = (
        ("nodes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("t", "total_weight", "mixed_weight")),
        *((name, ctypes.c_int64) for name in ("tail_a", "tail_b")),
    )


class Nodes:
    """A quadrature as an argument of kernels; `pointer` is what ctypes passes."""

    def __init__(self, quadrature: Quadrature):
        count = len(quadrature)
        self._columns = [(ctypes.c_double * count)(*column) for column in zip(*quadrature.table, strict=True)]
        self._structure = _Structure(count, *(ctypes.addressof(column) for column in self._columns), *quadrature.tail)
        self.pointer = ctypes.byref(self._structure)
