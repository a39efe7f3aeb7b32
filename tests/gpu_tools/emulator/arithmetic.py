"""What a thread does with its own numbers: `function(x, *values)` gives the result of instruction `x`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .program import Program
from .ptx import TYPES, Instruction

Values = np.ndarray
COMPARISONS: dict[str, Callable[[Values, Values], Values]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
LOGIC: dict[str, Callable[..., Values]] = {
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not,
}  # fmt: skip
ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _bits(dtype: Any) -> int:
    return 8 * np.dtype(dtype).itemsize


def _smaller(a: Values, b: Values) -> Values:
    """Of floating-point numbers the other one where one is NaN."""
    return np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b)


def _larger(a: Values, b: Values) -> Values:
    return np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b)


SIMPLE: dict[str, Callable[..., Values]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt,
    "min": _smaller, "max": _larger, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.bitwise_not, "ex2": np.exp2, "lg2": np.log2, "rcp": lambda a: 1 / a, "rsqrt": lambda a: 1 / np.sqrt(a),
    "popc": np.bitwise_count, "copysign": lambda a, b: np.copysign(b, a),
}  # fmt: skip


def simple(x: Instruction) -> Callable[..., None]:
    """All operands of one type, and so the result."""
    function = SIMPLE[x.parts[0]]

    def run(p: Program, x: Instruction, mask: Values | None) -> None:
        result = function(*(p.value(operand, x.type) for operand in x.operands[1:]))
        p.set(x.operands[0], result.astype(x.type, copy=False), mask)

    return run


def fused(p: Program, x: Instruction, mask: Values | None) -> None:
    """`a b + c`, of floating-point numbers rounded once: in 80 bits for float64, which nearly always is the same."""
    a, b, c = (p.value(operand, x.type) for operand in x.operands[1:4])
    wide = {np.float64: np.longdouble, np.float32: np.float64, np.float16: np.float32}.get(x.type, x.type)
    p.set(x.operands[0], (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(x.type), mask)


def doubled(p: Program, x: Instruction, mask: Values | None) -> None:
    """`mul.wide` and `mad.wide`: the whole product of integers."""
    dtype = np.dtype(x.type)
    to = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
    a, b = (p.value(operand, x.type).astype(to) for operand in x.operands[1:3])
    p.set(x.operands[0], a * b + p.value(x.operands[3], to) if x.parts[0] == "mad" else a * b, mask)


def upper_half(p: Program, x: Instruction, mask: Values | None) -> None:
    """`mul.hi` and `mad.hi`: the upper half of the product of integers, in Python's own."""
    bits = _bits(x.type)
    a, b = (p.value(operand, x.type).astype(object) for operand in x.operands[1:3])
    result = a * b >> bits
    if x.parts[0] == "mad":
        result = result + p.value(x.operands[3], x.type).astype(object)
    p.set(x.operands[0], (result & (1 << bits) - 1).astype(f"u{bits // 8}"), mask)


def divide(p: Program, x: Instruction, mask: Values | None) -> None:
    """Division and remainder; integers are cut towards zero."""
    a, b = (p.value(operand, x.type) for operand in x.operands[1:3])
    if a.dtype.kind == "f":
        p.set(x.operands[0], a / b, mask)
        return
    b = np.where(b == 0, 1, b).astype(x.type)
    rest = np.fmod(a, b)
    p.set(x.operands[0], rest if x.parts[0] == "rem" else (a - rest) // b, mask)


def shift(p: Program, x: Instruction, mask: Values | None) -> None:
    """By any number of bits: by all of them or more, only the sign is left, or nothing."""
    a, by = p.value(x.operands[1], x.type), p.value(x.operands[2], np.uint32)
    far = by >= _bits(x.type)
    near = np.where(far, _bits(x.type) - 1, by).astype(x.type)
    if x.parts[0] == "shl":
        result = np.where(far, 0, a << near)
    else:
        result = np.where(far & (a.dtype.kind != "i"), 0, a >> near)
    p.set(x.operands[0], result.astype(x.type), mask)


def field(p: Program, x: Instruction, mask: Values | None) -> None:
    """`bfe`: some bits out of the middle of an integer, with the sign of the highest one if it is signed."""
    bits = _bits(x.type)
    a = p.value(x.operands[1], f"u{bits // 8}")
    at, count = (p.value(operand, np.uint32) & 255 for operand in x.operands[2:4])
    out = (a >> at.astype(a.dtype)) & ((np.uint64(1) << count.astype(np.uint64)) - np.uint64(1)).astype(a.dtype)
    if np.dtype(x.type).kind == "i":
        up = (bits - count.astype(np.int64)).astype(x.type)
        out = (out.view(x.type) << up) >> up
    p.set(x.operands[0], out, mask)


def permute(p: Program, x: Instruction, mask: Values | None) -> None:
    """`prmt`: each byte of the result is one of the eight of two numbers, or that one's sign."""
    a, b, chosen = (p.value(operand, np.uint32) for operand in x.operands[1:4])
    both = np.stack([a, b], 1).view(np.uint8)
    out = np.zeros((p.threads, 4), np.uint8)
    for k in range(4):
        nibble = chosen >> np.uint32(4 * k) & np.uint32(15)
        byte = both[p.lane, nibble & 7]
        out[:, k] = np.where(nibble & 8, np.where(byte & 128, 255, 0), byte)
    p.set(x.operands[0], out.view(np.uint32)[:, 0], mask)


def compare(p: Program, x: Instruction, mask: Values | None) -> None:
    """`setp`: a predicate, and the opposite in a second one."""
    operation = x.parts[1]
    a, b = (p.value(operand, x.type) for operand in x.operands[1:3])
    nan = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(p.threads, bool)
    if operation in ("num", "nan"):
        result = nan if operation == "nan" else ~nan
    elif len(operation) == 3:
        # equ, neu, ltu, ...: true for NaN
        result = COMPARISONS[operation[:2]](a, b) | nan
    else:
        result = COMPARISONS[operation](a, b) & ~nan
    if x.parts[2] in LOGIC:
        result = LOGIC[x.parts[2]](result, p.predicate(x.operands[3]))
    for name in x.operands[0].split("|"):
        p.set(name, result, mask)
        result = ~result


def combine(p: Program, x: Instruction, mask: Values | None) -> None:
    """Logic of predicates."""
    p.set(x.operands[0], LOGIC[x.parts[0]](*(p.predicate(operand) for operand in x.operands[1:])), mask)


def select(p: Program, x: Instruction, mask: Values | None) -> None:
    a, b = (p.value(operand, x.type) for operand in x.operands[1:3])
    p.set(x.operands[0], np.where(p.predicate(x.operands[3]), a, b), mask)


def convert(p: Program, x: Instruction, mask: Values | None) -> None:
    """`cvt`: to integers saturating, NaN to 0."""
    to, source = [part for part in x.parts[1:] if part in TYPES or part == "bf16"][:2]
    if to == "bf16":
        raise NotImplementedError(x.name)
    if source == "bf16":
        value = (p.value(x.operands[1], np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        value = p.value(x.operands[1], TYPES[source])
    target = np.dtype(TYPES[to])
    if value.dtype.kind == "f":
        for name in ROUNDINGS.keys() & x.parts:
            value = ROUNDINGS[name](value)
        if target.kind in "ui":
            limits: Any = np.iinfo(target)
            # the largest integer may round up to a number that is none: it is put right below
            over = value >= float(limits.max)
            inside = np.where(np.isnan(value) | over, 0, np.maximum(value, limits.min))
            value = np.where(over, limits.max, inside.astype(target))
    p.set(x.operands[0], value.astype(target), mask)


def move(p: Program, x: Instruction, mask: Values | None) -> None:
    """`mov`, also from a vector of narrow registers into a wide one and back."""
    target, source = x.operands
    if isinstance(target, list):
        wide = p.value(source, x.type)
        parts = wide.copy().view(f"u{wide.dtype.itemsize // len(target)}").reshape(p.threads, -1)
        for k, name in enumerate(target):
            p.set(name, parts[:, k].copy(), mask)
    elif isinstance(source, list):
        size = np.dtype(x.type).itemsize // len(source)
        parts = np.stack([p.value(name, np.dtype(f"u{size}")) for name in source], 1)
        p.set(target, parts.view(x.type)[:, 0], mask)
    elif x.parts[1] == "pred":
        p.set(target, p.predicate(source), mask)
    else:
        p.set(target, p.value(source, x.type), mask)
