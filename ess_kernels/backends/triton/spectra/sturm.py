"""Singular values of bidiagonal matrices by counting: how many exceed x, for many x at once.

The eigenvalues of the `2n x 2n` tridiagonal matrix with zero diagonal and off-diagonal `b = d_1, e_1, d_2, ..., d_n`
are the singular values and their negatives (Golub-Kahan). Its leading minors at x, `p_k = x p_{k-1} - b_{k-1}^2
p_{k-2}`, change sign once for every eigenvalue above x; a rounding error in a step is a relative change of `x` or `b^2`
in that step only, so counts are right for values changed by a few ulp. Without a division a step takes a multiplication
and a multiply-add, and two integer instructions to count; the minors are rescaled by powers of two every few steps.

Each lane looks for values of its own. A value has a bracket, which is halved until it holds no other value, then cut by
secants through the last minor, which is the characteristic polynomial. Halving leaves half of the floating-point
numbers in a bracket, not half of its length, so that small values are found as fast as large ones; a value below the
rounding errors of the largest one is not looked for any closer.

Instructions, counted in the machine code for sm_90: a step takes 7 in float64 (two of them float64 ones, which take two
issue slots) and 9 in float32 (rescaled every second step), one of them a load that the values of a lane share; the rest
of a sweep 60 or so. For n = 64 (128 steps) some 26 sweeps in float64, 21 in float32 (random and graded matrices; 58 and
27 where values coincide) make 57 and 43 thousand issue slots of a warp a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Variant
from ..launches import Launch
from ..runtime import on
from .bidiagonal import power_of_two

LANES = 32
LAUNCH = Launch(1)
# values of a lane: several chains of operations that do not wait for each other, and fewer loads for each value
VALUES = {torch.float32: 4, torch.float64: 2}
# a smaller x cannot be told from zero
LEAST = {torch.float32: 2.0**-27, torch.float64: 2.0**-60}
UNROLLED = tl.constexpr(8)


@triton.jit
def _exponent_bits(x, DOUBLE: tl.constexpr):
    """The exponent field in its place; int32, the upper half of a float64."""
    if DOUBLE:
        return (x.to(tl.int64, bitcast=True) >> 32).to(tl.int32) & 0x7FF00000
    else:
        return x.to(tl.int32, bitcast=True) & 0x7F800000


@triton.jit
def _signs_differ(p, q, DOUBLE: tl.constexpr):
    if DOUBLE:
        both = p.to(tl.int64, bitcast=True) ^ q.to(tl.int64, bitcast=True)
        return ((both >> 63) & 1).to(tl.int32)
    else:
        return ((p.to(tl.int32, bitcast=True) ^ q.to(tl.int32, bitcast=True)) >> 31) & 1


@triton.jit
def _between(low, high, DOUBLE: tl.constexpr):
    """Halves the numbers that lie between: the mean inside a binade, a geometric mean across many."""
    if DOUBLE:
        first = low.to(tl.int64, bitcast=True)
        return (first + ((high.to(tl.int64, bitcast=True) - first) >> 1)).to(tl.float64, bitcast=True)
    else:
        first = low.to(tl.int32, bitcast=True)
        return (first + ((high.to(tl.int32, bitcast=True) - first) >> 1)).to(tl.float32, bitcast=True)


@triton.jit
def _sweep(squares, x, steps, DOUBLE: tl.constexpr):
    """How many values exceed each `x`, and the last minor as a number and a power of two (plus a constant).

    Args:
        squares: pointers to the squares of each matrix, `[1, L]`.
        x: `[V, L]`, positive.
        steps: a multiple of 8; squares beyond the matrix are zero and change no sign.
    """
    EVERY: tl.constexpr = 8 if DOUBLE else 2
    TWICE_BIAS: tl.constexpr = 0x7FE00000 if DOUBLE else 0x7F000000
    FIELD: tl.constexpr = 20 if DOUBLE else 23
    q = x * 0.0 + 1.0
    p = x
    count = (x * 0.0).to(tl.int32)
    power = count
    k = steps * 0
    while k < steps:
        for s in tl.static_range(UNROLLED):
            following = x * p - tl.load(squares + k + s) * q
            q = p
            p = following
            count += _signs_differ(p, q, DOUBLE)
            if s % EVERY == EVERY - 1:
                largest = tl.maximum(_exponent_bits(p, DOUBLE), _exponent_bits(q, DOUBLE))
                if DOUBLE:
                    factor = ((TWICE_BIAS - largest).to(tl.int64) << 32).to(tl.float64, bitcast=True)
                else:
                    factor = (TWICE_BIAS - largest).to(tl.float32, bitcast=True)
                p *= factor
                q *= factor
                power += largest >> FIELD
        k += UNROLLED
    return count, p, power


@triton.jit
def _bound(squares, steps, DOUBLE: tl.constexpr):
    """Something above the largest singular value, at most three times it, `[1, L]`."""
    before = tl.load(squares)
    widest = before
    total = before
    k = steps * 0 + 1
    while k < steps:
        b2 = tl.load(squares + k)
        widest = tl.maximum(widest, before + b2)
        total += b2
        before = b2
        k += 1
    # a row of the tridiagonal matrix has two entries: their sum is at most the root of twice the sum of squares
    return 1.001 * tl.sqrt(tl.minimum(2.0 * widest, total))


@triton.jit(do_not_specialize=["batch", "n", "length", "lanes_each"])
def values_by_bisection(squares, unit, values, batch, n, length, lanes_each, V: tl.constexpr, L: tl.constexpr):
    """All singular values, descending: `values [batch, n]` from `squares [batch, length]` in units of `unit [batch]`.

    `lanes_each = ceil(n / V)` neighbouring lanes share a matrix, so no lane is idle for n that is no power of two.
    """
    DOUBLE: tl.constexpr = squares.dtype.element_ty == tl.float64
    EPS: tl.constexpr = 2.0**-52 if DOUBLE else 2.0**-23
    lane = tl.program_id(0).to(tl.int64) * L + tl.arange(0, L)[None, :]
    matrix = lane // lanes_each
    index = (lane % lanes_each).to(tl.int32) + lanes_each * tl.arange(0, V)[:, None]
    wanted = (matrix < batch) & (index < n)
    matrix = tl.minimum(matrix, batch - 1)
    source = squares + matrix * length
    top = _bound(source, length, DOUBLE)
    tolerance = 2 * EPS * top
    low = 0.0 * top + tl.zeros([V, L], top.dtype)
    high = low + top
    minor_low, minor_high = low, low
    above_low = n + tl.zeros([V, L], tl.int32)
    above_high = above_low * 0
    power_low, power_high = above_high, above_high
    # the first sweep tells which values are zero to within the tolerance
    middle = low + tolerance
    secant, start = middle, high
    alone, slow, open = above_high > 0, above_high > 0, wanted
    while tl.max(tl.max(open.to(tl.int32), 0), 0) > 0:
        width = high - low
        start = tl.where(alone, start, width)
        # a little beyond the secant's point, towards the farther end: so both ends of the bracket move
        step = tl.maximum(4.0 * width * (width / start), 0.45 * tolerance)
        centre = low + 0.5 * width
        side = tl.where(secant < centre, 1.0, -1.0).to(width.dtype)
        x = secant + side * tl.minimum(step, tl.abs(centre - secant))
        x = tl.where(alone & ~slow, x, middle)
        count, minor, power = _sweep(source, x, length, DOUBLE)
        below, above = open & (count > index), open & (count <= index)
        low, high = tl.where(below, x, low), tl.where(above, x, high)
        above_low, above_high = tl.where(below, count, above_low), tl.where(above, count, above_high)
        minor_low, minor_high = tl.where(below, minor, minor_low), tl.where(above, minor, minor_high)
        power_low, power_high = tl.where(below, power, power_low), tl.where(above, power, power_high)
        # where a secant left more than half of the bracket, halving is next
        slow = (high - low > 0.5 * width) & ~slow
        # one value inside, and the polynomial known at both ends
        alone = (above_low - above_high == 1) & (minor_low != 0.0) & (minor_high != 0.0)
        ratio = tl.abs(minor_high / tl.where(minor_low == 0.0, 1.0, minor_low))
        apart = tl.minimum(tl.maximum(power_high - power_low, -100), 100)
        secant = low + (high - low) / (1.0 + ratio * power_of_two(apart + (1023 if DOUBLE else 127), DOUBLE))
        middle = _between(low, high, DOUBLE)
        open = wanted & (high - low > tolerance) & (low < middle) & (middle < high)
    found = tl.where(alone, secant, low + 0.5 * (high - low)) * tl.load(unit + matrix)
    tl.store(values + matrix * n + index, found, mask=wanted)


@triton.jit(do_not_specialize=["each", "total", "length"])
def counts_of_bidiagonal(squares, x, counts, each, total, length, L: tl.constexpr):
    """`counts [batch, each]` of the values above `x [batch, each]`, both flat and `total` long, by one sweep each."""
    DOUBLE: tl.constexpr = squares.dtype.element_ty == tl.float64
    lane = tl.program_id(0).to(tl.int64) * L + tl.arange(0, L)[None, :]
    inside = lane < total
    source = squares + (tl.minimum(lane, total - 1) // each) * length
    count, _minor, _power = _sweep(source, tl.load(x + lane, mask=inside, other=1.0), length, DOUBLE)
    tl.store(counts + lane, count.to(tl.int64), mask=inside)


def padded_length(n: int) -> int:
    """How many squares a matrix has in memory, the zeros at the end included."""
    return triton.cdiv(2 * n, UNROLLED.value) * UNROLLED.value


def values_of_squares(squares: Tensor, unit: Tensor, n: int) -> Tensor:
    """Singular values `[batch, n]`, descending, of bidiagonal matrices in units of `unit [batch]`.

    Args:
        squares: `[batch, padded_length(n)]`: squares of diagonal and off-diagonal in turn, positive, then zeros.
    """
    batch, length = squares.shape
    values = squares.new_empty(batch, n)
    each = VALUES[squares.dtype]
    lanes_each = triton.cdiv(n, each)
    with on(squares.device):
        values_by_bisection[(triton.cdiv(batch * lanes_each, LANES),)](
            squares, unit, values, batch, n, length, lanes_each, V=each, L=LANES, **LAUNCH.options()
        )
    # values were found independently of each other: neighbours that are equal to a few ulp may be out of order
    return values.cummin(1).values


def counts_of_squares(squares: Tensor, unit: Tensor, n: int, tau: Tensor) -> Tensor:
    """How many singular values exceed each `tau [M]`: int64 `[batch, M]`; `squares`, `unit`, `n` as above."""
    batch, length = squares.shape
    counts = torch.empty(batch, len(tau), dtype=torch.int64, device=squares.device)
    # smaller tolerances than LEAST are lost in what `squared` adds to zeros; no value is as large as 1024 units
    x = (tau.to(squares) / unit[:, None]).nan_to_num(1024.0).clamp(LEAST[squares.dtype], 1024.0)
    with on(squares.device):
        counts_of_bidiagonal[(triton.cdiv(counts.numel(), LANES),)](
            squares, x, counts, len(tau), counts.numel(), length, L=LANES, **LAUNCH.options()
        )
    return counts.masked_fill(unit[:, None] == 0, 0)


def variants() -> Iterator[Variant]:
    for dtype, element in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        pointers = dict.fromkeys(("squares", "unit", "values", "x"), "*" + element) | {"counts": "*i64"}
        integers = dict.fromkeys(("batch", "n", "length", "lanes_each", "total", "each"), "i32")
        constants = {"V": VALUES[dtype], "L": LANES}
        yield Variant(f"sturm_values_{element}", values_by_bisection, pointers | integers, constants, LAUNCH)
        yield Variant(f"sturm_counts_{element}", counts_of_bidiagonal, pointers | integers, {"L": LANES}, LAUNCH)
