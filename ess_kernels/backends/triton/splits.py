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

from .compilation import Variant
from .launches import Launch
from .tiles import (
    diagonal16,
    factor16,
    growth16,
    indices16,
    inverse_factor16,
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
# 16 pivots one after the other are fastest where nobody waits for anybody
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
def solved16(pointer, TRANSPOSED: tl.constexpr, L, inverse, W, panels: tl.constexpr, m: tl.constexpr):
    """`U = L^-1 V` in the first `panels` panels, for 16 columns `V` of which the first tile begins at `pointer`.

    Args:
        L, inverse: the diagonal tiles of `L` and their inverses.
        W: the other tiles of the factor, as `scaled16` gives them for the columns of `E`, one column after the other.
    """
    i, j = indices16()
    U = ()
    for p in tl.static_range(panels):
        if TRANSPOSED:
            X = tl.load(pointer + p * 16 + j * m + i)
        else:
            X = tl.load(pointer + p * 16 * m + i * m + j)
        for l in tl.static_range(p):
            X = tl.dot(tl.trans(W[p * (p - 1) // 2 + l]), U[l], X, out_dtype=tl.float64)
        if m == 64:
            # one product: the second one's operands take 44 registers that nodes of 64 do not have. What is lost where
            # the inverse is large is not in the growth
            U = U + (tl.dot(inverse[p], X, out_dtype=tl.float64),)
        else:
            U = U + (solve16(L[p], inverse[p], X),)
    return U


@triton.jit
def scaled16(U, reciprocals, panels: tl.constexpr):
    """`-D^-1 U`: with its sign a product with it adds to what it updates."""
    W = ()
    for p in tl.static_range(panels):
        W = W + (-U[p] * reciprocals[p][:, None],)
    return W


@triton.jit
def watched16(growth, magnitude, U, size, panels: tl.constexpr, DEFINITE: tl.constexpr):
    """Takes note of the tiles of 16 columns: the updates of their diagonal entries, the sizes of the rows.

    The updates are computed from `U` and `size`, which is `1 / |D|`: their products with the scaled tiles, which are
    there too, take registers that the nodes of 64 do not have.
    """
    if DEFINITE:
        return growth, magnitude
    else:
        raised = ()
        if panels > 0:
            updates = tl.sum(U[0] * U[0] * size[0][:, None], 0)
            for p in tl.static_range(1, panels):
                updates += tl.sum(U[p] * U[p] * size[p][:, None], 0)
            growth = larger(growth, largest(updates))
            for p in tl.static_range(panels):
                raised = raised + (larger(magnitude[p], largest(U[p], 1)),)
        return growth, raised + magnitude[panels:]


@triton.jit
def store_tile(KEPT, CHILD, U, w, b: tl.constexpr, c: tl.constexpr, m: tl.constexpr):
    """The tile of a child in row `b` and column `c >= b` of `[V1 V2]^T [V1 V2]`, which is part of R, K or C.

    Args:
        U: tiles of the columns so far, one column after the other.
        w: tiles of column `c` by `scaled16`.
    """
    h: tl.constexpr = m // 2
    T: tl.constexpr = m // 32
    part: tl.constexpr = (b >= T) + (c >= T)
    row: tl.constexpr = b % T
    column: tl.constexpr = c % T
    if part != 1 or row >= column:
        i, j = indices16()
        X = tl.load(KEPT + part * m * m + row * 16 * m + column * 16 + i * m + j)
        for p in tl.static_range(T):
            X = tl.dot(tl.trans(U[b * T + p]), w[p], X, out_dtype=tl.float64)
        tl.store(CHILD + part * h * h + row * 16 * h + column * 16 + i * h + j, X)


@triton.jit(do_not_specialize_on_alignment=[*STATE, *CHILD_STATE])
def split_kernel(
    RKC, VALUE, GROWTH, LEAST, CHILD, CHILD_VALUE, CHILD_GROWTH, CHILD_LEAST, m: tl.constexpr, DEFINITE: tl.constexpr
):
    """A program is half a node; its columns are taken 16 at a time, those of `E` first."""
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
    L = ()
    W = ()
    inverse = ()
    reciprocals = ()
    size = ()
    magnitude = ()
    for q in tl.static_range(T):
        u = solved16(RKC + E + q * 16, False, L, inverse, W, q, m)
        w = scaled16(u, reciprocals, q)
        growth, magnitude = watched16(growth, magnitude, u, size, q, DEFINITE)
        A = tl.load(RKC + E + q * 16 * (m + 1) + i * m + j)
        for p in tl.static_range(q):
            A = tl.dot(tl.trans(w[p]), u[p], A, out_dtype=tl.float64)
        A = ldl16(A)
        d = diagonal16(A)
        r = reciprocal(d)
        L = L + (factor16(A, r),)
        inverse = inverse + (inverse_factor16(A),)
        W = W + w
        reciprocals = reciprocals + (r,)
        size = size + (tl.abs(r),)
        if DEFINITE:
            value += log_of_pivots16(d)
        else:
            value += tl.sum((d > 0.0).to(tl.int32), 0).to(tl.float64)
            magnitude = magnitude + (magnitude16(A),)
            inside = larger(inside, largest(updates16(A, r)) if m == 64 else growth16(A, r))
    # a bound: the columns with the largest updates from earlier panels and from their own may not be the same
    growth += inside

    U = ()
    for c in tl.static_range(2 * T):
        if c < T:
            u = solved16(RKC + V1 + c * 16 * m, True, L, inverse, W, T, m)
        else:
            u = solved16(RKC + V2 + (c - T) * 16, False, L, inverse, W, T, m)
        w = scaled16(u, reciprocals, T)
        growth, magnitude = watched16(growth, magnitude, u, size, T, DEFINITE)
        U = U + u
        for b in tl.static_range(c + 1):
            store_tile(RKC + kept, CHILD, U, w, b, c, m)

    tl.store(CHILD_VALUE + child, value)
    if not DEFINITE:
        least = tl.load(LEAST + node)
        for p in tl.static_range(T):
            least = smaller(least, least_row(magnitude[p]))
        tl.store(CHILD_GROWTH + child, tl.load(GROWTH + node) + growth)
        tl.store(CHILD_LEAST + child, least)


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
