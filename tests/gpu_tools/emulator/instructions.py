"""Which function executes which instruction."""

from __future__ import annotations

from collections.abc import Callable

from . import arithmetic, together, transfers
from .ptx import Instruction

EXECUTED_BY: dict[str, Callable[..., None]] = {
    "ld": transfers.load, "st": transfers.store, "cp": transfers.copy,
    "ldmatrix": transfers.tiles16, "stmatrix": transfers.tiles16,
    "bar": together.barrier, "barrier": together.barrier, "mma": together.multiply, "shfl": together.shuffle,
    "redux": together.reduce, "vote": together.vote,
    "setp": arithmetic.compare, "selp": arithmetic.select, "cvt": arithmetic.convert, "mov": arithmetic.move,
    "shl": arithmetic.shift, "shr": arithmetic.shift, "bfe": arithmetic.field, "prmt": arithmetic.permute,
    "div": arithmetic.divide, "rem": arithmetic.divide, "fma": arithmetic.fused, "mad": arithmetic.fused,
}  # fmt: skip


def find(x: Instruction) -> Callable[..., None]:
    """What executes `x`: `execute(program, x, mask)`."""
    name = x.parts[0]
    if name in arithmetic.LOGIC and "pred" in x.parts:
        return arithmetic.combine
    if name in ("mul", "mad") and "wide" in x.parts:
        return arithmetic.doubled
    if name in ("mul", "mad") and "hi" in x.parts:
        return arithmetic.upper_half
    if name in EXECUTED_BY:
        return EXECUTED_BY[name]
    if name in arithmetic.SIMPLE:
        return arithmetic.simple(x)
    raise NotImplementedError(f"instruction {x.name} with operands {x.operands}")
