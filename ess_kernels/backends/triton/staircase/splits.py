"""One level of the staircase by matrix tiles: nodes of 64 or 32 positions become nodes of 32 or 16.

A half of a node of `m = 2h` positions is eliminated by a program, in panels of 16 pivots. It is six blocks of `h x h`,
whichever half it is:

    `E`, the pivots; `V1` and `V2`, next to them; `R`, `K` and `C`, from which `[V1 V2]^T E^-1 [V1 V2]` is subtracted.

They are so chosen that three quarters of a node are read: `R` and `C` without their lower left quarters (they are
symmetric) and `K` without its upper right one (there rows are earlier than columns). The rest may be anything.
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
from ..tiles import (
    diagonal16,
    factor16,
    growth16,
    indices16,
    larger,
    largest,
    ldl16,
    least_row,
    log_of_pivots16,
    magnitude16,
    reciprocal,
    smaller,
    solve16,
    updates16,
)

# value, growth and least row of nodes or positions, float64
State = tuple[Tensor, Tensor, Tensor]
# the arguments for them: read or written one number at a time, so that their alignment makes no difference
STATE = ("VALUE", "GROWTH", "LEAST")
CHILD_STATE = ("CHILD_VALUE", "CHILD_GROWTH", "CHILD_LEAST")
# 16 pivots depend on each other, one after the other: with one warp a program no warp waits for another
LAUNCHES = {32: Launch(1), 64: Launch(1)}


@triton.jit
def half(side, m: tl.constexpr):
    """Where the blocks of a half begin in a node `[3, m, m]`: `side` 0 are the earlier positions, 1 the later ones.

    The earlier ones eliminate the later rows, the later ones the earlier columns. All rows are `m` apart.

    Returns:
        Offsets of `E`, of `V1` transposed, of `V2`, and of what is kept of `R` (of `K`, `C`: `m^2`, `2 m^2` further).
    """
    h: tl.constexpr = m // 2
    E = tl.where(side == 0, h * m + h, 2 * m * m)
    V1 = tl.where(side == 0, h, m * m + h * m)
    V2 = tl.where(side == 0, m * m + h * m, 2 * m * m + h)
    return E, V1, V2, side * (h * m + h)


@triton.jit
def workspace(CHILD, m: tl.constexpr):
    """Room in a child `[3, h, h]` for two tiles of factors and two of columns, where nothing has been written yet.

    A child of 32 has nothing below the diagonal of `R` and `C`: the factors stay there. The columns are where the upper
    half of `K` will be, which is written when all columns have been solved for. A child of 16 has its factor where `R`
    will be and its columns where `K` and `C` will be.

    Returns:
        Pointer to the first factor, offset of the second, pointer to the first tile of columns, offset of the second.
    """
    if m == 64:
        return CHILD + 16 * 32, 2 * 32 * 32, CHILD + 32 * 32, 16
    else:
        return CHILD, 0, CHILD + 256, 256


@triton.jit
def reciprocals16(CHILD, panels: tl.constexpr, m: tl.constexpr):
    """The reciprocals of the first `panels` panels' pivots, which lie on the diagonals of the factors.

    They are loaded wherever they are needed: with nodes of 64 there are not enough registers to keep them.
    """
    factor, apart, _, _ = workspace(CHILD, m)
    i = tl.arange(0, 16)
    r = ()
    for p in tl.static_range(panels):
        r = r + (tl.load(factor + p * apart + i * (m // 2 + 1)),)
    return r


@triton.jit
def below16(CHILD, p: tl.constexpr, m: tl.constexpr):
    """Room for 16 numbers below the diagonal of the factor of panel `p`, where nothing else is."""
    factor, apart, _, _ = workspace(CHILD, m)
    i = tl.arange(0, 16)
    return factor + p * apart + (15 - i // 8) * (m // 2) + i % 8


@triton.jit
def updated16(pointer, TRANSPOSED: tl.constexpr, W, U, p: tl.constexpr, m: tl.constexpr):
    """The tile in panel `p` of 16 columns of which the first tile begins at `pointer`, updated by the earlier panels.

    Args:
        W: the factor's tiles beside the diagonal, as `scaled16` gives them for the columns of `E`, one column after the
            other.
        U: what was solved for the earlier panels of these columns.
    """
    i, j = indices16()
    if TRANSPOSED:
        X = tl.load(pointer + p * 16 + j * m + i)
    else:
        X = tl.load(pointer + p * 16 * m + i * m + j)
    for l in tl.static_range(p):
        X = tl.dot(tl.trans(W[p * (p - 1) // 2 + l]), U[l], X, out_dtype=tl.float64)
    return X


@triton.jit
def solved16(pointer, CHILD, W, panels: tl.constexpr, m: tl.constexpr):
    """`U = L^-1 V` in the first `panels` panels, for 16 columns `V` of which the first tile begins at `pointer`.

    The panels' factors are in the `workspace` of `CHILD`; `W` as for `updated16`.
    """
    i, j = indices16()
    factor, apart, room, _ = workspace(CHILD, m)
    h: tl.constexpr = m // 2
    at = room + i * h + j
    c = tl.arange(0, 16)
    U = ()
    for p in tl.static_range(panels):
        tl.store(at, updated16(pointer, False, W, U, p, m))
        solve16(factor + p * apart, h, room + c, h, c >= 0)
        U = U + (tl.load(at),)
        # the next panel overwrites the room
        tl.debug_barrier()
    return U


@triton.jit
def solved32(
    ONE, ONE_TRANSPOSED: tl.constexpr, OTHER, OTHER_TRANSPOSED: tl.constexpr, CHILD, W,
    panels: tl.constexpr, m: tl.constexpr,
):  # fmt: skip
    """As `solved16` for two times 16 columns, from `ONE` and from `OTHER`: every thread of a warp then has a column."""
    i, j = indices16()
    factor, apart, room, across = workspace(CHILD, m)
    h: tl.constexpr = m // 2
    at = room + i * h + j
    c = tl.arange(0, 32)
    columns = room + c // 16 * across + c % 16
    U = ()
    V = ()
    for p in tl.static_range(panels):
        tl.store(at, updated16(ONE, ONE_TRANSPOSED, W, U, p, m))
        tl.store(at + across, updated16(OTHER, OTHER_TRANSPOSED, W, V, p, m))
        solve16(factor + p * apart, h, columns, h, c >= 0)
        U = U + (tl.load(at),)
        V = V + (tl.load(at + across),)
        # the next panel overwrites the room
        tl.debug_barrier()
    return U, V


@triton.jit
def scaled16(U, reciprocals, panels: tl.constexpr):
    """`-D^-1 U`: with its sign a product with it adds to what it updates."""
    W = ()
    for p in tl.static_range(panels):
        W = W + (-U[p] * reciprocals[p][:, None],)
    return W


@triton.jit
def nothing16(panels: tl.constexpr):
    """The largest magnitudes of rows before any of their columns has been looked at: zeros."""
    magnitude = ()
    for _ in tl.static_range(panels):
        magnitude = magnitude + (tl.zeros([16], tl.float64),)
    return magnitude


@triton.jit
def watched16(growth, magnitude, U, reciprocals, panels: tl.constexpr, DEFINITE: tl.constexpr):
    """Growth and largest magnitudes of rows after 16 more columns, whose tiles are `U`.

    The updates are computed from `U` alone: with nodes of 64 there are not enough registers for the scaled tiles too.
    """
    if DEFINITE:
        return growth, magnitude
    else:
        raised = ()
        if panels > 0:
            updates = tl.sum(U[0] * U[0] * tl.abs(reciprocals[0])[:, None], 0)
            for p in tl.static_range(1, panels):
                updates += tl.sum(U[p] * U[p] * tl.abs(reciprocals[p])[:, None], 0)
            growth = larger(growth, largest(updates))
            for p in tl.static_range(panels):
                raised = raised + (larger(magnitude[p], largest(U[p], 1)),)
        return growth, raised + magnitude[panels:]


@triton.jit
def store_tile(KEPT, CHILD, part: tl.constexpr, u, w, b: tl.constexpr, c: tl.constexpr, m: tl.constexpr):
    """The tile in row `b` and column `c` of a part (0 `R`, 1 `K`, 2 `C`) of a child: what is kept plus `U_b^T w`.

    Args:
        u: tiles of column `b` of `V1` (for `R` and `K`) or `V2` (for `C`).
        w: tiles of column `c` of `V1` (for `R`) or `V2` by `scaled16`.
    """
    h: tl.constexpr = m // 2
    T: tl.constexpr = m // 32
    i, j = indices16()
    X = tl.load(KEPT + part * m * m + b * 16 * m + c * 16 + i * m + j)
    for p in tl.static_range(T):
        X = tl.dot(tl.trans(u[p]), w[p], X, out_dtype=tl.float64)
    tl.store(CHILD + part * h * h + b * 16 * h + c * 16 + i * h + j, X)


@triton.jit
def parked(CHILD, k: tl.constexpr):
    """Where in a child of 32 tile `k` of `V1` is kept while `V2` is solved for: the free halves of `K` and `C`."""
    i, j = indices16()
    return CHILD + (1 + k // 2) * 1024 + (1 - k // 2) * 512 + k % 2 * 16 + i * 32 + j


@triton.jit(do_not_specialize_on_alignment=[*STATE, *CHILD_STATE])
def split_kernel(
    RKC, VALUE, GROWTH, LEAST, CHILD, CHILD_VALUE, CHILD_GROWTH, CHILD_LEAST, m: tl.constexpr, DEFINITE: tl.constexpr
):
    """One program for each half of a node; it takes 16 columns at a time, those of `E` first."""
    node = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1)
    h: tl.constexpr = m // 2
    T: tl.constexpr = m // 32
    E, V1, V2, kept = half(side, m)
    RKC += node * (3 * m * m)
    child = 2 * node + side
    CHILD += child * (3 * h * h)
    i, j = indices16()

    value = tl.load(VALUE + node)
    growth = value * 0.0
    inside = value * 0.0
    factor, apart, _, _ = workspace(CHILD, m)
    W = ()
    magnitude = ()
    for q in tl.static_range(T):
        u = solved16(RKC + E + q * 16, CHILD, W, q, m)
        reciprocals = reciprocals16(CHILD, q, m)
        w = scaled16(u, reciprocals, q)
        growth, magnitude = watched16(growth, magnitude, u, reciprocals, q, DEFINITE)
        A = tl.load(RKC + E + q * 16 * (m + 1) + i * m + j)
        for p in tl.static_range(q):
            A = tl.dot(tl.trans(w[p]), u[p], A, out_dtype=tl.float64)
        A = ldl16(A)
        d = diagonal16(A)
        r = reciprocal(d)
        tl.store(factor + q * apart + i * h + j, factor16(A, r))
        W = W + w
        if DEFINITE:
            value += log_of_pivots16(d)
        else:
            value += tl.sum((d > 0.0).to(tl.int32), 0).to(tl.float64)
            magnitude = magnitude + (magnitude16(A),)
            inside = larger(inside, largest(updates16(A, r)) if m == 64 else growth16(A, r))
    tl.store(CHILD_VALUE + child, value)
    if T == 2 and not DEFINITE:
        # there are not enough registers to keep the rows' magnitudes
        tl.debug_barrier()
        for p in tl.static_range(T):
            tl.store(below16(CHILD, p, m), magnitude[p])
        magnitude = nothing16(T)
    # an upper bound: the largest updates by earlier panels and by the own panel may be in different columns
    growth += inside

    if T == 1:
        U1, U2 = solved32(RKC + V1, True, RKC + V2, False, CHILD, W, T, m)
        reciprocals = reciprocals16(CHILD, T, m)
        # `R` overwrites the factor with the reciprocals
        tl.debug_barrier()
    else:
        one, other = solved32(RKC + V1, True, RKC + V1 + 16 * m, True, CHILD, W, T, m)
        U1 = one + other
        reciprocals = reciprocals16(CHILD, T, m)
    for c in tl.static_range(T):
        u = U1[c * T : c * T + T]
        growth, magnitude = watched16(growth, magnitude, u, reciprocals, T, DEFINITE)
        w = scaled16(u, reciprocals, T)
        for b in tl.static_range(c + 1):
            store_tile(RKC + kept, CHILD, 0, U1[b * T : b * T + T], w, b, c, m)
    if T == 2:
        # there are not enough registers for all columns at once
        for k in tl.static_range(4):
            tl.store(parked(CHILD, k), U1[k])
        if not DEFINITE:
            for p in tl.static_range(T):
                size = tl.load(below16(CHILD, p, m))
                tl.debug_barrier()
                tl.store(below16(CHILD, p, m), larger(size, magnitude[p]))
            magnitude = nothing16(T)
        one, other = solved32(RKC + V2, False, RKC + V2 + 16, False, CHILD, W, T, m)
        U2 = one + other
        reciprocals = reciprocals16(CHILD, T, m)
    for c in tl.static_range(T):
        growth, magnitude = watched16(growth, magnitude, U2[c * T : c * T + T], reciprocals, T, DEFINITE)

    if not DEFINITE:
        least = tl.load(LEAST + node)
        for p in tl.static_range(T):
            if T == 1:
                least = smaller(least, least_row(magnitude[p]))
            else:
                least = smaller(least, least_row(larger(tl.load(below16(CHILD, p, m)), magnitude[p])))
        tl.store(CHILD_GROWTH + child, tl.load(GROWTH + node) + growth)
        tl.store(CHILD_LEAST + child, least)

    for b in tl.static_range(T):
        if T == 1:
            u = U1
        else:
            u = (tl.load(parked(CHILD, 2 * b)), tl.load(parked(CHILD, 2 * b + 1)))
            # tiles that are stored later overwrite these places
            tl.debug_barrier()
        for c in tl.static_range(b + 1):
            store_tile(RKC + kept, CHILD, 1, u, scaled16(U2[c * T : c * T + T], reciprocals, T), b, c, m)
    for c in tl.static_range(T):
        w = scaled16(U2[c * T : c * T + T], reciprocals, T)
        for b in tl.static_range(c + 1):
            store_tile(RKC + kept, CHILD, 2, U2[b * T : b * T + T], w, b, c, m)


def split(rkc: Tensor, state: State, child: Tensor, child_state: State, definite: bool) -> None:
    """Halves nodes of 64 or 32.

    Args:
        rkc: `[J, 3, m, m]` float64 contiguous.
        state: value, growth and least row of the nodes, `[J]` float64 each.
        child: `[2J, 3, m / 2, m / 2]`, filled: the earlier positions of node p at 2p, the later ones at 2p + 1.
        child_state: `[2J]` each, filled.
        definite: log-determinants (`True`) or counts; without counts growth and least row are not touched.
    """
    m = rkc.shape[-1]
    split_kernel[(len(rkc), 2)](rkc, *state, child, *child_state, m=m, DEFINITE=definite, **LAUNCHES[m].options())


def variants() -> Iterator[Variant]:
    names = ("RKC", *STATE, "CHILD", *CHILD_STATE)
    for m, rule in LAUNCHES.items():
        for definite in (False, True):
            yield Variant(
                f"split{m} {'definite' if definite else 'counts'}",
                split_kernel,
                dict.fromkeys(names, "*fp64"),
                {"m": m, "DEFINITE": definite},
                rule,
            )
