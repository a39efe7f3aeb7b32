"""Operators taken apart into tensors and plain numbers, and put together again.

A compiled graph holds no operators: what crosses its border into a custom op are tensors, numbers and strings.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor

from .attention import Attention
from .block_recurrence import BlockStateSpace
from .blocked import Blocked
from .complex_states import ComplexRecurrence, ComplexSelectiveStateSpace
from .convolution import Convolution, ShortConvolution
from .deltaformer import DeltaFormer
from .dense import Dense
from .gated import GatedStateSpace
from .log_linear import LogLinearAttention
from .momentum import MomentumStateSpace
from .nsa import NativeSparseAttention
from .parallax import Parallax
from .path import PathAttention
from .rank_one import RankOneStateSpace
from .recurrence import LinearRecurrence
from .selective_scan import SelectiveStateSpace
from .separate import SeparateSequences
from .shift_register import ShiftRegister
from .stickbreaking import StickbreakingAttention
from .structure import Operator
from .sum_of import SumOf, SumOfStates, weighted_sum
from .wall import WallAttention

FAMILIES: dict[str, type[Operator]] = {
    family.__name__: family
    for family in (
        Attention,
        BlockStateSpace,
        ComplexRecurrence,
        ComplexSelectiveStateSpace,
        Convolution,
        DeltaFormer,
        Dense,
        GatedStateSpace,
        LinearRecurrence,
        LogLinearAttention,
        MomentumStateSpace,
        NativeSparseAttention,
        Parallax,
        PathAttention,
        RankOneStateSpace,
        SelectiveStateSpace,
        ShiftRegister,
        ShortConvolution,
        StickbreakingAttention,
        WallAttention,
    )
}

# what the description of an operator of separate sequences begins with
SEQUENCES = "sequences "


class Packed(NamedTuple):
    """An operator taken apart.

    Attributes:
        tensors: the `TENSORS` of the operator that the engine sees, detached.
        description: its family's name and its `NUMBERS`, and those of a `Blocked` around it or None, as text. The
            length is not among them: it may be symbolic.
        length: of the sequence that the engine sees.
    """

    tensors: list[Tensor | None]
    description: str
    length: int


def pack(op: Operator) -> Packed | None:
    """The tensors and numbers of an operator, or None where its class is none of this package's."""
    if isinstance(op, (SumOf, SumOfStates)):
        return _pack_sum(op)
    if isinstance(op, SeparateSequences):
        tensors, rest = op.pack()
        return Packed([None if x is None else x.detach() for x in tensors], SEQUENCES + rest, op.length)
    inner = op.inner
    family = type(inner)
    name = family.__name__
    if FAMILIES.get(name) is not family or not (inner is op or type(op) is Blocked):
        return None
    tensors = [getattr(inner, tensor) for tensor in family.TENSORS]
    numbers, blocks = _numbers(inner), None if inner is op else _numbers(op)
    return Packed([None if x is None else x.detach() for x in tensors], repr((name, numbers, blocks)), inner.length)


def _pack_sum(op: SumOf | SumOfStates) -> Packed | None:
    """The tensors of all operators one after the other, then the weights; their descriptions as a list."""
    tensors: list[Tensor | None] = []
    descriptions: list[tuple[str, int]] = []
    for term in op.ops:
        packed = pack(term)
        if packed is None:
            return None
        tensors += packed.tensors
        descriptions.append((packed.description, len(packed.tensors)))
    numbers = [None if isinstance(weight, Tensor) else weight for weight in op.weights]
    tensors += [weight.detach() for weight in op.weights if isinstance(weight, Tensor)]
    return Packed(tensors, repr((SumOf.__name__, {"terms": descriptions, "weights": numbers}, None)), op.length)


def _numbers(op: Operator) -> dict[str, Any]:
    return {number: getattr(op, number) for number in op.NUMBERS if number != "length"}


def unpack(tensors: Sequence[Tensor | None], description: str, length: int) -> Operator:
    """The operator of these tensors and numbers. Its `inputs` are the tensors themselves."""
    if description.startswith(SEQUENCES):
        return SeparateSequences.unpack(tensors, description.removeprefix(SEQUENCES), length)
    name, numbers, blocks = ast.literal_eval(description)
    if name == SumOf.__name__:
        return _unpack_sum(tensors, length, **numbers)
    family: Any = FAMILIES[name]
    if "length" in family.NUMBERS:
        numbers["length"] = length
    op = family(**dict(zip(family.TENSORS, tensors, strict=True)), **numbers)
    return op if blocks is None else Blocked(op, **blocks)


def _unpack_sum(
    tensors: Sequence[Tensor | None], length: int, terms: Sequence[tuple[str, int]], weights: Sequence[float | None]
) -> SumOf | SumOfStates:
    ops, start = [], 0
    for description, count in terms:
        ops.append(unpack(tensors[start : start + count], description, length))
        start += count
    rest = iter(tensors[start:])
    return weighted_sum(ops, [cast(Tensor, next(rest)) if weight is None else weight for weight in weights])
