"""Causal softmax attention without its matrix: tiles of `T` rebuilt from queries and keys wherever they are needed.

One pass over the logits leaves two numbers a row, the largest logit and the reciprocal of the row's sum. With them any
tile is `T = exp(logit - top) * weight` on its own, in float64 from operands upcast when they are loaded. (One number,
the logarithm of the sum, would lose what a mask of huge finite numbers leaves of a row.) A tile is either written out
or multiplied at once with a thin matrix and forgotten.

Rows and columns play symmetric parts: a product with `H` keeps a block of rows and runs over columns, one with `H^T`
keeps a block of columns and runs over rows, so that every output has one program and no two ever add to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ...engine.thin_products import ThinProducts
from ...operators.attention import Attention
from . import runtime
from .compilation import Variant

Precision = Literal["float64", "float32"]

# masks, as constants of a kernel
NO_MASK, KEEP, ADDITIVE = 0, 1, 2
# with scores in float32, what part of the norm of H is not trusted in any case
FLOAT32_FLOOR = 1e-5


@triton.jit
def upcast(x, TYPE: tl.constexpr):
    """To float32 or float64; bfloat16 by way of float32, which holds all of it."""
    return x.to(tl.float32).to(TYPE) if x.dtype.primitive_bitwidth < 32 else x.to(TYPE)


@triton.jit
def load_factors(OPTIONS):
    """The scale of the scores and their cap (1 where there is none)."""
    return tl.load(OPTIONS), tl.load(OPTIONS + 1)


@triton.jit
def locate(Q, K, MASK, head, heads, groups, q_batch, q_head, k_batch, k_head, mask_batch, mask_head):
    """Where the queries, the keys and the mask of one head begin; `groups` key heads serve `heads` query heads."""
    batch, h = head // heads, head % heads
    keys = h // (heads // groups)
    return (
        Q + batch * q_batch + h * q_head,
        K + batch * k_batch + keys * k_head,
        MASK + batch * mask_batch + h * mask_head,
    )


@triton.jit
def scaled_dot_products(
    A, a, a_step, B, b, b_step, scale, length, size, SCALE_B: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr
):
    """`scale A[a] . B[b]` for vectors of `size` numbers, `[len(a), len(b)]`, a chunk of them at a time.

    The vectors of B, or else those of A, are scaled before they are multiplied, as the operator does.
    """
    c = tl.arange(0, CHUNK)
    result = tl.zeros([a.shape[0], b.shape[0]], TYPE)
    factor = scale.to(TYPE)
    first = 0
    while first < size:
        e = first + c
        x = tl.load(A + a[:, None] * a_step + e[None, :], mask=(a < length)[:, None] & (e < size)[None, :], other=0.0)
        y = tl.load(B + b[None, :] * b_step + e[:, None], mask=(b < length)[None, :] & (e < size)[:, None], other=0.0)
        x, y = x.to(TYPE), y.to(TYPE)
        if SCALE_B:
            y *= factor
        else:
            x *= factor
        result = tl.dot(x, y, result, input_precision="ieee", out_dtype=TYPE)
        first += CHUNK
    return result


@triton.jit
def logits(
    Q,
    K,
    MASK,
    outer,
    inner,
    q_step,
    k_step,
    mask_row,
    mask_column,
    length,
    size,
    window,
    scale,
    cap,
    TRANSPOSED: tl.constexpr,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    TYPE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The capped and masked scores, float64 `[outer, inner]`, -inf where a column is not seen.

    Rows are `outer` and columns `inner`, or the other way round if TRANSPOSED. Scores and cap are computed in TYPE.
    """
    if TRANSPOSED:
        s = scaled_dot_products(K, outer, k_step, Q, inner, q_step, scale, length, size, True, TYPE, CHUNK)
        row, column = inner[None, :], outer[:, None]
    else:
        s = scaled_dot_products(Q, outer, q_step, K, inner, k_step, scale, length, size, False, TYPE, CHUNK)
        row, column = outer[:, None], inner[None, :]
    if CAPPED:
        # tanh by exp(-2 |x|), in (0, 1]: its absolute error is an ulp, and an absolute error is what a logit may have
        c = cap.to(TYPE)
        x = s / c
        decay = tl.exp(-2.0 * tl.abs(x))
        s = c * tl.where(x < 0.0, decay - 1.0, 1.0 - decay) / (1.0 + decay)
    s = s.to(tl.float64)
    seen = (column <= row) & (column > row - window) & (row < length) & (column < length)
    if MASKED != 0:
        bias = tl.zeros([outer.shape[0], inner.shape[0]], tl.float64)
        # always true, but that is not known: what comes out of a branch has no known origin. Triton would trace a
        # float64 operand of a product back to a load of narrower numbers, and choose a layout that it does not have
        if length > 0:
            mask = tl.load(MASK + row * mask_row + column * mask_column, mask=seen, other=0)
            bias = tl.where(mask != 0, 0.0, float("-inf")).to(tl.float64) if MASKED == 1 else upcast(mask, tl.float64)
        s += bias
    return tl.where(seen, s, float("-inf"))


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
    q, k, m = locate(Q, K, MASK, head, heads, groups, q_batch, q_head, k_batch, k_head, mask_batch, mask_head)
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
        # a row that has seen nothing yet: 0 in place of -inf keeps exp(-inf - 0) = 0 free of NaN
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
        q, k, m = locate(Q, K, MASK, head, heads, groups, q_batch, q_head, k_batch, k_head, mask_batch, mask_head)
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


class Prepared:
    """An operator's tensors in the form that the kernels take; what they cannot read as it lies is copied.

    Every function here takes one in place of the operator, which saves doing this again at each call.
    """

    def __init__(self, op: Attention):
        self.op = op
        q, k = (_readable(x.detach()) for x in (op.q, op.k))
        self.options = torch.empty(2, dtype=torch.float64, device=op.device)
        self.options[0].fill_(op.scale)
        self.options[1].fill_(1.0 if op.softcap is None else op.softcap)
        self.sinks = self.options if op.sinks is None else op.sinks.detach().double().contiguous()
        steps: tuple[int, ...] = (0, 0, 0, 0)
        mask, masked = q, NO_MASK
        if op.attn_mask is not None:
            mask = op.attn_mask.detach()
            # an axis that is shared is not walked along
            steps = tuple(0 if size == 1 else step for size, step in zip(mask.shape, mask.stride(), strict=True))
            masked = KEEP if mask.dtype == torch.bool else ADDITIVE
            mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
        window = op.length if op.window_size is None else min(op.window_size, op.length)
        self.tensors = (q, k, mask)
        self.sizes = (q.shape[1], k.shape[1], op.length, q.shape[3], window)
        self.steps = q.stride()[:3] + k.stride()[:3] + steps
        self.constants = {"CAPPED": op.softcap is not None, "MASKED": masked}

    @classmethod
    def of(cls, op: Attention | Prepared) -> Prepared:
        return op if isinstance(op, Prepared) else cls(op)


def _readable(x: Tensor) -> Tensor:
    """Contiguous along its last axis and no narrower than float32: Triton cannot multiply what it widens to float64."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x if x.stride(-1) == 1 else x.contiguous()


class Launch(NamedTuple):
    """Tokens kept and tokens passed over by one program, numbers of a query looked at together, and warps."""

    outer: int
    inner: int
    chunk: int
    warps: int


def for_whole_tiles(masked: int) -> Launch:
    """For row sums and for tiles that are written. Where registers would spill, tiles are narrower."""
    return Launch(64, 64, 16, 4) if masked == NO_MASK else Launch(64, 32, 16, 8)


def for_products(width: int, masked: int) -> Launch:
    """For products with `width` columns; where registers would spill, twice as many warps hold a tile."""
    return Launch(64, 32, 16, 4 if width <= 64 and masked == NO_MASK else 8)


def widths(masked: int) -> tuple[int, ...]:
    """The numbers of columns that one program can multiply with."""
    return (16, 32, 64, 128) if masked == NO_MASK else (16, 32, 64)


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
                **given.constants, num_warps=rule.warps, num_stages=1,
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
                **given.constants, num_warps=rule.warps, num_stages=1,
            )  # fmt: skip
    return T


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
                **given.constants, num_warps=rule.warps, num_stages=1,
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
    """Every launch rule under the lightest and the heaviest that inputs ask of it."""
    for masked, queries, mask in ((NO_MASK, "fp64", "fp64"), (KEEP, "fp64", "u8"), (ADDITIVE, "fp32", "bf16")):
        full = masked == ADDITIVE
        types = {"Q": f"*{queries}", "K": f"*{queries}", "MASK": f"*{mask}", "HEADS": "*i64", "POSITIONS": "*i64"}
        constants: dict[str, Any] = {"CAPPED": full, "MASKED": masked}
        suffix = {NO_MASK: "", KEEP: ", bool mask", ADDITIVE: ", cap, additive mask"}[masked]
        rule = for_whole_tiles(masked)
        whole = constants | {"ROWS": rule.outer, "COLUMNS": rule.inner, "CHUNK": rule.chunk}
        yield _variant(f"attention row sums{suffix}", row_sums_kernel, types, whole | {"SINKING": full}, rule)
        yield _variant(f"attention tiles{suffix}", tiles_kernel, types, whole, rule)
        for width in widths(masked):
            rule = for_products(width, masked)
            blocks = {"R": width, "OUTER": rule.outer, "INNER": rule.inner, "CHUNK": rule.chunk}
            # scores in float32 are for operands that are no wider
            for type_ in (tl.float64, tl.float32):
                for transposed in (False, True):
                    narrow = types if type_ == tl.float64 else types | {"Q": "*fp32", "K": "*fp32"}
                    name = f"attention product {width}{' transposed' * transposed}, {type_.name} scores{suffix}"
                    chosen = constants | blocks | {"TRANSPOSED": transposed, "TYPE": type_}
                    yield _variant(name, product_kernel, narrow, chosen, rule)


def _variant(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], rule: Launch) -> Variant:
    others = {argument: "*fp64" if argument.isupper() else "i32" for argument in kernel.arg_names}
    return Variant(name, kernel, others | types, constants, rule.warps)
