"""Which operators can be cut between tokens, and what to do with the others."""

from __future__ import annotations

from typing import Any

from ..operators.separate import SeparateSequences
from ..operators.spread import Spread
from ..operators.structure import Operator, StateSpace
from ..operators.sum_of import terms_of


def cuttable(op: Any) -> StateSpace:
    """The recurrence behind an operator of some tokens of a sequence.

    Raises:
        TypeError: it is no operator, or none with a state that is all that later tokens see of earlier ones.
        ValueError: its numbers depend on earlier tokens.
    """
    if not isinstance(op, Operator) or isinstance(op, Spread):
        raise TypeError(f"op: expected an operator of this process's tokens, got {type(op).__name__}")
    if isinstance(op, SeparateSequences):
        raise TypeError(
            f"op: {op.family} with cu_seqlens, seq_idx or attention_mask cannot be cut between tokens; give each "
            "process whole sequences"
        )
    inner = op.inner
    if not isinstance(inner, StateSpace):
        raise TypeError(
            f"op: {type(inner).__name__} has no finite state and cannot be cut between tokens; give each process "
            "whole heads (ess_kernels.distributed.to_heads)"
        )
    for term in terms_of(inner):
        accumulated = getattr(term, "accumulated", None)
        if accumulated is not None:
            raise ValueError(
                f"op: {accumulated.family} sums over all earlier tokens and cannot be cut between tokens; give each "
                "process whole heads"
            )
    return inner
