"""Small matrices with a thread each: factors, solutions, growth and row magnitudes.

Every entry of a matrix is a tensor `[B]` over B matrices, so that a thread holds its own and nothing is exchanged,
masked or idle. Matrices are tuples of such entries, row by row, unrolled by loops over constants. Memory is taken two
neighbours at a time, in one instruction.
"""

# tuples that grow have no type that mypy knows
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from ..tiles import larger, reciprocal, smaller


@triton.jit
def loaded(pointer, rows: tl.constexpr, n: tl.constexpr, stride: tl.constexpr):
    """`rows x n` entries of a matrix whose rows are `stride` apart, row by row; `pointer` `[B]` to its first entry."""
    out = ()
    for i in tl.static_range(rows):
        for j in tl.static_range(0, n, 2):
            out = out + tl.split(tl.load(pointer[:, None] + (i * stride + j + tl.arange(0, 2))[None, :]))
    return out


@triton.jit
def store_pair(pointer, one, other, there):
    tl.store(pointer[:, None] + tl.arange(0, 2)[None, :], tl.join(one, other), mask=there[:, None])


@triton.jit
def block(A, i: tl.constexpr, j: tl.constexpr, m: tl.constexpr, h: tl.constexpr):
    """Rows `i..i+h-1` and columns `j..j+h-1` of a matrix with `m` columns, row by row as all are."""
    out = ()
    for r in tl.static_range(h):
        out = out + A[(i + r) * m + j : (i + r) * m + j + h]
    return out


@triton.jit
def dot(a, i: tl.constexpr, b, j: tl.constexpr, n: tl.constexpr):
    """`sum_k a[i + k] b[j + k]` over n entries."""
    x = a[i] * b[j]
    for k in tl.static_range(1, n):
        x = x + a[i + k] * b[j + k]
    return x


@triton.jit
def solved(L, v, first: tl.constexpr, stride: tl.constexpr, n: tl.constexpr):
    """`L^-1 v` for a unit lower triangle given by what its rows hold below the diagonal, one after the other.

    The n entries of the column `v` lie `stride` apart in the tuple, from `first` on.
    """
    u = ()
    for k in tl.static_range(n):
        x = v[first + k * stride]
        for l in tl.static_range(k):
            x = x - L[k * (k - 1) // 2 + l] * u[l]
        u = u + (x,)
    return u


@triton.jit
def scaled(u, inverse, n: tl.constexpr):
    """`D^-1 u`."""
    s = ()
    for k in tl.static_range(n):
        s = s + (u[k] * inverse[k],)
    return s


@triton.jit
def watched(growth, magnitude, u, s, n: tl.constexpr, DEFINITE: tl.constexpr):
    """Growth and row magnitudes after one more column `u = L^-1 v` of n entries, with `s = D^-1 u`."""
    if DEFINITE:
        return growth, magnitude
    else:
        if n > 0:
            updates = tl.abs(s[0] * u[0])
            for k in tl.static_range(1, n):
                updates = updates + tl.abs(s[k] * u[k])
            growth = larger(growth, updates)
        raised = ()
        for k in tl.static_range(n):
            raised = raised + (larger(magnitude[k], tl.abs(u[k])),)
        return growth, raised + magnitude[n:]


@triton.jit
def factored(E, worth, h: tl.constexpr, DEFINITE: tl.constexpr):
    """`E = L D L^T`, `E` `h x h` of which the upper triangle is read, column by column.

    Returns:
        L (see `solved`), `1 / D`, `worth` with these pivots, growth inside `E`, row magnitudes inside `E`.
    """
    L = ()
    inverse = ()
    magnitude = ()
    growth = tl.zeros(E[0].shape, tl.float64)
    for j in tl.static_range(h):
        u = solved(L, E, j, h, j)
        s = scaled(u, inverse, j)
        d = E[j * h + j]
        if j > 0:
            d = d - dot(s, 0, u, 0, j)
            growth, magnitude = watched(growth, magnitude, u, s, j, DEFINITE)
        L = L + s
        inverse = inverse + (reciprocal(d),)
        magnitude = magnitude + (tl.abs(d),)
        worth = counted(worth, d, DEFINITE)
    return L, inverse, worth, growth, magnitude


@triton.jit
def nothing(like, DEFINITE: tl.constexpr):
    """`worth` before the first pivot: 1 for a product, 0 for a number."""
    if DEFINITE:
        return tl.full(like.shape, 1.0, tl.float64)
    else:
        return tl.zeros(like.shape, tl.int32)


@triton.jit
def counted(worth, d, DEFINITE: tl.constexpr):
    """`worth` after one more pivot: the product of all magnitudes if `DEFINITE`, else the number of positive ones."""
    if DEFINITE:
        return worth * tl.abs(d)
    else:
        return worth + (d > 0.0).to(tl.int32)


@triton.jit
def valued(worth, DEFINITE: tl.constexpr):
    """What counted pivots are worth, float64: their number, or the logarithm of their product."""
    if DEFINITE:
        return tl.log(worth)
    else:
        return worth.to(tl.float64)


@triton.jit
def smallest(least, magnitude):
    """The smaller of `least` and the smallest row magnitude."""
    for k in tl.static_range(len(magnitude)):
        least = smaller(least, magnitude[k])
    return least
