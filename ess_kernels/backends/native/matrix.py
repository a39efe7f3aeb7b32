"""Any lower triangular `T` on the CPU: the staircase of `engine.tiled` by the kernels of `csrc/matrix/`.

`T` stays where and as it is: the kernels read what lies strictly below its diagonal, times a power of two.
"""

from __future__ import annotations

import ctypes
from typing import TypeAlias

import torch
from torch import Tensor

from ...caching import cached_property
from ...engine.cost import Cost
from ...engine.scaling import power_of_two
from ...engine.staircase import Eliminated
from ...engine.tiled import NORM_STEPS, Matrix
from . import abi, attention, call, memory
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

    def _operand(self, scale: Tensor) -> Operand:
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

    def _block_at(self, head: int, position: int) -> Tensor:
        # below the diagonal: a scaled copy of the whole T is not needed for it
        return self._raw[head, position:, :position] * self._factor[head]

    def staircase(self, wanted: Tensor, shifts: Tensor, definite: bool) -> Eliminated:
        S = shifts.shape[1]
        wanted = wanted.flatten(0, 1)
        answer = nothing(wanted.shape)
        if self.length < 2:
            return answer
        rows = wanted[:, 1:].any(1).nonzero()[:, 0]
        shifts = shifts.flatten()
        operand = self._operand(self._factor)
        start = 0
        while start < len(rows):
            items = rows[start : start + together(operand, len(rows) - start, self.budget // 2)]
            everything = len(items) == len(wanted)
            mine = wanted if everything else wanted[items]
            piece = answer if everything else nothing(mine.shape)
            eliminate_items(operand, self._products, items // S, shifts[items], definite, mine, piece)
            if not everything:
                for whole, some in zip(answer, piece, strict=True):
                    whole[items] = some
            start += len(items)
        return answer


Operand: TypeAlias = "ctypes._Pointer[abi.Matrix]"


def together(operand: Operand, items: int, room: int) -> int:
    """How many items' workspace fits into so many bytes, at least one."""
    while items > 1 and workspace(operand, items) > room:
        items = (items + 1) // 2
    return items


def workspace(operand: Operand, items: int) -> int:
    """Bytes that the elimination of some items takes."""
    # the library reads heads and shifts to measure the workspace; the other arrays only have to exist
    one = memory.aligned(items).fill_(1)
    head = torch.zeros_like(one, dtype=torch.int64)
    return call.workspace(_job(operand, one, head, one, False, one, Eliminated(one, one, one)))


def bytes_of_heads(length: int, heads: int, shifts: int, budget: int) -> int:
    """What some heads take at most at so many shifts at a time (0: for singular values), with the pinned library.

    `T`, the two products and the workspace of eliminations; or `T` and, of one `H_i` at a time, a copy and what LAPACK
    makes of it.
    """
    if not length:
        return 0
    some = memory.aligned(heads).fill_(1)
    stride = attention.row_stride(length)
    head_stride = attention.numbers(length)
    if not shifts:
        return 8 * heads * head_stride + 8 * length**2
    operand = ctypes.pointer(abi.Matrix(heads, length, some.data_ptr(), stride, head_stride, some.data_ptr()))
    items = together(operand, heads * shifts, budget // 2)
    packed = call.workspace(abi.MatrixProducts(operand, some.data_ptr()))
    held = 8 * heads * (head_stride + call.size("matrix_products_size", length))
    return held + max(packed, workspace(operand, items))


def eliminate_items(
    operand: Operand,
    products: Tensor,
    heads: Tensor,
    shifts: Tensor,
    definite: bool,
    wanted: Tensor,
    answer: Eliminated,
) -> None:
    """Writes the answer `[items, L]` of some heads and shifts `[items]` where wanted, and the part of `T` has it."""
    wanted, heads, shifts = wanted.contiguous(), heads.contiguous(), shifts.contiguous()
    call.run(_job(operand, products, heads, shifts, definite, wanted, answer))


def _job(
    operand: Operand,
    products: Tensor,
    heads: Tensor,
    shifts: Tensor,
    definite: bool,
    wanted: Tensor,
    answer: Eliminated,
) -> abi.MatrixStaircase:
    return abi.MatrixStaircase(
        matrix=operand,
        products=products.data_ptr(),
        items=len(heads),
        head=heads.data_ptr(),
        shift=shifts.data_ptr(),
        definite=int(definite),
        wanted=wanted.data_ptr(),
        value=answer.value.data_ptr(),
        growth=answer.growth.data_ptr(),
        least=answer.least.data_ptr(),
    )


def nothing(shape: torch.Size) -> Eliminated:
    """The answer at positions that were not wanted: nothing counted, no growth, no small row."""
    value, growth, least = torch.zeros(3, *shape, dtype=torch.float64, device="cpu").unbind(0)
    return Eliminated(value, growth, least.fill_(torch.inf))
