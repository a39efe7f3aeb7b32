"""Many small matrices to bidiagonal form, orthogonally: never through `A^T A`.

One program holds `G` matrices in registers. An element (i, j) lies at `[j // J0, i // (W I0), i // I0 % W, g, i % I0,
j % J0]` of a tensor `[J1, I1, W, G, I0, J0]`: the last three axes are the 32 lanes of a warp, `W` are the warps, and
the first two lie in registers, where a comparison with a constant costs nothing. So the loop over blocks of columns is
unrolled, and what is already reduced drops out of the code: the work shrinks with the matrix, by blocks.

With c the column and `row` the row of a step k, its left reflector `v = c - beta e_k` needs no norm before the pass
that sums over rows: `A^T v = A^T c - beta row`, and `(A^T c)_k` is the squared norm itself. So a step has one exchange
between the warps. Likewise, the product with the right reflector is that with the row, less a multiple of the next
column.

Instructions for n = 64, counted in the loops of the machine code for sm_90: 36 thousand a matrix in float32 (one warp),
of which the multiply-adds take a third and the sums across lanes a quarter; in float64 76 thousand (two warps), 33
thousand of them float64 ones, which take two issue slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Variant
from ..launches import Launch
from ..runtime import on


class Tile(NamedTuple):
    """How a program lays out its matrices; `size` is the padded number of rows and of columns."""

    size: int
    matrices: int
    row_lanes: int
    column_lanes: int
    warps: int

    @property
    def launch(self) -> Launch:
        return Launch(self.warps)

    def constants(self) -> dict[str, int]:
        return {
            "I1": self.size // (self.row_lanes * self.warps),
            "J1": self.size // self.column_lanes,
            "W": self.warps,
            "G": self.matrices,
            "I0": self.row_lanes,
            "J0": self.column_lanes,
        }


# as few lanes a matrix as can hold it: fewer shuffles, and one instruction on scalars serves more matrices
TILES = {
    torch.float32: (Tile(8, 8, 2, 2, 1), Tile(16, 8, 2, 2, 1), Tile(32, 2, 4, 4, 1), Tile(64, 1, 4, 8, 1)),
    torch.float64: (Tile(8, 8, 2, 2, 1), Tile(16, 4, 2, 4, 1), Tile(32, 1, 4, 8, 1), Tile(64, 1, 4, 8, 2)),
}
IN_REGISTERS = 64


@triton.jit
def power_of_two(exponent, DOUBLE: tl.constexpr):
    """`2^(exponent - bias)` for a biased exponent."""
    if DOUBLE:
        return (exponent.to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        return (exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def biased_exponent(x, DOUBLE: tl.constexpr):
    """The exponent field of `x`, whatever its sign; int32."""
    if DOUBLE:
        return ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32)
    else:
        return (x.to(tl.int32, bitcast=True) >> 23) & 0xFF


@triton.jit
def unit_and_factors(largest, DOUBLE: tl.constexpr):
    """The power of two below the largest magnitude, and two factors that divide by it without over- or underflow."""
    LOW: tl.constexpr = -500 if DOUBLE else -60
    LIFT: tl.constexpr = 2.0**512 if DOUBLE else 2.0**64
    TOP: tl.constexpr = 2046 if DOUBLE else 254
    one = largest * 0.0 + 1.0
    lift = tl.where(largest < 2.0**LOW, one * LIFT, one)
    exponent = tl.minimum(tl.maximum(biased_exponent(largest * lift, DOUBLE), 1), TOP - 1)
    unit = power_of_two(exponent, DOUBLE) * (1.0 / lift)
    return tl.where(largest == 0.0, largest, unit), lift, power_of_two(TOP - exponent, DOUBLE)


@triton.jit
def _over_rows(x):
    """Sums over the rows that one warp holds."""
    return tl.sum(tl.sum(x, 1, keep_dims=True), 4, keep_dims=True)


@triton.jit
def _over_columns(x):
    return tl.sum(tl.sum(x, 0, keep_dims=True), 5, keep_dims=True)


@triton.jit
def reflector(norm2, first, DOUBLE: tl.constexpr):
    """The reflector `I - v v^T / h` that turns a vector into a multiple of the first unit vector.

    Args:
        norm2, first: the vector's squared norm and first element.

    Returns:
        The first element of the result, and 1/h. `v` is the vector, less this result in its first element. A vector
        whose square underflows is left as it is: it is far below rounding errors.
    """
    NOTHING: tl.constexpr = 2.0**-1000 if DOUBLE else 2.0**-120
    some = norm2 > NOTHING
    root = tl.sqrt(tl.where(some, norm2, 1.0))
    result = tl.where(first > 0, -root, root)
    inverse = 1.0 / tl.where(some, norm2 + root * tl.abs(first), 1.0)
    return tl.where(some, result, first), tl.where(some, inverse, 0.0)


@triton.jit
def squared(b, DOUBLE: tl.constexpr):
    """Squares of entries of a bidiagonal matrix, and of zeros a number far below rounding errors.

    With a zero beside the diagonal the matrix would fall into two, each with singular values of its own.
    """
    LEAST: tl.constexpr = 2.0**-120 if DOUBLE else 2.0**-54
    return tl.maximum(b * b, LEAST)


@triton.jit(
    do_not_specialize=["batch", "rows", "columns", "stride_batch", "stride_row", "stride_column", "first", "length"]
)
def bidiagonalise(
    A, squares, unit, batch, rows, columns, stride_batch, stride_row, stride_column, first, length,
    I1: tl.constexpr, J1: tl.constexpr, W: tl.constexpr, G: tl.constexpr, I0: tl.constexpr, J0: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    """Squares of the bidiagonal form of `A[:, first:, first:]`, interleaved: diagonal, off-diagonal, diagonal, ...

    With `SCALE`, of `A / unit`, which is found and stored. The strides are not specialised: the layout must not depend
    on them.
    """
    DOUBLE: tl.constexpr = A.dtype.element_ty == tl.float64
    j1 = tl.arange(0, J1)[:, None, None, None, None, None]
    i1 = tl.arange(0, I1)[None, :, None, None, None, None]
    w = tl.arange(0, W)[None, None, :, None, None, None]
    g = tl.arange(0, G)[None, None, None, :, None, None]
    i0 = tl.arange(0, I0)[None, None, None, None, :, None]
    j0 = tl.arange(0, J0)[None, None, None, None, None, :]
    i, j = (i1 * W + w) * I0 + i0, j1 * J0 + j0
    matrix = tl.program_id(0).to(tl.int64) * G + g
    inside = matrix < batch
    # loaded along one axis, for which Triton has only one layout: the last axes in lanes. All that follows inherits it
    flat = tl.arange(0, J1 * I1 * W * G * I0 * J0)
    each = tl.program_id(0).to(tl.int64) * G + flat // (J0 * I0) % G
    flat_row = first + flat // (J0 * I0 * G) % (W * I1) * I0 + flat // J0 % I0
    flat_column = first + flat // (J0 * I0 * G * W * I1) * J0 + flat % J0
    source = A + each * stride_batch + flat_row.to(tl.int64) * stride_row + flat_column.to(tl.int64) * stride_column
    a = tl.load(source, mask=(each < batch) & (flat_row < rows) & (flat_column < columns), other=0.0)
    a = tl.reshape(a, [J1, I1, W, G, I0, J0])
    if SCALE:
        largest = tl.max(tl.max(tl.max(tl.abs(a), 0, keep_dims=True), 1, keep_dims=True), 5, keep_dims=True)
        largest = tl.max(tl.max(largest, 4, keep_dims=True), 2, keep_dims=True)
        scale, lift, inverse = unit_and_factors(largest, DOUBLE)
        tl.store(unit + matrix, scale, mask=inside)
        a = a * lift * inverse
    target = squares + matrix * length + 2 * first
    n = columns - first
    # column k, with zeros above row k
    c = tl.sum(tl.sum(tl.where(j == 0, a, 0.0), 0, keep_dims=True), 5, keep_dims=True)
    for block in tl.static_range(J1):
        # x + -0 is x, so that the compiler drops the addition; adding +0 would stay in the code
        live = (j1 >= block) & (i1 >= block * J0 // (W * I0))
        near = (j1 == block) | (j1 == block + 1)
        around = (i1 >= block * J0 // (W * I0)) & (i1 <= (block * J0 + J0 - 1) // (W * I0))
        k = first * 0 + block * J0
        while k < tl.minimum(block * J0 + J0, n):
            product = _over_rows(tl.where(live, a * c, -0.0))
            row = _over_rows(tl.where(live & around, tl.where(i == k, a, 0.0), -0.0))
            if W > 1:
                # one exchange between the warps for both sums
                product, row = tl.split(tl.sum(tl.join(product, row), 2, keep_dims=True))
            here, after = j == k, j == k + 1
            norm2 = _over_columns(tl.where(j1 == block, tl.where(here, product, 0.0), -0.0))
            diagonal = _over_columns(tl.where(j1 == block, tl.where(here, row, 0.0), -0.0))
            beta, inverse = reflector(norm2, diagonal, DOUBLE)
            head = diagonal - beta
            y = tl.where(j > k, (product - beta * row) * inverse, 0.0)
            r = tl.where(j > k, row - head * y, 0.0)
            a = tl.where(live, a - tl.where(i == k, head, c) * y, a)
            norm2 = _over_columns(tl.where(j1 >= block, r * r, -0.0))
            corner = _over_columns(tl.where(near, tl.where(after, r, 0.0), -0.0))
            gamma, inverse = reflector(norm2, corner, DOUBLE)
            tl.store(target + 2 * k, squared(beta, DOUBLE), mask=inside)
            tl.store(target + 2 * k + 1, squared(gamma, DOUBLE), mask=inside & (k + 1 < n))
            product = _over_columns(tl.where(live, a * r, -0.0))
            column = _over_columns(tl.where(live & near, tl.where(after, a, 0.0), -0.0))
            x = tl.where(i > k, (product - gamma * column) * inverse, 0.0)
            a = tl.where(live, a - x * tl.where(after, corner - gamma, r), a)
            c = tl.where(i > k, column - x * (corner - gamma), 0.0)
            k += 1


def reduce_in_registers(A: Tensor, squares: Tensor, unit: Tensor | None, first: int = 0) -> None:
    """Squares of the bidiagonal form of `A[:, first:, first:]`, `A [batch, m, n]` with any strides.

    At most 64 rows and columns may be left, no more columns than rows.

    Args:
        A: float32 or float64. Its entries must be of the order of 1, unless they are to be scaled.
        squares: `[batch, length]`, zero from 2 n on; `squares[:, 2 first : 2 n]` are written.
        unit: `[batch]`: the matrices are divided by a power of two, which is written here; `None`: they are not.
    """
    batch, m, n = A.shape
    tile = next(tile for tile in TILES[A.dtype] if tile.size >= max(m, n) - first)
    with on(A.device):
        bidiagonalise[(triton.cdiv(batch, tile.matrices),)](
            A, squares, squares if unit is None else unit, batch, m, n, *A.stride(), first, squares.shape[1],
            **tile.constants(), SCALE=unit is not None, **tile.launch.options(),
        )  # fmt: skip


def variants() -> Iterator[Variant]:
    for dtype, element in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        pointers = dict.fromkeys(("A", "squares", "unit"), "*" + element)
        integers = dict.fromkeys(
            ("batch", "rows", "columns", "stride_batch", "stride_row", "stride_column", "first", "length"), "i32"
        )
        for tile in TILES[dtype]:
            # the rest of a large matrix, after its leading steps, has the largest size that fits and was scaled before
            for scale in (True, False) if tile.size == IN_REGISTERS else (True,):
                name = f"bidiagonal_{element}_{tile.size}" + ("" if scale else "_rest")
                yield Variant(
                    name, bidiagonalise, pointers | integers, tile.constants() | {"SCALE": scale}, tile.launch
                )
