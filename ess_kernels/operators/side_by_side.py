"""Recurrences of different lengths in one call: many short calls cost more than the tokens that fill up the shorter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .gated import GatedStateSpace
from .rank_one import RankOneStateSpace
from .separate import Group
from .structure import Operator

# all of whose tensors are `[B, T, ...]`
KINDS = (GatedStateSpace, RankOneStateSpace)
# the longest of recurrences in one call has at most so many times the tokens of the shortest, and a few more
SPREAD = 1.25
FEW = 8


def side_by_side(ops: Sequence[Operator]) -> Operator:
    """Recurrences of one kind as a batch, as long as the longest.

    Behind the end of the others are zeros: tokens that neither read nor write. There `H` is zero; before it is as it
    was.
    """
    first = ops[0]
    if len(ops) == 1:
        return first
    length = max(op.length for op in ops)
    tensors = {name: _batch([getattr(op, name) for op in ops], length) for name in first.TENSORS}
    family: Any = type(first)
    return family(**tensors, **{name: getattr(first, name) for name in first.NUMBERS})


def _batch(pieces: Sequence[Tensor | None], length: int) -> Tensor | None:
    """Tensors `[B, T, ...]` with zeros up to the length, one behind the other along the batch; or None if they are."""
    given = [x for x in pieces if x is not None]
    if not given:
        return None
    size = given[0].shape[-1]
    shared = all(x.stride(-1) == 0 for x in given)
    if shared:
        given = [x[..., :1] for x in given]
    batch = torch.cat([pad(x, (0, 0) * (x.dim() - 2) + (0, length - x.shape[1])) for x in given])
    return batch.expand(*batch.shape[:-1], size) if shared else batch


def batches(groups: Iterable[Group]) -> list[list[Group]]:
    """Groups of recurrences of similar lengths together, all others alone."""
    found: list[list[Group]] = []
    fitting: list[Group] = []
    for group in groups:
        if type(group.op) in KINDS and not group.alike:
            fitting.append(group)
        else:
            found.append([group])
    longest = 0
    for group in sorted(fitting, key=lambda group: -group.op.length):
        if longest and longest <= SPREAD * group.op.length + FEW:
            found[-1].append(group)
        else:
            found.append([group])
            longest = group.op.length
    return found
