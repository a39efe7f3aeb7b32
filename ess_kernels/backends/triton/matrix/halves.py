"""Nodes of the staircase laid out for the next elimination, without a copy in between.

A node is known as what was kept of its parent minus the product that the elimination left, or, along the two edges of
the tree, straight from `T` and a Gram matrix. Its halves need `[E | V1 | V2]` and what they keep, six blocks of half
the size, and every block is written once, from where it lies. Of `R` and `C` only the lower triangle is read, and of
`K` too, where the rest belongs to no position: products need not compute it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Variant
from ..launches import Launch
from ..runtime import on

TILE = 32
LAUNCH = Launch(4)


@triton.jit
def _tile(h, SIZE: tl.constexpr, LEAF: tl.constexpr):
    """A program's item, block and the rows and columns of its tile; blocks are `E V1 V2`, then `R K C` as kept."""
    program = tl.program_id(0).to(tl.int64)
    across = tl.cdiv(h, SIZE)
    tile = (program % (across * across)).to(tl.int32)
    program = program // (across * across)
    if LEAF:
        item, block = program // 3, (program % 3).to(tl.int32) + 3
    else:
        item, block = program // 6, (program % 6).to(tl.int32)
    r = (tile // across) * SIZE + tl.arange(0, SIZE)
    c = (tile % across) * SIZE + tl.arange(0, SIZE)
    return item, block, r[:, None] + 0 * c[None, :], c[None, :] + 0 * r[:, None]


@triton.jit
def _entry(block, side, h, r, c):
    """The entry of a node that is `(r, c)` in a block of its half `side`: part (0 `R`, 1 `K`, 2 `C`), row, column."""
    is_E = block == 0
    is_V1 = block == 1
    is_V2 = block == 2
    is_kept = block >= 3
    left = side == 0
    # the left half eliminates the later rows: [E | V1 | V2] is R[h:, h:], R[h:, :h], K[h:, :h]
    left_part = tl.where(is_V2, 1, 0)
    left_below = 1
    left_right = tl.where(is_E, 1, 0)
    # the right half eliminates the earlier columns: [E | V1 | V2] is C[:h, :h], K[h:, :h]^T, C[:h, h:]
    right_part = tl.where(is_V1, 1, 2)
    right_below = tl.where(is_V1, 1, 0)
    right_right = tl.where(is_V2, 1, 0)
    # a half keeps its own quarter of R, K and C: the upper left one or the lower right one
    part = tl.where(is_kept, block - 3, tl.where(left, left_part, right_part))
    below = tl.where(is_kept, side, tl.where(left, left_below, right_below))
    right = tl.where(is_kept, side, tl.where(left, left_right, right_right))
    transposed = (side == 1) & is_V1
    i = tl.where(transposed, c, r) + below * h
    j = tl.where(transposed, r, c) + right * h
    return part, i, j


@triton.jit
def _store(M, NEXT, item, block, h, r, c, x, LEAF: tl.constexpr):
    inside = (r < h) & (c < h)
    kept = NEXT + ((item * 3 + block - 3) * h + r) * h + c
    if LEAF:
        tl.store(kept, x, mask=inside)
    else:
        tl.store(tl.where(block < 3, M + (item * h + r) * (3 * h) + block * h + c, kept), x, mask=inside)


@triton.jit
def _empty(part, DEFINITE: tl.constexpr):
    """The diagonal of a part where there is no token: 1 or -1 in `R`, 0 in `K`, -1 in `C`. Tokens add to it."""
    pivots = tl.where(part == 2, -1.0, 0.0) + tl.where(part == 0, 1.0 if DEFINITE else -1.0, 0.0)
    return pivots.to(tl.float64)


@triton.jit(do_not_specialize=["m"])
def children_kernel(
    KEPT, UPDATE, PARENT, SIDE, M, NEXT, m, h, DEFINITE: tl.constexpr, SIZE: tl.constexpr, LEAF: tl.constexpr
):
    """Every program writes a tile of a block, see `children`."""
    item, block, r, c = _tile(h, SIZE, LEAF)
    side = tl.load(SIDE + item).to(tl.int32)
    part, i, j = _entry(block, side, h, r, c)
    low, high = tl.maximum(i, j), tl.minimum(i, j)
    live = (low < m) & ((part != 1) | (i >= j)) & (r < h) & (c < h)
    at = ((tl.load(PARENT + item) * 3 + part) * m + low) * m + high
    x = tl.load(KEPT + at, mask=live, other=0.0) - tl.load(UPDATE + at, mask=live, other=0.0)
    x = tl.where((i == j) & (i >= m), _empty(part, DEFINITE), x)
    _store(M, NEXT, item, block, h, r, c, x, LEAF)


@triton.jit(do_not_specialize=["L", "first", "m"])
def edge_kernel(
    T,
    GRAM,
    HEAD,
    INVERSE,
    M,
    NEXT,
    L,
    first,
    m,
    h,
    LEFT: tl.constexpr,
    DEFINITE: tl.constexpr,
    SIZE: tl.constexpr,
    LEAF: tl.constexpr,
):
    """Every program writes a tile of a block, see `edge`."""
    item, block, r, c = _tile(h, SIZE, LEAF)
    # the first node's inner half is its right one
    side = block * 0 + (1 if LEFT and not LEAF else 0)
    part, i, j = _entry(block, side, h, r, c)
    head, inverse = tl.load(HEAD + item), tl.load(INVERSE + item)
    low, high = tl.maximum(i, j), tl.minimum(i, j)
    live = (low < m) & (r < h) & (c < h)
    t = tl.load(T + (head * L + first + i) * L + first + j, mask=live & (part == 1) & (i >= j), other=0.0)
    full = part == (2 if LEFT else 0)
    gram = tl.load(GRAM + (head * m + low) * m + high, mask=live & full, other=0.0) * (inverse * inverse)
    x = t * inverse + (-gram if LEFT and DEFINITE else gram)
    x = tl.where(i == j, x + _empty(part, DEFINITE), x)
    _store(M, NEXT, item, block, h, r, c, x, LEAF)


def _grid(M: Tensor | None, following: Tensor) -> tuple[int]:
    across = triton.cdiv(following.shape[-1], TILE)
    return (len(following) * (3 if M is None else 6) * across * across,)


def children(
    kept: Tensor, update: Tensor, parent: Tensor, side: Tensor, M: Tensor | None, following: Tensor, definite: bool
) -> None:
    """Halves of the nodes `kept - update`, or the nodes themselves.

    Args:
        kept, update: float64 `[N, 3, m, m]`, of which the lower triangles are read.
        parent: int64 `[B]`, the node that each result comes from.
        side: int64 `[B]`, 0 for its left half, 1 for its right half; zeros for nodes as a whole.
        M: receives `[E | V1 | V2]` `[B, h, 3h]`, `2h >= m`; `None` for nodes as a whole.
        following: receives what halves keep, or nodes as a whole, `[B, 3, h, h]`; 0 above the diagonal of `K`.
        definite: what the diagonal of `R` is where a node ends before `2h`, or before `h` as a whole: 1, or else -1.
    """
    with on(kept.device):
        children_kernel[_grid(M, following)](
            kept,
            update,
            parent,
            side,
            following if M is None else M,
            following,
            kept.shape[-1],
            following.shape[-1],
            DEFINITE=definite,
            SIZE=TILE,
            LEAF=M is None,
            **LAUNCH.options(),
        )


def children_twin(
    kept: Tensor, update: Tensor, parent: Tensor, side: Tensor, M: Tensor | None, following: Tensor, definite: bool
) -> None:
    """`children` in PyTorch."""
    nodes = (kept - update)[parent]
    lower = nodes.tril()
    nodes = lower + lower.tril(-1).mT
    nodes[:, 1] = lower[:, 1]
    _lay_out(nodes, side, M, following, definite)


def edge(
    T: Tensor,
    gram: Tensor,
    head: Tensor,
    inverse: Tensor,
    left: bool,
    M: Tensor | None,
    following: Tensor,
    definite: bool,
) -> None:
    """The inner half of the first or last node of a level, or that node itself.

    The first node's positions share no later rows with anything in them, so that its `R` is empty, the last node's `C`.

    Args:
        T: float64 `[N, L, L]`, lower triangular.
        gram: `[N, m, m]`, of which the lower triangle is read: what `C` (first node) or `R` (last node) have of it.
        head: int64 `[B]`.
        inverse: float64 `[B]`, `1 / shift`.
        left: the first node, positions `0..m-1`, else the last, `L-m..L-1`.
        M, following, definite: see `children`.
    """
    L, m = T.shape[-1], gram.shape[-1]
    with on(T.device):
        edge_kernel[_grid(M, following)](
            T,
            gram,
            head,
            inverse,
            following if M is None else M,
            following,
            L,
            0 if left else L - m,
            m,
            following.shape[-1],
            LEFT=left,
            DEFINITE=definite,
            SIZE=TILE,
            LEAF=M is None,
            **LAUNCH.options(),
        )


def edge_twin(
    T: Tensor,
    gram: Tensor,
    head: Tensor,
    inverse: Tensor,
    left: bool,
    M: Tensor | None,
    following: Tensor,
    definite: bool,
) -> None:
    """`edge` in PyTorch."""
    m = gram.shape[-1]
    first = 0 if left else T.shape[-1] - m
    sign = 1.0 if definite else -1.0
    inverse = inverse[:, None, None]
    gram = gram.tril()[head] * inverse.square()
    gram = gram + gram.tril(-1).mT
    one = torch.eye(m, dtype=T.dtype, device=T.device).expand_as(gram)
    R = sign * one if left else gram + sign * one
    C = -sign * gram - one if left else -one
    K = T[head, first : first + m, first : first + m].tril() * inverse
    _lay_out(torch.stack([R, K, C], 1), torch.full_like(head, int(left)), M, following, definite)


def _lay_out(nodes: Tensor, side: Tensor, M: Tensor | None, following: Tensor, definite: bool) -> None:
    """Whole nodes `[B, 3, m, m]` padded, and cut into their halves' blocks where `M` is given."""
    h, m = following.shape[-1], nodes.shape[-1]
    padding = (h if M is None else 2 * h) - m
    nodes = torch.nn.functional.pad(nodes, (0, padding, 0, padding))
    beyond = range(m, m + padding)
    nodes[:, 0, beyond, beyond] = 1.0 if definite else -1.0
    nodes[:, 2, beyond, beyond] = -1.0
    if M is None:
        following.copy_(nodes)
        return
    right = (side == 1)[:, None, None]
    R, K, C = nodes.unbind(1)
    M[..., :h] = torch.where(right, C[:, :h, :h], R[:, h:, h:])
    M[..., h : 2 * h] = torch.where(right, K[:, h:, :h].mT, R[:, h:, :h])
    M[..., 2 * h :] = torch.where(right, C[:, :h, h:], K[:, h:, :h])
    following.copy_(torch.where(right[:, None], nodes[..., h:, h:], nodes[..., :h, :h]))


def variants() -> Iterator[Variant]:
    numbers = dict.fromkeys(["m", "h", "L", "first"], "i32")
    pointers = dict.fromkeys(["KEPT", "UPDATE", "T", "GRAM", "INVERSE", "M", "NEXT"], "*fp64")
    arguments = numbers | pointers | dict.fromkeys(["PARENT", "SIDE", "HEAD"], "*i64")
    for leaf, definite in product((False, True), repeat=2):
        what = ("nodes " if leaf else "halves ") + ("log-determinants" if definite else "counts")
        constants = {"DEFINITE": definite, "SIZE": TILE, "LEAF": leaf}
        yield Variant(f"children {what}", children_kernel, arguments, constants, LAUNCH)
        for left in (True, False):
            which = "first" if left else "last"
            yield Variant(f"edge {which} {what}", edge_kernel, arguments, constants | {"LEFT": left}, LAUNCH)
