"""What the kernels share: factorising a 16 x 16 tile, and two numbers that show whether an elimination lost accuracy.

Every elimination is an unpivoted `L D L^T` in panels of 16. The kernels watch its growth (the sum of absolute updates
of a diagonal entry) and its least row (the smallest of the rows' largest magnitudes). A pivot that is exactly zero is
replaced by a tiny number, and noticed in any case: if an entry depends on it the growth becomes huge or NaN, and if
none does the least row is zero. `tl.max` and `tl.maximum` ignore NaN. Growth and least row therefore go through
`larger`, `smaller`, `largest` and `least_row`, which do not.

The columns right of a tile are solved for by substitution (`solve16`), never by a product with `L^-1`. The inverse can
be huge where neither `L` nor `L^-1 V` is; such a product would lose digits, and the growth would not show that.
"""

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(1e-300)
INFINITY = tl.constexpr(float("inf"))
ULP = tl.constexpr(2.0**-52)


@triton.jit
def indices16():
    """Row and column indices of a 16 x 16 tile, `[16, 16]` each."""
    i = tl.arange(0, 16)
    return i[:, None] + 0 * i[None, :], i[None, :] + 0 * i[:, None]


@triton.jit
def reciprocal(d):
    """`1 / d`; a huge number if `d` is zero."""
    return 1.0 / tl.where(d == 0.0, TINY, d)


@triton.jit
def diagonal16(A):
    """The diagonal of a 16 x 16 tile, `[16]` along its rows."""
    ii, jj = indices16()
    return tl.sum(tl.where(ii == jj, A, 0.0), 1)


@triton.jit
def ldl16(A):
    """`A = L D L^T` for a symmetric 16 x 16 tile: above the diagonal `D L^T`, on it `D`, below it nothing of use.

    The loop is unrolled, so that comparing an index with `k` costs nothing along the axis that lies in registers. By
    symmetry the pivot's column equals its row, so that one reduction for each pivot is all that lanes exchange.
    """
    ii, _ = indices16()
    i = tl.arange(0, 16)
    for k in tl.static_range(16):
        row = tl.sum(tl.where(ii == k, A, 0.0), 0)
        d = tl.sum(tl.where(i == k, row, 0.0), 0)
        multiplier = tl.where(i > k, row * reciprocal(d), 0.0)
        A -= multiplier[:, None] * row[None, :]
    return A


@triton.jit
def factor16(B, inverse):
    """What `solve16` reads, from what `ldl16` returns and the pivots' reciprocals, which take the pivots' places."""
    ii, jj = indices16()
    return tl.where(ii == jj, inverse[:, None], B)


@triton.jit
def solve16(FACTOR, ld, V, step, live, inner: tl.constexpr = 1):
    """`V <- L^-1 V` in memory, by substitution. Each column belongs to one thread, which keeps it in registers.

    There is a barrier at the beginning and one at the end: the caller may have stored `FACTOR` and `V` just before, and
    may load `V` just after.

    Args:
        FACTOR: a pointer to what `factor16` returns, rows `ld` apart.
        V: `[w]` pointers to the first row, the other 15 rows `step` apart.
        live: bool `[w]`, the columns that exist.
        inner: how far apart the numbers of a row of `FACTOR` are. With pointers to last numbers and negative distances
            the system is solved from its last row on.
    """
    for first in range(0, 16, 8):
        # rows that the caller stored, or that the first half of this loop stored, may come from other lanes
        tl.debug_barrier()
        v = ()
        for i in tl.static_range(8):
            v = v + (tl.load(V + (first + i) * step, mask=live, other=0.0),)  # type: ignore[assignment]
        for k in range(first):
            row = FACTOR + k * ld
            scaled = tl.load(V + k * step, mask=live, other=0.0) * tl.load(row + k * inner)
            rest = ()
            for i in tl.static_range(8):
                rest = rest + (v[i] - tl.load(row + (first + i) * inner) * scaled,)  # type: ignore[assignment]
            v = rest
        for k in tl.static_range(7):
            row = FACTOR + (first + k) * ld + first * inner
            scaled = v[k] * tl.load(row + k * inner)
            rest = v[: k + 1]  # type: ignore[assignment]
            for i in tl.static_range(k + 1, 8):
                rest = rest + (v[i] - tl.load(row + i * inner) * scaled,)  # type: ignore[assignment]
            v = rest
        # where several lanes hold the same column, all of them must have loaded it before one of them stores
        tl.debug_barrier()
        for i in tl.static_range(8):
            tl.store(V + (first + i) * step, v[i], mask=live)
    tl.debug_barrier()


@triton.jit
def growth16(B, inverse):
    """The largest sum of absolute updates `u_k^2 / |d_k|` that a diagonal entry of the tile has received."""
    return largest(updates16(B, inverse))


@triton.jit
def updates16(B, inverse):
    """The sum of absolute updates `u_k^2 / |d_k|` that each diagonal entry of the tile has received, `[16]`."""
    ii, jj = indices16()
    return tl.sum(tl.where(jj > ii, tl.abs(B * B * inverse[:, None]), 0.0), 0)


@triton.jit
def magnitude16(B):
    """The largest magnitude of each row of `D L^T` inside the tile, `[16]`."""
    ii, jj = indices16()
    return largest(tl.where(jj >= ii, B, 0.0), 1)


@triton.jit
def larger(a, b):
    """The larger of two numbers; NaN if one of them is NaN."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def smaller(a, b):
    """The smaller of two numbers; NaN if one of them is NaN."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def largest(x, axis: tl.constexpr = 0):
    """The largest magnitude along an axis; NaN if one is NaN.

    Magnitudes are compared by their bits, as integers: the order is the same, and NaN comes last.
    """
    bits = tl.abs(x).to(tl.int64, bitcast=True)
    return tl.max(bits, axis).to(tl.float64, bitcast=True)


@triton.jit
def least_row(magnitudes):
    """The smallest of `[m]` magnitudes; zero if one of them is NaN. A least row of zero is never trusted."""
    return tl.min(tl.where(magnitudes == magnitudes, magnitudes, 0.0), 0)


@triton.jit
def product(a, b):
    return a * b


@triton.jit
def log_of_pivots16(d):
    """`sum log |d|` of 16 definite pivots by one logarithm: each is from 1 to 1e15, their product below 1e240."""
    return tl.log(tl.reduce(tl.abs(d), 0, product))
