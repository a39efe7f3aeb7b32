"""One head of a lower triangular `T` that is never whole, by the kernels of `csrc/matrix/` (`engine.banded`).

The corner of `T`, its lower left quarter, gives the two first products. Then each half of the positions is eliminated
from its own quarter. A `T` that the caller has in memory is read there.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from ...caching import cached_property
from ...engine.banded import BandedMatrix, Make, band_rows
from ...engine.cost import Cost
from ...engine.staircase import Eliminated
from ...engine.tiled import NORM_STEPS
from . import abi, attention, call, memory
from .certainty import CompiledCertainty
from .matrix import Operand, eliminate_items, nothing, together, workspace

# ESS_MATRIX_* of csrc/include/ess_matrix.h
WHOLE, CORNER, FIRST, LAST = range(4)


class NativeBandedMatrix(CompiledCertainty, BandedMatrix):
    """As `BandedMatrix`, with compiled eliminations."""

    def __init__(self, make: Make, stored: Tensor | None, length: int, finite: Tensor, budget: int, cost: Cost):
        self._stored = stored
        super().__init__(make, length, finite, budget, cost)
        self._one = torch.ones_like(self._factor)
        self._middle = call.size("matrix_middle", length) if length else 0
        # the products and a quarter of T
        self._room = max(0, budget - 8 * length * length)
        self._with_products: set[int] = set()  # the parts whose products are there

    @cached_property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        if self._stored is None or not bool(self.finite):
            return super()._sizes
        norm, squares = torch.zeros_like(self.unit), self.unit.new_zeros(1, self.length)
        operand = _operand(self.length, self._stored, self._factor, WHOLE)
        call.run(abi.MatrixNorm(operand, NORM_STEPS, norm.data_ptr(), squares.data_ptr()))
        return norm, squares

    @cached_property
    def _products(self) -> Tensor:
        return memory.aligned(call.size("matrix_products_size", self.length))

    def _range(self, part: int) -> tuple[int, int]:
        """The positions of a half."""
        return {WHOLE: (0, self.length), FIRST: (0, self._middle), LAST: (self._middle, self.length)}[part]

    def _part(self, part: int) -> tuple[Operand, Tensor]:
        """A part of `T` with the products that come from it alone, and what keeps it alive."""
        if part == CORNER:
            rows, columns = self._range(LAST), self._range(FIRST)
        else:
            rows = columns = self._range(part)
        if self._stored is not None:
            T, scale = self._stored[rows[0] : rows[1], columns[0] : columns[1]], self._factor
        else:
            count = columns[1] - columns[0]
            memory_of_rows = memory.aligned(1, rows[1] - rows[0], attention.row_stride(count))
            T, scale = self._fill(memory_of_rows[..., :count], rows, columns)[0], self._one
        operand = _operand(self.length, T, scale, part)
        if part not in self._with_products and self._middle:
            call.run(abi.MatrixProducts(operand, self._products.data_ptr()))
            self._with_products.add(part)
        return operand, T

    def staircase(self, wanted: Tensor, shifts: Tensor, definite: bool) -> Eliminated:
        wanted, shifts = wanted.flatten(0, 1), shifts.flatten()
        answer = nothing(wanted.shape)
        if self.length < 2 or not bool(self.finite):
            return answer
        if self._middle and CORNER not in self._with_products:
            self._part(CORNER)
        for part in (FIRST, LAST) if self._middle else (WHOLE,):
            first, last = self._range(part)
            items = wanted[:, max(first, 1) : last].any(1).nonzero()[:, 0]
            if not len(items):
                continue
            operand, alive = self._part(part)
            for some in items.split(together(operand, len(items), self._room)):
                mine = wanted[some]
                piece = nothing(mine.shape)
                heads = torch.zeros_like(some)
                eliminate_items(operand, self._products, heads, shifts[some], definite, mine, piece)
                for whole, its in zip(answer, piece, strict=True):
                    whole[some, first:last] = its[:, first:last]
            del alive  # before the other half's is made
        return answer


def _operand(length: int, T: Tensor, scale: Tensor, part: int) -> Operand:
    """One head's `T` `[rows, columns]`, or a part of it."""
    return ctypes.pointer(abi.Matrix(1, length, T.data_ptr(), T.stride(0), 0, scale.data_ptr(), part, 0))


def bytes_per_head(length: int) -> int:
    """What the head needs while it is in work, with the threads and the level of the pinned library."""
    _, how = call.current()
    return _bytes_per_head(length, how.threads, how.level)


@lru_cache(maxsize=64)
def _bytes_per_head(length: int, threads: int, level: int) -> int:
    middle = call.size("matrix_middle", length)
    some = memory.aligned(8)
    products = 8 * call.size("matrix_products_size", length)
    bands = 40 * band_rows(length) * length
    if not middle:
        whole = ctypes.pointer(abi.Matrix(1, length, some.data_ptr(), length, 0, some.data_ptr(), WHOLE, 0))
        return 8 * attention.numbers(length) + workspace(whole, 1) + bands

    def part(which: int, rows: int, columns: int) -> tuple[Operand, int]:
        stride = attention.row_stride(columns)
        operand = abi.Matrix(1, length, some.data_ptr(), stride, 0, some.data_ptr(), which, 0)
        return ctypes.pointer(operand), 8 * rows * stride

    stages = []
    for which, rows, columns in (
        (CORNER, length - middle, middle),
        (FIRST, middle, middle),
        (LAST, length - middle, length - middle),
    ):
        operand, its = part(which, rows, columns)
        work = call.workspace(abi.MatrixProducts(operand, some.data_ptr()))
        if which != CORNER:
            work = max(work, workspace(operand, 1))
        stages.append(its + max(work, bands))
    return products + max(stages)
