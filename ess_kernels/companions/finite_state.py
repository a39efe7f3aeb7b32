"""What the companions need of an operator: a state that is known token by token, and the values written into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_same_device, check_shape
from ..operators.blocked import Blocked
from ..operators.separate import SeparateSequences
from ..operators.structure import Operator, StateSpace


def finite_state(op: Operator) -> StateSpace:
    """The recurrence behind an operator, whose tokens are `sub_tokens` for each of the operator's if it is `Blocked`.

    Raises:
        ValueError: it has none, with the reason.
    """
    inner = (op.empty_sequence() if isinstance(op, SeparateSequences) else op).inner
    if isinstance(inner, StateSpace):
        return inner
    reason = (
        "whose T has none"
        if op.state_size is None
        else f"which gives T row by row, not its state of {op.state_size} numbers token by token"
    )
    raise ValueError(f"op: expected an operator with a finite state, got {type(inner).__name__}, {reason}")


def checked_values(values: Any, op: Operator) -> Tensor:
    """Values in the layout of the public call, as `[*batch, L m, V]`; m is how many columns of `T` a token has."""
    if values is None:
        raise ValueError("values: expected a tensor for which='content', got None")
    columns = op.block[1]
    length, tokens = columns * op.length, "T" if columns == 1 else f"{columns} T"
    channels = values.shape[-1] if isinstance(values, Tensor) and values.dim() else 0
    if len(op.batch_shape) == 2:
        batch, heads = op.batch_shape
        check_shape("values", values, (batch, length, heads, channels), f"[B, {tokens}, H, V]")
        values = values.movedim(1, 2)
    else:
        check_shape("values", values, (*op.batch_shape, length, channels), f"[*batch, {tokens}, V]")
    check_same_device(op=op.inputs[0], values=values)
    return values


def of_sub_tokens(op: Operator, values: Tensor) -> Tensor:
    """Values `[N, L m, V]` of the operator's columns as those of the tokens of its recurrence, zero elsewhere."""
    if not isinstance(op, Blocked):
        return values
    first, stop = op.columns
    by_token = values.unflatten(1, (op.length, stop - first))
    return torch.nn.functional.pad(by_token, (0, 0, first, op.sub_tokens - stop)).flatten(1, 2)
