"""The first steps of a bidiagonalisation whose matrix is too large for registers.

The matrix stays in the program's own scratch memory (in L1 and L2), and is passed over twice a step in strips of rows:
the first pass applies the reflectors of the step before while it sums the products for the left one, the second sums
those for the right one. When what is left fits into registers, `bidiagonalise` takes over. The formulas of a step are
there.

Instructions an element of the shrinking matrix and a step (a lane's, estimated): 4 multiply-adds, 3 loads and stores,
under 1 for the reductions: 8, against 4 in registers. Blocks of delayed updates would save the store, but add products
with the block's own vectors: no fewer instructions.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Variant
from ..launches import Launch
from ..runtime import on
from .bidiagonal import reflector, squared

LAUNCH = Launch(8)
ROW_LANES, COLUMN_LANES = 2, 16
# elements of a strip in a lane's registers
ELEMENTS = 16
# vectors of scratch: two for the update that the next pass applies, two for the column (of even and of odd steps)
VECTORS = 4


@triton.jit
def _entry(vector, at):
    """The element of a vector along the columns where `at`, with all axes kept."""
    return tl.sum(tl.sum(tl.where(at, vector, 0.0), 0, keep_dims=True), 4, keep_dims=True)


@triton.jit(do_not_specialize=["n", "steps", "length"])
def leading_steps(
    A, vectors, squares, n, steps, length,
    I1: tl.constexpr, J1: tl.constexpr, W: tl.constexpr, I0: tl.constexpr, J0: tl.constexpr,
):  # fmt: skip
    """`steps` steps on every `A [batch, n, n]`, in place; their squares go to the front of `squares [batch, length]`.

    `vectors [batch, 4, n]` are zero but for the first column in row 2. A program reads what its other lanes wrote
    only after a barrier.
    """
    DOUBLE: tl.constexpr = A.dtype.element_ty == tl.float64
    j = tl.arange(0, J1)[:, None, None, None, None] * J0 + tl.arange(0, J0)[None, None, None, None, :]
    w = tl.arange(0, W)[None, None, :, None, None]
    strip = (tl.arange(0, I1)[None, :, None, None, None] * W + w) * I0 + tl.arange(0, I0)[None, None, None, :, None]
    STRIP: tl.constexpr = I1 * W * I0
    # loaded along one axis, for which Triton has only one layout: the last axes in lanes. All that follows inherits it
    flat = tl.arange(0, J1 * STRIP * J0)
    flat_row, flat_column = flat // J0 % STRIP, flat // (J0 * STRIP) * J0 + flat % J0
    matrix = tl.program_id(0).to(tl.int64)
    a_of = A + matrix * n * n
    v_of = vectors + matrix * (4 * n)
    x_of = v_of + n
    target = squares + matrix * length
    alone = tl.zeros([1, 1, 1, 1, 1], tl.int32)
    y = tl.zeros([J1, 1, 1, 1, J0], A.dtype.element_ty)
    u = y
    k = steps * 0
    while k < steps:
        c_of, next_of = v_of + (2 + k % 2) * n, v_of + (3 - k % 2) * n
        product = tl.zeros([J1, 1, W, I0, J0], A.dtype.element_ty)
        begin = k // STRIP * STRIP
        while begin < n:
            i = begin + strip
            rows = i < n
            place = a_of + (begin + flat_row) * n + flat_column
            tile = (begin + flat_row < n) & (flat_column >= k) & (flat_column < n)
            a = tl.reshape(tl.load(place, mask=tile, other=0.0), [J1, I1, W, I0, J0])
            a -= tl.load(v_of + i, mask=rows, other=0.0) * y + tl.load(x_of + i, mask=rows, other=0.0) * u
            # the load above and the store below may give one element to different lanes
            tl.debug_barrier()
            tl.store(place, tl.reshape(a, [J1 * STRIP * J0]), mask=tile)
            product += tl.sum(a * tl.load(c_of + i, mask=rows & (i >= k), other=0.0), 1, keep_dims=True)
            begin += STRIP
        product = tl.sum(tl.sum(product, 3, keep_dims=True), 2, keep_dims=True)
        tl.debug_barrier()
        row = tl.load(a_of + k * n + j, mask=(j >= k) & (j < n), other=0.0)
        here, after = j == k, j == k + 1
        diagonal = _entry(row, here)
        beta, inverse = reflector(_entry(product, here), diagonal, DOUBLE)
        head = diagonal - beta
        y = tl.where(j > k, (product - beta * row) * inverse, 0.0)
        r = tl.where(j > k, row - head * y, 0.0)
        first_r, first_y, y_r = _entry(r, after), _entry(y, after), _entry(y * r, j > k)
        gamma, inverse = reflector(_entry(r * r, j > k), first_r, DOUBLE)
        tl.store(target + 2 * k + alone, squared(beta, DOUBLE))
        tl.store(target + 2 * k + 1 + alone, squared(gamma, DOUBLE))
        u_first = first_r - gamma
        begin = (k + 1) // STRIP * STRIP
        while begin < n:
            i = begin + strip
            rows = (i >= k) & (i < n)
            place = a_of + (begin + flat_row) * n + flat_column
            tile = (begin + flat_row > k) & (begin + flat_row < n) & (flat_column > k) & (flat_column < n)
            a = tl.reshape(tl.load(place, mask=tile, other=0.0), [J1, I1, W, I0, J0])
            a_r = tl.sum(tl.sum(a * r, 0, keep_dims=True), 4, keep_dims=True)
            v = tl.where(i == k, head, tl.load(c_of + i, mask=rows, other=0.0))
            column = tl.load(a_of + i * n + k + 1, mask=(i > k) & (i < n), other=0.0) - v * first_y
            x = (a_r - v * y_r - gamma * column) * inverse
            tl.store(v_of + i, v, mask=rows)
            tl.store(x_of + i, x, mask=rows)
            tl.store(next_of + i, column - x * u_first, mask=(i > k) & (i < n))
            begin += STRIP
        u = tl.where(after, u_first, r)
        tl.debug_barrier()
        k += 1
    begin = steps // STRIP * STRIP
    while begin < n:
        i = begin + strip
        rows = i < n
        place = a_of + (begin + flat_row) * n + flat_column
        tile = (begin + flat_row < n) & (flat_column >= steps) & (flat_column < n)
        a = tl.reshape(tl.load(place, mask=tile, other=0.0), [J1, I1, W, I0, J0])
        a -= tl.load(v_of + i, mask=rows, other=0.0) * y + tl.load(x_of + i, mask=rows, other=0.0) * u
        tl.debug_barrier()
        tl.store(place, tl.reshape(a, [J1 * STRIP * J0]), mask=tile)
        begin += STRIP


def reduce_leading(A: Tensor, squares: Tensor, steps: int) -> None:
    """Takes `steps` steps on contiguous `A [batch, n, n]`, in place; their squares go into `squares [batch, length]`.

    Entries are at most of the order of 1. What is left to reduce is `A[:, steps:, steps:]`.
    """
    batch, n, _ = A.shape
    vectors = A.new_zeros(batch, VECTORS, n)
    vectors[:, 2] = A[:, :, 0]
    with on(A.device):
        leading_steps[(batch,)](
            A, vectors, squares, n, steps, squares.shape[1],
            **constants(n), **LAUNCH.options(),
        )  # fmt: skip


def constants(n: int) -> dict[str, int]:
    columns = triton.next_power_of_2(n) // COLUMN_LANES
    return {"I1": ELEMENTS // columns, "J1": columns, "W": LAUNCH.num_warps, "I0": ROW_LANES, "J0": COLUMN_LANES}


def variants() -> Iterator[Variant]:
    for element in ("fp32", "fp64"):
        pointers = dict.fromkeys(("A", "vectors", "squares"), "*" + element)
        integers = dict.fromkeys(("n", "steps", "length"), "i32")
        for n in (128, 256):
            yield Variant(f"leading_{element}_{n}", leading_steps, pointers | integers, constants(n), LAUNCH)
