"""Attention logits in registers: any tile of them rebuilt from queries and keys, with scale, cap, window and mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....operators.attention import Attention
from ..compilation import Variant
from ..launches import Launch

# masks, as constants of a kernel
NO_MASK, KEEP, ADDITIVE = 0, 1, 2


@triton.jit
def upcast(x, TYPE: tl.constexpr):
    """To float32 or float64; bfloat16 by way of float32, which holds all of it."""
    return x.to(tl.float32).to(TYPE) if x.dtype.primitive_bitwidth < 32 else x.to(TYPE)


@triton.jit
def load_factors(OPTIONS):
    """The scale of the scores and their cap (1 where there is none)."""
    return tl.load(OPTIONS), tl.load(OPTIONS + 1)


@triton.jit
def locate(Q, K, MASK, head, heads, key_heads, q_batch, q_head, k_batch, k_head, mask_batch, mask_head):
    """Where the queries, the keys and the mask of one head begin; `key_heads` key heads serve `heads` query heads."""
    batch, h = head // heads, head % heads
    keys = h // (heads // key_heads)
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

    The queries are scaled before the product, as the operator does: the vectors of B if SCALE_B, else those of A.
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
        # tanh from exp(-2 |x|), in (0, 1]: near 0 only its absolute error is an ulp, which is all that a logit needs
        c = cap.to(TYPE)
        x = s / c
        decay = tl.exp(-2.0 * tl.abs(x))
        s = c * tl.where(x < 0.0, decay - 1.0, 1.0 - decay) / (1.0 + decay)
    s = s.to(tl.float64)
    seen = (column <= row) & (column > row - window) & (row < length) & (column < length)
    if MASKED != 0:
        bias = tl.zeros([outer.shape[0], inner.shape[0]], tl.float64)
        # the condition is always true, but the compiler does not know that. Without a branch, Triton would trace a
        # float64 operand of a product back to this load of narrower numbers, for which it then has no layout
        if length > 0:
            mask = tl.load(MASK + row * mask_row + column * mask_column, mask=seen, other=0)
            bias = tl.where(mask != 0, 0.0, float("-inf")).to(tl.float64) if MASKED == 1 else upcast(mask, tl.float64)
        s += bias
    return tl.where(seen, s, float("-inf"))


class Prepared:
    """An operator's tensors in the form that the kernels take; tensors that they cannot read in place are copied.

    Functions of this room take an instance in place of an operator, which saves preparing it at each call.
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
            # along an axis of size one, all heads or rows share the mask
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
    """Contiguous along its last axis, and at least float32: Triton cannot multiply 16-bit loads that became float64."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x if x.stride(-1) == 1 else x.contiguous()


class Rule(NamedTuple):
    """How one program of a kernel works.

    Attributes:
        outer: tokens that it keeps.
        inner: tokens that it takes at a time, running over them.
        chunk: numbers of a query and of a key that it multiplies at a time.
        launch: warps and stages.
    """

    outer: int
    inner: int
    chunk: int
    launch: Launch


def mask_kinds() -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    """Kinds of inputs from the lightest for a kernel to the heaviest: suffix of names, argument types, constants."""
    kinds = []
    for masked, queries, mask in ((NO_MASK, "fp64", "fp64"), (KEEP, "fp64", "u8"), (ADDITIVE, "fp32", "bf16")):
        types = {"Q": f"*{queries}", "K": f"*{queries}", "MASK": f"*{mask}", "HEADS": "*i64", "POSITIONS": "*i64"}
        suffix = {NO_MASK: "", KEEP: ", bool mask", ADDITIVE: ", cap, additive mask"}[masked]
        kinds.append((suffix, types, {"CAPPED": masked == ADDITIVE, "MASKED": masked}))
    return kinds


def variant(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], rule: Rule) -> Variant:
    """A variant of a kernel whose pointers are in capitals and whose numbers are 32 bits wide."""
    others = {argument: "*fp64" if argument.isupper() else "i32" for argument in kernel.arg_names}
    return Variant(name, kernel, others | types, constants, rule.launch)
