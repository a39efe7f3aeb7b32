"""What the threads of a warp, or of a program, do together."""

from __future__ import annotations

import re

import numpy as np

from .program import Program
from .ptx import Instruction

Mask = np.ndarray | None
REDUCTIONS = {
    "max": np.maximum, "min": np.minimum, "add": np.add,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def barrier(p: Program, x: Instruction, mask: Mask) -> None:
    if "warp" in x.parts:
        p.warp_barrier()
    elif x.operands[0] == "0":
        p.barrier(mask, x)
    else:
        raise NotImplementedError(f"{x.name}: a barrier of some warps only, {x.operands}")


def multiply(p: Program, x: Instruction, mask: Mask) -> None:
    """`mma` of float64: `D = A B + C`, of which every lane of a warp holds its own entries."""
    if not x.name.endswith("row.col.f64.f64.f64.f64"):
        raise NotImplementedError(x.name)
    shape = re.search(r"m(\d+)n(\d+)k(\d+)", x.name)
    assert shape is not None
    m, n, k = map(int, shape.groups())
    D, A, B, C = x.operands
    assert len(A) == m * k // 32 and len(B) == k * n // 32 and len(C) == len(D) == m * n // 32, x.name
    warps, group, inside, warp = p.threads // 32, p.lane % 32 // 4, p.lane % 4, p.lane // 32
    a, b, c = np.zeros((warps, m, k)), np.zeros((warps, k, n)), np.zeros((warps, m, n))
    tall = m // 8
    for i, name in enumerate(A):
        a[warp, group + 8 * (i % tall), i // tall * 4 + inside] = p.value(name, np.float64)
    for i, name in enumerate(B):
        b[warp, i * 4 + inside, group] = p.value(name, np.float64)
    for i, name in enumerate(C):
        c[warp, group + 8 * (i // 2), inside * 2 + i % 2] = p.value(name, np.float64)
    d = a @ b + c
    for i, name in enumerate(D):
        p.set(name, d[warp, group + 8 * (i // 2), inside * 2 + i % 2], mask)


def shuffle(p: Program, x: Instruction, mask: Mask) -> None:
    """`shfl`: a number from another lane of the warp's segment; a lane's own where there is no such lane."""
    target, source, by, clamp = x.operands[:4]
    value, lane = p.value(source, np.uint32), p.lane % 32
    by, clamp = (p.value(operand, np.uint32).astype(np.int64) for operand in (by, clamp))
    segment = clamp >> 8
    high, low = lane & segment | clamp & 31 & ~segment, lane & segment
    if "bfly" in x.parts:
        other = lane ^ by
    elif "idx" in x.parts:
        other = low | by & 31 & ~segment
    else:
        other = lane - by if "up" in x.parts else lane + by
    there = other >= high if "up" in x.parts else other <= high
    result = value[p.lane // 32 * 32 + np.where(there, other, lane)]
    name, _, predicate = target.partition("|")
    p.set(name, result, mask)
    if predicate:
        p.set(predicate, there, mask)


def reduce(p: Program, x: Instruction, mask: Mask) -> None:
    """`redux`: one number from all lanes of a warp."""
    value = p.value(x.operands[1], x.type).reshape(-1, 32)
    p.set(x.operands[0], np.repeat(REDUCTIONS[x.parts[2]].reduce(value, axis=1, dtype=x.type), 32), mask)


def vote(p: Program, x: Instruction, mask: Mask) -> None:
    """`vote`: what the lanes of a warp say together."""
    value = p.predicate(x.operands[1]).reshape(-1, 32)
    if "ballot" in x.parts:
        result = (value.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
    else:
        result = value.all(1) if "all" in x.parts else value.any(1)
    p.set(x.operands[0], np.repeat(result, 32), mask)
