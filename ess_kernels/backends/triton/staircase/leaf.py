"""The last levels of the staircase with a thread a node: from 16 positions to 8, and from 8 to single ones.

A half of a node is what it is in `splits`; a node's matrices lie one after the other in memory, so that a thread reads
whole sectors, two numbers at a time. From 16 to 8 a half is more than the registers of a thread hold. Therefore threads
of their own factorise `E` again for `R`, for `C`, for each half of `K`, and for value, growth and least row. Of a node
of 8 only the entries that are read again are written.
"""

# tuples that grow have no type that mypy knows
# mypy: disable-error-code="assignment"

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Variant
from ..launches import Launch
from ..tiles import INFINITY, smaller
from .lanes import (
    block,
    counted,
    dot,
    factored,
    loaded,
    nothing,
    scaled,
    smallest,
    solved,
    store_pair,
    valued,
    watched,
)
from .splits import CHILD_STATE, STATE, State, half

# nodes of a program: one for each thread
NODES = 32
LAUNCH = Launch(1)
NODE_STATE = ("NODE_VALUE", "NODE_GROWTH", "NODE_LEAST")
# the places of the symmetric matrices in a node
SYMMETRIC_PARTS = {"R": 0, "C": 2}


@triton.jit
def eliminated(E, V1, V2, worth, growth, least, h: tl.constexpr, DEFINITE: tl.constexpr):
    """Eliminates `E` next to `[V1 V2]`; `V1` is given transposed, that is column by column.

    Returns:
        `U = L^-1 V` and `D^-1 U` for `V1` and for `V2`, column by column; worth, growth and least row so far.
    """
    L, inverse, worth, updates, magnitude = factored(E, worth, h, DEFINITE)
    U1 = ()
    S1 = ()
    U2 = ()
    S2 = ()
    for i in tl.static_range(h):
        u = solved(L, V1, i * h, 1, h)
        s = scaled(u, inverse, h)
        updates, magnitude = watched(updates, magnitude, u, s, h, DEFINITE)
        U1 = U1 + u
        S1 = S1 + s
    for i in tl.static_range(h):
        u = solved(L, V2, i, h, h)
        s = scaled(u, inverse, h)
        updates, magnitude = watched(updates, magnitude, u, s, h, DEFINITE)
        U2 = U2 + u
        S2 = S2 + s
    return U1, S1, U2, S2, worth, growth + updates, smallest(least, magnitude)


@triton.jit
def subtracted(A, S, U, h: tl.constexpr, SYMMETRIC: tl.constexpr):
    """`A - S^T U` for `A` `h x h`, `S` and `U` column by column."""
    out = ()
    for i in tl.static_range(h):
        for j in tl.static_range(h):
            if SYMMETRIC and j < i:
                out = out + (out[j * h + i],)
            else:
                out = out + (A[i * h + j] - dot(S, i * h, U, j * h, h),)
    return out


@triton.jit
def descend_in_registers(
    VALUE, GROWTH, LEAST, R, K, C, value, worth, growth, least, at, left, m: tl.constexpr, DEFINITE: tl.constexpr
):
    """Writes the m positions of a node that a thread holds, the first at `at`; `left` of them exist."""
    if m == 1:
        there = left > 0
        value += valued(counted(worth, R[0], DEFINITE), DEFINITE)
        tl.store(VALUE + at, value, mask=there)
        if not DEFINITE:
            # a NaN in anything that the position depends on has also reached its last pivot, which is checked here
            known = (R[0] == R[0]) & (growth == growth)
            tl.store(GROWTH + at, tl.where(known, growth, INFINITY), mask=there)
            tl.store(LEAST + at, smaller(least, tl.abs(R[0])), mask=there)
    else:
        h: tl.constexpr = m // 2
        for side in tl.static_range(2):
            if side == 0:
                E, V1, V2 = block(R, h, h, m, h), block(R, 0, h, m, h), block(K, h, 0, m, h)
            else:
                E, V1, V2 = block(C, 0, 0, m, h), block(K, h, 0, m, h), block(C, 0, h, m, h)
            U1, S1, U2, S2, w, g, l = eliminated(E, V1, V2, worth, growth, least, h, DEFINITE)
            descend_in_registers(
                VALUE,
                GROWTH,
                LEAST,
                subtracted(block(R, side * h, side * h, m, h), S1, U1, h, True),
                subtracted(block(K, side * h, side * h, m, h), S1, U2, h, False),
                subtracted(block(C, side * h, side * h, m, h), S2, U2, h, True),
                value,
                w,
                g,
                l,
                at + side * h,
                left - side * h,
                h,
                DEFINITE,
            )


@triton.jit
def store_row(kept, child, s, U, first: tl.constexpr, last: tl.constexpr, there):
    """Columns `first..last-1` of a row of `kept - S^T U`; `s` is the row's column of S."""
    A = loaded(kept + first, 1, last - first, 16)
    for j in tl.static_range(first, last, 2):
        one = A[j - first] - dot(s, 0, U, j * 8, 8)
        other = A[j - first + 1] - dot(s, 0, U, j * 8 + 8, 8)
        store_pair(child + j, one, other, there)


@triton.jit(do_not_specialize=["J"])
def split16_symmetric_kernel(RKC, CHILD, J, PART: tl.constexpr, B: tl.constexpr):
    """`R` (`PART` 0) or `C` (2) of the halves of nodes of 16, above the diagonal."""
    t = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    side = tl.program_id(1)
    E, V1, V2, kept = half(side, 16)
    node = RKC + tl.minimum(t, J - 1) * 768
    # only the factor is used here, which is the same for counts and log-determinants
    L, inverse, _, _, _ = factored(loaded(node + E, 8, 8, 16), tl.zeros([B], tl.float64), 8, True)
    U = ()
    if PART == 0:
        V = loaded(node + V1, 8, 8, 16)
        for i in tl.static_range(8):
            U = U + solved(L, V, i * 8, 1, 8)
    else:
        V = loaded(node + V2, 8, 8, 16)
        for i in tl.static_range(8):
            U = U + solved(L, V, i, 8, 8)
    kept += node + PART * 256
    child = CHILD + (2 * t + side) * 192 + PART * 64
    for i in tl.static_range(8):
        s = scaled(U[i * 8 : i * 8 + 8], inverse, 8)
        store_row(kept + i * 16, child + i * 8, s, U, i // 2 * 2, 8, t < J)


@triton.jit(do_not_specialize=["J"])
def split16_kernel(RKC, CHILD, J, B: tl.constexpr):
    """`K` of the halves of nodes of 16; each program does four columns."""
    t = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    side = tl.program_id(1)
    column = tl.program_id(2) * 4
    E, V1, V2, kept = half(side, 16)
    node = RKC + tl.minimum(t, J - 1) * 768
    L, inverse, _, _, _ = factored(loaded(node + E, 8, 8, 16), tl.zeros([B], tl.float64), 8, True)
    V = loaded(node + V2 + column, 8, 4, 16)
    S = ()
    for j in tl.static_range(4):
        S = S + scaled(solved(L, V, j, 4, 8), inverse, 8)
    kept += node + 256 + column
    child = CHILD + (2 * t + side) * 192 + 64 + column
    for i in tl.static_range(8):
        u = solved(L, loaded(node + V1 + i * 16, 1, 8, 16), 0, 1, 8)
        store_row(kept + i * 16, child + i * 8, u, S, 0, 4, t < J)


@triton.jit(do_not_specialize=["J"], do_not_specialize_on_alignment=[*STATE, *CHILD_STATE])
def watch16_kernel(
    RKC, VALUE, GROWTH, LEAST, CHILD_VALUE, CHILD_GROWTH, CHILD_LEAST, J, DEFINITE: tl.constexpr, B: tl.constexpr
):
    """The value of the pivots that halves of nodes of 16 eliminate; for counts also growth and least row."""
    t = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    side = tl.program_id(1)
    there = t < J
    E, V1, V2, _ = half(side, 16)
    index = tl.minimum(t, J - 1)
    node = RKC + index * 768
    child = 2 * t + side
    value = tl.load(VALUE + index)
    L, inverse, worth, growth, magnitude = factored(loaded(node + E, 8, 8, 16), nothing(value, DEFINITE), 8, DEFINITE)
    tl.store(CHILD_VALUE + child, value + valued(worth, DEFINITE), mask=there)
    if not DEFINITE:
        for i in tl.static_range(8):
            u = solved(L, loaded(node + V1 + i * 16, 1, 8, 16), 0, 1, 8)
            growth, magnitude = watched(growth, magnitude, u, scaled(u, inverse, 8), 8, DEFINITE)
        for j in tl.static_range(0, 8, 2):
            V = loaded(node + V2 + j, 8, 2, 16)
            for k in tl.static_range(2):
                u = solved(L, V, k, 2, 8)
                growth, magnitude = watched(growth, magnitude, u, scaled(u, inverse, 8), 8, DEFINITE)
        tl.store(CHILD_GROWTH + child, tl.load(GROWTH + index) + growth, mask=there)
        tl.store(CHILD_LEAST + child, smallest(tl.load(LEAST + index), magnitude), mask=there)


@triton.jit(do_not_specialize=["J", "LEVELS"], do_not_specialize_on_alignment=[*NODE_STATE, *STATE, "PLACE", "LIMIT"])
def leaf8_kernel(
    RKC, NODE_VALUE, NODE_GROWTH, NODE_LEAST, PLACE, LIMIT, VALUE, GROWTH, LEAST, J, LEVELS,
    DEFINITE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The positions of nodes of 8, which lie `LEVELS` levels below their roots: `2^LEVELS` nodes a root."""
    t = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    side = tl.program_id(1)
    E, V1, V2, kept = half(side, 8)
    index = tl.minimum(t, J - 1)
    node = RKC + index * 192
    value = tl.load(NODE_VALUE + index)
    if DEFINITE:
        growth, least = value, value
    else:
        growth, least = tl.load(NODE_GROWTH + index), tl.load(NODE_LEAST + index)
    U1, S1, U2, S2, worth, growth, least = eliminated(
        loaded(node + E, 4, 4, 8),
        loaded(node + V1, 4, 4, 8),
        loaded(node + V2, 4, 4, 8),
        nothing(value, DEFINITE),
        growth,
        least,
        4,
        DEFINITE,
    )
    root = index >> LEVELS
    start = (index - (root << LEVELS)) * 8 + side * 4
    descend_in_registers(
        VALUE,
        GROWTH,
        LEAST,
        subtracted(loaded(node + kept, 4, 4, 8), S1, U1, 4, True),
        subtracted(loaded(node + kept + 64, 4, 4, 8), S1, U2, 4, False),
        subtracted(loaded(node + kept + 128, 4, 4, 8), S2, U2, 4, True),
        value,
        worth,
        growth,
        least,
        tl.load(PLACE + root) + start,
        tl.where(t < J, tl.load(LIMIT + root) - start, 0),
        4,
        DEFINITE,
    )


def split16(rkc: Tensor, state: State, child: Tensor, child_state: State, definite: bool) -> None:
    """Halves nodes of 16; arguments as those of `splits.split`."""
    J = len(rkc)
    blocks = triton.cdiv(J, NODES)
    settings = {"B": NODES} | LAUNCH.options()
    for part in SYMMETRIC_PARTS.values():
        split16_symmetric_kernel[(blocks, 2)](rkc, child, J, PART=part, **settings)
    split16_kernel[(blocks, 2, 2)](rkc, child, J, **settings)
    watch16_kernel[(blocks, 2)](rkc, *state, *child_state, J, DEFINITE=definite, **settings)


def finish8(
    rkc: Tensor, state: State, place: Tensor, limit: Tensor, levels: int, answer: State, definite: bool
) -> None:
    """Writes the positions of nodes of 8.

    Args:
        rkc, state: the nodes, as in `splits.split`.
        place, limit: `[J / 2^levels]` int64 of the roots, of which each has `2^levels` nodes in a row.
        answer: flat value, growth and least row.
    """
    J = len(rkc)
    leaf8_kernel[(triton.cdiv(J, NODES), 2)](
        rkc, *state, place, limit, *answer, J, levels, DEFINITE=definite, B=NODES, **LAUNCH.options()
    )


def variants() -> Iterator[Variant]:
    shared = {"RKC": "*fp64", "CHILD": "*fp64", "J": "i32"}
    for name, part in SYMMETRIC_PARTS.items():
        yield Variant(f"split16 {name}", split16_symmetric_kernel, shared, {"PART": part, "B": NODES}, LAUNCH)
    yield Variant("split16 K", split16_kernel, shared, {"B": NODES}, LAUNCH)
    arguments = shared | dict.fromkeys((*STATE, *CHILD_STATE, *NODE_STATE), "*fp64")
    arguments |= {"PLACE": "*i64", "LIMIT": "*i64", "LEVELS": "i32"}
    for definite in (False, True):
        what = "definite" if definite else "counts"
        constants = {"DEFINITE": definite, "B": NODES}
        yield Variant(f"watch16 {what}", watch16_kernel, arguments, constants, LAUNCH)
        yield Variant(f"leaf8 {what}", leaf8_kernel, arguments, constants, LAUNCH)
