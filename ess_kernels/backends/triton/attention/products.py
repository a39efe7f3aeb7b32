"""Thin products with attention's `H_i`: tiles of `T` are rebuilt, multiplied at once, and forgotten.

Rows and columns play symmetric parts: a product with `H` keeps a block of rows and runs over columns, one with `H^T`
keeps a block of columns and runs over rows. So every output is summed by one program, and no two programs add to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ....engine.thin_products import ThinProducts
from ....operators.attention import Attention
from .. import runtime
from ..compilation import Variant
from ..launches import Launch
from .logits import NO_MASK, Prepared, Rule, load_factors, locate, logits, mask_kinds, variant
from .softmax import RowSums, row_sums


@triton.jit
def product_kernel(
    Q,
    K,
    MASK,
    HEADS,
    OPTIONS,
    TOP,
    WEIGHT,
    POSITIONS,
    X,
    Y,
    positions,
    heads,
    key_heads,
    length,
    size,
    window,
    q_batch,
    q_head,
    q_step,
    k_batch,
    k_head,
    k_step,
    mask_batch,
    mask_head,
    mask_row,
    mask_column,
    TRANSPOSED: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    CHUNK: tl.constexpr,
    R: tl.constexpr,
):
    """Grid: heads x positions x blocks of tokens. Y = H_i X, or H_i^T X if TRANSPOSED; X, Y `[N, P, L, R]`.

    Of X only tokens before the position are read (from it on, if TRANSPOSED); at these tokens Y is zero.
    """
    blocks = tl.cdiv(length, OUTER)
    program = tl.program_id(0).to(tl.int64)
    pair = program // blocks
    start = program % blocks * OUTER
    n = pair // positions
    i = tl.load(POSITIONS + pair % positions)
    head = tl.load(HEADS + n)
    q, k, m = locate(Q, K, MASK, head, heads, key_heads, q_batch, q_head, k_batch, k_head, mask_batch, mask_head)
    scale, cap = load_factors(OPTIONS)
    outer = start + tl.arange(0, OUTER)
    r = tl.arange(0, R)
    y = tl.zeros([OUTER, R], tl.float64)
    if TRANSPOSED:
        # columns before i, and the rows that see them
        begin = i
        end = tl.where(start < i, tl.minimum(length, start + OUTER - 1 + window), i)
        live = outer < i
    else:
        # rows from i on, and the columns that they see
        begin = tl.maximum(start - window + 1, 0)
        end = tl.where(start + OUTER > i, i, 0)
        live = outer >= i
        top = tl.load(TOP + n * length + outer, mask=outer < length, other=0.0)[:, None]
        weight = tl.load(WEIGHT + n * length + outer, mask=outer < length, other=0.0)[:, None]
    at = begin // INNER * INNER
    while at < end:
        inner = at + tl.arange(0, INNER)
        z = logits(
            q, k, m, outer, inner, q_step, k_step, mask_row, mask_column, length, size, window, scale, cap,
            TRANSPOSED, CAPPED, MASKED, tl.float64, CHUNK,
        )  # fmt: skip
        if TRANSPOSED:
            wanted = (inner >= i) & (inner < length)
            top = tl.load(TOP + n * length + inner, mask=inner < length, other=0.0)[None, :]
            weight = tl.load(WEIGHT + n * length + inner, mask=inner < length, other=0.0)[None, :]
        else:
            wanted = inner < i
        t = tl.exp(z - top) * weight
        x = tl.load(X + (pair * length + inner)[:, None] * R + r[None, :], mask=wanted[:, None], other=0.0)
        y = tl.dot(t, x, y, out_dtype=tl.float64)
        at += INNER
    inside = (outer < length)[:, None] & (r < R)[None, :]
    tl.store(Y + (pair * length + outer)[:, None] * R + r[None, :], tl.where(live[:, None], y, 0.0), mask=inside)


def for_products(width: int, masked: int) -> Rule:
    """For products with `width` columns. Where registers would spill, a tile is spread over twice as many warps."""
    return Rule(64, 32, 16, Launch(4 if width <= 64 and masked == NO_MASK else 8))


def widths(masked: int) -> tuple[int, ...]:
    """The numbers of columns that one program can multiply with."""
    return (16, 32, 64, 128) if masked == NO_MASK else (16, 32, 64)


def thin_product(
    op: Attention | Prepared,
    heads: Tensor,
    positions: Tensor,
    X: Tensor,
    transposed: bool,
    sums: RowSums | None = None,
) -> Tensor:
    """`H_i X`, or `H_i^T X` if transposed, at several positions of some heads; `T` is never stored.

    Args:
        heads, positions: int64 `[N]` and `[P]`.
        X: float64 `[N, P, L, r]` in token coordinates: tokens `< i` are read (`>= i` if transposed), the others
            ignored.
        sums: what `row_sums` gave for these heads, if it is at hand.

    Returns:
        float64 `[N, P, L, r]`, zero for tokens `< i` (`>= i` if transposed).
    """
    given = Prepared.of(op)
    sums = row_sums(given, heads) if sums is None else sums
    r, most = X.shape[-1], widths(given.constants["MASKED"])[-1]
    if r > most:
        pieces = X.split(most, -1)
        return torch.cat([thin_product(given, heads, positions, x, transposed, sums) for x in pieces], -1)
    width = max(16, triton.next_power_of_2(r))
    X = pad(X, (0, width - r)).contiguous()
    Y = torch.empty_like(X)
    rule = for_products(width, given.constants["MASKED"])
    programs = len(heads) * len(positions) * triton.cdiv(given.op.length, rule.outer)
    if programs:
        with runtime.on(heads.device):
            product_kernel[(programs,)](
                *given.tensors, heads.contiguous(), given.options, *sums, positions.contiguous(), X, Y,
                len(positions), *given.sizes, *given.steps,
                TRANSPOSED=transposed, OUTER=rule.outer, INNER=rule.inner, CHUNK=rule.chunk, R=width,
                **given.constants, **rule.launch.options(),
            )  # fmt: skip
    return Y[..., :r]


class AttentionProducts(ThinProducts):
    """Products with `H_i` of some heads by `thin_product`; the twin of `engine.thin_products.Bands`."""

    def __init__(self, op: Attention, heads: Tensor):
        self.given, self.heads = Prepared(op), heads
        self.sums = row_sums(self.given, heads)

    def __call__(self, positions: Tensor, X: Tensor, transposed: bool) -> Tensor:
        return thin_product(self.given, self.heads, positions, X, transposed, self.sums)


def variants() -> Iterator[Variant]:
    for suffix, types, constants in mask_kinds():
        for width in widths(constants["MASKED"]):
            rule = for_products(width, constants["MASKED"])
            blocks = {"R": width, "OUTER": rule.outer, "INNER": rule.inner, "CHUNK": rule.chunk}
            for transposed in (False, True):
                name = f"attention product {width}{' transposed' * transposed}{suffix}"
                yield variant(name, product_kernel, types, constants | blocks | {"TRANSPOSED": transposed}, rule)
