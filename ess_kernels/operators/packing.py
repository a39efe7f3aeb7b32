"""Operators taken apart into tensors and plain numbers, and put together again.

A compiled graph holds no operators: what crosses its border into a custom op are tensors, numbers and strings.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .attention import Attention
from .convolution import Convolution, ShortConvolution
from .dense import Dense
from .gated import GatedStateSpace
from .momentum import MomentumStateSpace
from .rank_one import RankOneStateSpace
from .recurrence import LinearRecurrence
from .selective_scan import SelectiveStateSpace
from .separate import SeparateSequences
from .structure import Operator

FAMILIES: dict[str, type[Operator]] = {
    family.__name__: family
    for family in (
        Attention,
        Convolution,
        Dense,
        GatedStateSpace,
        LinearRecurrence,
        MomentumStateSpace,
        RankOneStateSpace,
        SelectiveStateSpace,
        ShortConvolution,
    )
}

# what the description of an operator of separate sequences begins with
SEQUENCES = "sequences "


class Packed(NamedTuple):
    """An operator taken apart.

    Attributes:
        tensors: the family's `TENSORS`, detached.
        description: the family's name and its `NUMBERS`, as text. The length is not among them: it may be symbolic.
        length: of the sequence.
    """

    tensors: list[Tensor | None]
    description: str
    length: int


def pack(op: Operator) -> Packed | None:
    """The tensors and numbers of an operator, or None where its class is none of this package's."""
    if isinstance(op, SeparateSequences):
        tensors, rest = op.pack()
        return Packed([None if x is None else x.detach() for x in tensors], SEQUENCES + rest, op.length)
    family = type(op)
    name = family.__name__
    if FAMILIES.get(name) is not family:
        return None
    tensors = [getattr(op, tensor) for tensor in family.TENSORS]
    numbers = {number: getattr(op, number) for number in family.NUMBERS if number != "length"}
    return Packed([None if x is None else x.detach() for x in tensors], repr((name, numbers)), op.length)


def unpack(tensors: Sequence[Tensor | None], description: str, length: int) -> Operator:
    """The operator of these tensors and numbers. Its `inputs` are the tensors themselves."""
    if description.startswith(SEQUENCES):
        return SeparateSequences.unpack(tensors, description.removeprefix(SEQUENCES), length)
    name, numbers = ast.literal_eval(description)
    family: Any = FAMILIES[name]
    if "length" in family.NUMBERS:
        numbers["length"] = length
    return family(**dict(zip(family.TENSORS, tensors, strict=True)), **numbers)
