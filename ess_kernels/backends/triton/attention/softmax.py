"""Causal softmax attention: the row sums that turn logits into entries of `T`, and `T` itself written out.

One pass over the logits leaves two numbers a row, the largest logit and the reciprocal of the row's sum. With them any
tile is `T = exp(logit - top) * weight` on its own, in float64 from operands upcast when they are loaded. (One number,
`top` plus the logarithm of the sum, would not do: where a mask adds a huge finite number to a whole row, the logarithm
would be rounded away.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....operators.attention import Attention
from .. import runtime
from ..compilation import Variant
from ..launches import Launch
from .logits import ADDITIVE, NO_MASK, Prepared, Rule, load_factors, locate, logits, mask_kinds, variant


@triton.jit
def row_sums_kernel(
    Q,
    K,
    MASK,
    SINKS,
    HEADS,
    OPTIONS,
    TOP,
    WEIGHT,
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
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    SINKING: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: heads x blocks of rows. TOP, WEIGHT `[N, L]`: a row's largest logit, 1 / its sum of exp(logit - top)."""
    blocks = tl.cdiv(length, ROWS)
    n = tl.program_id(0).to(tl.int64) // blocks
    first_row = tl.program_id(0).to(tl.int64) % blocks * ROWS
    head = tl.load(HEADS + n)
    q, k, m = locate(Q, K, MASK, head, heads, key_heads, q_batch, q_head, k_batch, k_head, mask_batch, mask_head)
    scale, cap = load_factors(OPTIONS)
    row = first_row + tl.arange(0, ROWS)
    if SINKING:
        sink = tl.load(SINKS + head % heads)
        top = tl.zeros([ROWS], tl.float64) + sink
        total = tl.zeros([ROWS], tl.float64) + 1.0
    else:
        top = tl.zeros([ROWS], tl.float64) + float("-inf")
        total = tl.zeros([ROWS], tl.float64)
    stop = tl.minimum(first_row + ROWS, length)
    column = tl.maximum(first_row - window + 1, 0) // COLUMNS * COLUMNS
    while column < stop:
        j = column + tl.arange(0, COLUMNS)
        z = logits(
            q, k, m, row, j, q_step, k_step, mask_row, mask_column, length, size, window, scale, cap,
            False, CAPPED, MASKED, tl.float64, CHUNK,
        )  # fmt: skip
        larger = tl.maximum(top, tl.max(z, 1))
        # of a row that has seen nothing yet the largest logit is -inf: -inf - -inf would be NaN, exp(-inf - 0) is 0
        safe = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(z - safe[:, None]), 1)
        top = larger
        column += COLUMNS
    live = row < length
    tl.store(TOP + n * length + row, tl.where(top == float("-inf"), 0.0, top), mask=live)
    tl.store(
        WEIGHT + n * length + row, tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total)), mask=live
    )


@triton.jit
def tiles_kernel(
    Q,
    K,
    MASK,
    HEADS,
    OPTIONS,
    TOP,
    WEIGHT,
    T,
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
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: heads x blocks of rows x blocks of columns. T `[N, L, L]`, zero above the diagonal."""
    down, across = tl.cdiv(length, ROWS), tl.cdiv(length, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    n = program // (down * across)
    row = program // across % down * ROWS + tl.arange(0, ROWS)
    column = program % across * COLUMNS + tl.arange(0, COLUMNS)
    weights = tl.zeros([ROWS, COLUMNS], tl.float64)
    first_column, last_row = program % across * COLUMNS, program // across % down * ROWS + ROWS - 1
    first_row, last_column = last_row - ROWS + 1, first_column + COLUMNS - 1
    if (first_column <= last_row) & (last_column > first_row - window):
        head = tl.load(HEADS + n)
        q, k, m = locate(Q, K, MASK, head, heads, key_heads, q_batch, q_head, k_batch, k_head, mask_batch, mask_head)
        scale, cap = load_factors(OPTIONS)
        z = logits(
            q, k, m, row, column, q_step, k_step, mask_row, mask_column, length, size, window, scale, cap,
            False, CAPPED, MASKED, tl.float64, CHUNK,
        )  # fmt: skip
        top = tl.load(TOP + n * length + row, mask=row < length, other=0.0)
        weight = tl.load(WEIGHT + n * length + row, mask=row < length, other=0.0)
        weights = tl.exp(z - top[:, None]) * weight[:, None]
    inside = (row < length)[:, None] & (column < length)[None, :]
    tl.store(T + n * length * length + row[:, None] * length + column[None, :], weights, mask=inside)


class RowSums(NamedTuple):
    """What makes a tile of `T` out of logits: `T = exp(logit - top) * weight`, float64 `[N, L]` each.

    `top` is the row's largest logit or its sink, `weight` the reciprocal of its sum of `exp(logit - top)`. Both are 0
    for a row that sees nothing.
    """

    top: Tensor
    weight: Tensor

    @property
    def log_sum_exp(self) -> Tensor:
        """The logarithm of each row's sum, `[N, L]`; infinity for a row that sees nothing (`exp(logit - inf) = 0`)."""
        return torch.where(self.weight > 0, self.top - self.weight.log(), torch.inf)


def for_whole_tiles(masked: int) -> Rule:
    """The rule for row sums and for tiles that are written out. With a mask, wider tiles would spill registers."""
    return Rule(64, 64, 16, Launch(4)) if masked == NO_MASK else Rule(64, 32, 16, Launch(8))


def row_sums(op: Attention | Prepared, heads: Tensor) -> RowSums:
    """The largest logit and the reciprocal sum of every row of some heads.

    Args:
        op: on a device that kernels can take.
        heads: int64 `[N]`, as everywhere in `Operator`.
    """
    given = Prepared.of(op)
    length = given.op.length
    top, weight = torch.empty(2, len(heads), length, dtype=torch.float64, device=heads.device)
    rule = for_whole_tiles(given.constants["MASKED"])
    programs = len(heads) * triton.cdiv(length, rule.outer)
    if programs:
        with runtime.on(heads.device):
            row_sums_kernel[(programs,)](
                *given.tensors, given.sinks, heads.contiguous(), given.options, top, weight, *given.sizes, *given.steps,
                SINKING=given.op.sinks is not None, ROWS=rule.outer, COLUMNS=rule.inner, CHUNK=rule.chunk,
                **given.constants, **rule.launch.options(),
            )  # fmt: skip
    return RowSums(top, weight)


def tiles(op: Attention | Prepared, heads: Tensor, sums: RowSums | None = None) -> Tensor:
    """`T` of some heads written out, float64 `[N, L, L]`, zero above the diagonal: `op.rows(heads, 0, L)`.

    `sums` is what `row_sums` gave for these heads, if it is at hand.
    """
    given = Prepared.of(op)
    sums = row_sums(given, heads) if sums is None else sums
    length = given.op.length
    T = torch.empty(len(heads), length, length, dtype=torch.float64, device=heads.device)
    rule = for_whole_tiles(given.constants["MASKED"])
    programs = len(heads) * triton.cdiv(length, rule.outer) * triton.cdiv(length, rule.inner)
    if programs:
        with runtime.on(heads.device):
            tiles_kernel[(programs,)](
                *given.tensors, heads.contiguous(), given.options, *sums, T, *given.sizes, *given.steps,
                ROWS=rule.outer, COLUMNS=rule.inner, CHUNK=rule.chunk,
                **given.constants, **rule.launch.options(),
            )  # fmt: skip
    return T


def variants() -> Iterator[Variant]:
    for suffix, types, constants in mask_kinds():
        rule = for_whole_tiles(constants["MASKED"])
        whole = constants | {"ROWS": rule.outer, "COLUMNS": rule.inner, "CHUNK": rule.chunk}
        sinking = {"SINKING": constants["MASKED"] == ADDITIVE}
        yield variant(f"attention row sums{suffix}", row_sums_kernel, types, whole | sinking, rule)
        yield variant(f"attention tiles{suffix}", tiles_kernel, types, whole, rule)
