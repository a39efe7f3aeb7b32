"""`T u` of any operator, without more of `T` at a time than there is room for."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.separate import SeparateSequences
from ..operators.structure import Operator, StateSpace, Tiled
from ..operators.sum_of import SumOfStates

BUDGET = 256 << 20  # bytes of T, or of states, at a time


def apply(op: Operator, values: Tensor) -> Tensor:
    """`T u` for values `[*batch, L, d]`: float64 of the same shape. 0 where a token is in no sequence."""
    u = values.double().reshape(op.num_heads, op.length, -1)
    if isinstance(op, SeparateSequences):
        y = _by_sequence(op, u)
    else:
        y = _heads(op, u)
    return y.reshape(values.shape)


def _by_sequence(op: SeparateSequences, u: Tensor) -> Tensor:
    y = torch.zeros_like(u)
    by_row, written = (x.unflatten(0, (-1, op.heads_in_row)) for x in (u, y))
    for group in op.groups(op.sequences.every()):
        for number, (row, start, stop) in enumerate(group.sequences):
            heads = torch.arange(op.heads_in_row, device=op.device)
            if not group.alike:
                heads = heads + number * op.heads_in_row
            written[row, :, start:stop] = _some_heads(group.op, heads, by_row[row, :, start:stop])
    return y


def _heads(op: Operator, u: Tensor) -> Tensor:
    """All heads, as many at a time as fit."""
    if isinstance(op, StateSpace):
        each = 8 * op.length * op.state_size * (4 + (0 if op.diagonal or op.rank_one else op.state_size))
    else:
        each = 8 * op.length * min(op.length, 512)
    count = max(1, BUDGET // max(each, 1))
    heads = op.all_heads()
    pieces = [_some_heads(op, heads[i : i + count], u[i : i + count]) for i in range(0, len(heads), count)]
    return torch.cat(pieces) if pieces else u.clone()


def _some_heads(op: Operator, heads: Tensor, u: Tensor) -> Tensor:
    if isinstance(op, StateSpace) and not isinstance(op, SumOfStates):
        return _scan(op, heads, u)
    if isinstance(op, Tiled):
        band = max(1, BUDGET // max(8 * len(heads) * op.length, 1))
        bands = range(0, op.length, band)
        rows = [(i, min(i + band, op.length)) for i in bands]
        return torch.cat([op.rows(heads, start, stop) @ u[:, :stop] for start, stop in rows], 1) if rows else u.clone()
    return op.dense_heads(heads) @ u


def _scan(op: StateSpace, heads: Tensor, u: Tensor) -> Tensor:
    """Token by token, as the recurrence says."""
    tokens = op.tokens(heads)
    state = u.new_zeros(len(heads), op.state_size, u.shape[-1])
    rows = []
    for t in range(op.length):
        read, written = tokens.read[:, t, None], tokens.write[:, t, :, None] * u[:, t, None]
        if tokens.reads_before:
            rows.append(read @ state)
        state = tokens.move(t, state) + written
        if not tokens.reads_before:
            rows.append(read @ state)
    y = torch.cat(rows, 1) if rows else u.clone()
    own = op.own_diagonal(heads)
    if own is None:
        return y
    made = 0.0 if tokens.reads_before else (tokens.read * tokens.write).sum(-1)
    return y + (own - made)[..., None] * u
