"""What the kernels share: a 16 x 16 matrix factorised inside one tile, and what is watched while pivots are eliminated.

Every elimination is an unpivoted `L D L^T` in panels of 16. A pivot that is exactly zero is replaced by a tiny number:
where anything depends on it the growth becomes huge or NaN, where nothing does the least row is zero, so it is
noticed either way.
"""

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(1e-300)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def indices16():
    """Row and column indices of a 16 x 16 tile, `[16, 16]` each."""
    i = tl.arange(0, 16)
    return i[:, None] + 0 * i[None, :], i[None, :] + 0 * i[:, None]


@triton.jit
def reciprocal(d):
    """`1 / d`, huge for a zero."""
    return 1.0 / tl.where(d == 0.0, TINY, d)


@triton.jit
def diagonal16(A):
    """The diagonal of a 16 x 16 tile, `[16]` along its rows."""
    ii, jj = indices16()
    return tl.sum(tl.where(ii == jj, A, 0.0), 1)


@triton.jit
def ldl16(A):
    """`A = L D L^T` for a symmetric 16 x 16 tile: above the diagonal `D L^T`, on it `D`, below it `L^-1`.

    The loop is static, so that a comparison with `k` costs nothing along the axis that lies in registers; the pivot's
    column is its row, by symmetry, so that nothing is exchanged but one reduction a pivot.
    """
    ii, jj = indices16()
    i = tl.arange(0, 16)
    for k in tl.static_range(16):
        row = tl.sum(tl.where(ii == k, A, 0.0), 0)
        d = tl.sum(tl.where(i == k, row, 0.0), 0)
        multiplier = tl.where(i > k, row * reciprocal(d), 0.0)
        A = tl.where((jj == k) & (ii > k), -multiplier[:, None], A - multiplier[:, None] * row[None, :])
    return A


@triton.jit
def inverse_factor16(B):
    """`L^-1` from what `ldl16` returns."""
    ii, jj = indices16()
    return tl.where(ii > jj, B, tl.where(ii == jj, 1.0, 0.0))


@triton.jit
def growth16(B, inverse):
    """The largest sum of absolute updates `u_k^2 / |d_k|` that a diagonal entry of the tile has received."""
    ii, jj = indices16()
    return largest(tl.sum(tl.where(jj > ii, tl.abs(B * B * inverse[:, None]), 0.0), 0))


@triton.jit
def magnitude16(B):
    """The largest magnitude of each row of `D L^T` inside the tile, `[16]`."""
    ii, jj = indices16()
    return tl.max(tl.where(jj >= ii, tl.abs(B), 0.0), 1)


@triton.jit
def largest(x):
    """The largest of `x` `[m]`; infinity where one is NaN, which `tl.max` would drop."""
    return tl.max(tl.where(x == x, x, INFINITY), 0)


@triton.jit
def product(a, b):
    return a * b


@triton.jit
def log_of_pivots16(d):
    """`sum log |d|` of 16 definite pivots by one logarithm: they lie between 1 and 1e15, their product below 1e240."""
    return tl.log(tl.reduce(tl.abs(d), 0, product))
