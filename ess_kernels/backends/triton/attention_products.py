"""Thin products with attention's `H_i`: tiles of `T` are rebuilt, multiplied at once, and forgotten.

Rows and columns play symmetric parts: a product with `H` keeps a block of rows and runs over columns, one with `H^T`
keeps a block of columns and runs over rows, so that every output has one program and no two ever add to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ...engine.thin_products import ThinProducts
from ...operators.attention import Attention
from . import runtime
from .attention import RowSums, row_sums
from .compilation import Variant
from .launches import Launch
from .logits import NO_MASK, Prepared, Rule, load_factors, locate, logits, mask_kinds, variant

Precision = Literal["float64", "float32"]

# with scores in float32, what part of the norm of H is not trusted in any case
FLOAT32_FLOOR = 1e-5


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
    groups,
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
    TYPE: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    CHUNK: tl.constexpr,
    R: tl.constexpr,
):
    """Grid: heads x positions x blocks of tokens. Y = H_i X, or H_i^T X if TRANSPOSED; X, Y `[N, P, L, R]`.

    Of X only the tokens on the right side of the position are read; Y is zero on its other side.
    """
    blocks = tl.cdiv(length, OUTER)
    program = tl.program_id(0).to(tl.int64)
    pair = program // blocks
    start = program % blocks * OUTER
    n = pair // positions
    i = tl.load(POSITIONS + pair % positions)
    head = tl.load(HEADS + n)
    q, k, m = locate(Q, K, MASK, head, heads, groups, q_batch, q_head, k_batch, k_head, mask_batch, mask_head)
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
            TRANSPOSED, CAPPED, MASKED, TYPE, CHUNK,
        )  # fmt: skip
        if TRANSPOSED:
            wanted = (inner >= i) & (inner < length)
            top = tl.load(TOP + n * length + inner, mask=inner < length, other=0.0)[None, :]
            weight = tl.load(WEIGHT + n * length + inner, mask=inner < length, other=0.0)[None, :]
        else:
            wanted = inner < i
        t = tl.exp((z - top).to(TYPE)).to(tl.float64) * weight
        x = tl.load(X + (pair * length + inner)[:, None] * R + r[None, :], mask=wanted[:, None], other=0.0)
        y = tl.dot(t, x, y, out_dtype=tl.float64)
        at += INNER
    inside = (outer < length)[:, None] & (r < R)[None, :]
    tl.store(Y + (pair * length + outer)[:, None] * R + r[None, :], tl.where(live[:, None], y, 0.0), mask=inside)


def for_products(width: int, masked: int) -> Rule:
    """For products with `width` columns; where registers would spill, twice as many warps hold a tile."""
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
    precision: Precision = "float64",
) -> Tensor:
    """`H_i X`, or `H_i^T X` if transposed, at several positions of some heads; `T` is never stored.

    Args:
        heads, positions: int64 `[N]` and `[P]`.
        X: float64 `[N, P, L, r]` in token coordinates: tokens `< i` are read (`>= i` if transposed), the others
            ignored.
        sums: what `row_sums` gave for these heads, if it is at hand.
        precision: of scores and exponentials; sums are float64 always. With `"float32"` entries of `T` are right to
            a few float32 ulp of the largest score.

    Returns:
        float64 `[N, P, L, r]`, zero for tokens `< i` (`>= i` if transposed).
    """
    given = Prepared.of(op)
    sums = row_sums(given, heads) if sums is None else sums
    r, most = X.shape[-1], widths(given.constants["MASKED"])[-1]
    if r > most:
        parts = X.split(most, -1)
        return torch.cat([thin_product(given, heads, positions, x, transposed, sums, precision) for x in parts], -1)
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
                TRANSPOSED=transposed, TYPE=tl.float64 if precision == "float64" else tl.float32,
                OUTER=rule.outer, INNER=rule.inner, CHUNK=rule.chunk, R=width,
                **given.constants, **rule.launch.options(),
            )  # fmt: skip
    return Y[..., :r]


class AttentionProducts(ThinProducts):
    """Products with `H_i` of some heads by `thin_product`; the twin of `engine.thin_products.Bands`.

    Args:
        precision: `"float32"` is for queries and keys that are no wider.
    """

    def __init__(self, op: Attention, heads: Tensor, precision: Precision = "float64"):
        if precision == "float32" and torch.float64 in (op.q.dtype, op.k.dtype):
            raise ValueError("precision: expected 'float64' for queries or keys in float64, got 'float32'")
        self.given, self.heads, self.precision = Prepared(op), heads, precision
        self.sums = row_sums(self.given, heads)
        self.relative = torch.zeros(len(heads), dtype=torch.float64, device=heads.device)
        if precision == "float32":
            batch, head = op.unravel(heads)
            q, k, _ = self.given.tensors
            q, k = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).amax(-1) for x in (q, k))
            score = abs(op.scale) * q[batch, head] * k[batch, op._kv_head(head)]
            # rounding errors of a dot product; entries of T are positive, so that theirs bound that of the norm
            rounding = 4 * op.q.shape[-1] ** 0.5 * torch.finfo(torch.float32).eps
            self.relative = (rounding * score).clamp_min(FLOAT32_FLOOR)

    def __call__(self, positions: Tensor, X: Tensor, transposed: bool) -> Tensor:
        return thin_product(self.given, self.heads, positions, X, transposed, self.sums, self.precision)


def variants() -> Iterator[Variant]:
    for suffix, types, constants in mask_kinds():
        for width in widths(constants["MASKED"]):
            rule = for_products(width, constants["MASKED"])
            blocks = {"R": width, "OUTER": rule.outer, "INNER": rule.inner, "CHUNK": rule.chunk}
            # scores in float32 are for operands that are no wider
            for type_ in (tl.float64, tl.float32):
                for transposed in (False, True):
                    narrow = types if type_ == tl.float64 else types | {"Q": "*fp32", "K": "*fp32"}
                    name = f"attention product {width}{' transposed' * transposed}, {type_.name} scores{suffix}"
                    chosen = constants | blocks | {"TRANSPOSED": transposed, "TYPE": type_}
                    yield variant(name, product_kernel, narrow, chosen, rule)
