"""Any lower triangular `T` on the CPU: the staircase of `engine.tiled` by the kernels of `csrc/matrix/`.

`T` stays where and as it is: the kernels read what lies strictly below its diagonal, times a power of two.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...caching import cached_property
from ...engine.cost import Cost
from ...engine.scaling import power_of_two
from ...engine.staircase import Eliminated
from ...engine.tiled import NORM_STEPS, Matrix
from . import abi, call, memory
from .attention import OPERATOR
from .certainty import CompiledCertainty

PRODUCTS = "products"


class NativeMatrix(CompiledCertainty, Matrix):
    """`engine.tiled.Matrix` with compiled eliminations; everything that decides what is certain is the same."""

    def __init__(self, T: Tensor, finite: Tensor, budget: int, cost: Cost):
        self.length = self.group = T.shape[-1]
        self.budget, self.cost = budget, cost
        self._raw = T if T.stride(-1) == 1 and T.stride(-2) >= T.shape[-1] else T.contiguous()
        magnitude = self._largest()
        self.finite = finite & magnitude.isfinite()
        if not bool(self.finite.all()):
            self._raw[~self.finite] = 0.0
        magnitude = torch.where(self.finite, magnitude, 0.0)
        self._factor, self.unit = power_of_two(torch.ones_like(magnitude), magnitude)

    def __del__(self) -> None:
        memory.give_back(OPERATOR, self._raw)
        if "_products" in self.__dict__:
            memory.give_back(PRODUCTS, self._products)

    @cached_property
    def T(self) -> Tensor:  # type: ignore[override]
        """What PyTorch's own operations read: scaled, and nothing on or above the diagonal."""
        return self._raw.tril(-1).mul_(self._factor[:, None, None])

    def _operand(self, scale: Tensor) -> ctypes._Pointer[abi.Matrix]:
        T = self._raw
        return ctypes.pointer(
            abi.Matrix(T.shape[0], self.length, T.data_ptr(), T.stride(1), T.stride(0), scale.data_ptr())
        )

    def _largest(self) -> Tensor:
        magnitude = self._raw.new_zeros(len(self._raw))
        if len(self._raw) and self.length:
            call.run(abi.MatrixLargest(self._operand(magnitude), magnitude.data_ptr()))
        return magnitude

    @cached_property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        norm, squares = torch.zeros_like(self.unit), self.unit.new_zeros(len(self.unit), self.length)
        operand = self._operand(self._factor)
        call.run(abi.MatrixNorm(operand, NORM_STEPS, norm.data_ptr(), squares.data_ptr()))
        return norm, squares

    @cached_property
    def _products(self) -> Tensor:
        """What all tolerances and shifts share, float64, flat."""
        size = call.size("matrix_products_size", self.length)
        products = memory.borrow(PRODUCTS, len(self.unit) * size)
        call.run(abi.MatrixProducts(self._operand(self._factor), products.data_ptr()))
        return products

    def staircase(self, wanted: Tensor, shifts: Tensor, definite: bool) -> Eliminated:
        S = shifts.shape[1]
        wanted = wanted.flatten(0, 1)
        answer = _nothing(wanted.shape)
        if self.length < 2:
            return answer
        rows = wanted[:, 1:].any(1).nonzero()[:, 0]
        shifts = shifts.flatten()
        start = 0
        while start < len(rows):
            items = rows[start : start + self._together(len(rows) - start)]
            everything = len(items) == len(wanted)
            mine = wanted if everything else wanted[items]
            piece = answer if everything else _nothing(mine.shape)
            self._eliminate_items(items // S, shifts[items], definite, mine, piece)
            if not everything:
                for whole, some in zip(answer, piece, strict=True):
                    whole[items] = some
            start += len(items)
        return answer

    def _together(self, items: int) -> int:
        """How many items' workspace fits the budget."""
        while items > 1 and self._workspace(items) > self.budget // 2:
            items = (items + 1) // 2
        return items

    def _workspace(self, items: int) -> int:
        # the library reads heads and shifts to measure the workspace; the other arrays only have to exist
        one = torch.ones(items, dtype=torch.float64, device="cpu")
        head = torch.zeros_like(one, dtype=torch.int64)
        return call.workspace(self._job(head, one, False, one, Eliminated(one, one, one)))

    def _eliminate_items(
        self, heads: Tensor, shifts: Tensor, definite: bool, wanted: Tensor, answer: Eliminated
    ) -> None:
        wanted, heads, shifts = wanted.contiguous(), heads.contiguous(), shifts.contiguous()
        call.run(self._job(heads, shifts, definite, wanted, answer))

    def _job(
        self, heads: Tensor, shifts: Tensor, definite: bool, wanted: Tensor, answer: Eliminated
    ) -> abi.MatrixStaircase:
        return abi.MatrixStaircase(
            matrix=self._operand(self._factor),
            products=self._products.data_ptr(),
            items=len(heads),
            head=heads.data_ptr(),
            shift=shifts.data_ptr(),
            definite=int(definite),
            wanted=wanted.data_ptr(),
            value=answer.value.data_ptr(),
            growth=answer.growth.data_ptr(),
            least=answer.least.data_ptr(),
        )


def _nothing(shape: torch.Size) -> Eliminated:
    """The answer at positions that were not wanted: nothing counted, no growth, no small row."""
    value, growth, least = torch.zeros(3, *shape, dtype=torch.float64, device="cpu").unbind(0)
    return Eliminated(value, growth, least.fill_(torch.inf))
