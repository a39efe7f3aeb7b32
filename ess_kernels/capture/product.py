"""`T u` of any operator, without more of `T` at a time than there is room for."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.separate import SeparateSequences
from ..operators.structure import Operator, StateSpace, Tiled
from ..operators.sum_of import rows_of

BUDGET = 256 << 20  # bytes of T, or of states, at a time


def apply(op: Operator, values: Tensor) -> Tensor:
    """`T u` for values `[*batch, L, d]`: float64 of the same shape. 0 where a token is in no sequence.

    Where a token has p rows and m columns of `T`, `values` are `[*batch, L m, d]` and the result `[*batch, L p, d]`.
    """
    rows, columns = op.block
    u = values.double().reshape(op.num_heads, op.length * columns, values.shape[-1])
    y = _by_sequence(op, u) if isinstance(op, SeparateSequences) else _heads(op, op.all_heads(), u)
    return y.reshape(*values.shape[:-2], op.length * rows, values.shape[-1])


def _by_sequence(op: SeparateSequences, u: Tensor) -> Tensor:
    rows, columns = op.block
    y = u.new_zeros(op.num_heads, op.length * rows, u.shape[-1])
    by_row, written = (x.unflatten(0, (op.sequences.rows, op.heads_in_row)) for x in (u, y))
    for group in op.groups(op.sequences.every()):
        for number, (row, start, stop) in enumerate(group.sequences):
            heads = torch.arange(op.heads_in_row, device=op.device)
            if not group.alike:
                heads = heads + number * op.heads_in_row
            of_sequence = by_row[row, :, columns * start : columns * stop]
            written[row, :, rows * start : rows * stop] = _heads(group.op, heads, of_sequence)
    return y


def _heads(op: Operator, heads: Tensor, u: Tensor) -> Tensor:
    """Some heads, as many at a time as fit."""
    if isinstance(op, StateSpace):
        each = op.length * op.state_size * (4 + (0 if op.diagonal or op.rank_one else op.state_size))
    elif isinstance(op, Tiled):
        each = op.length * min(op.length, 512)
    else:
        each = op.length**2 * op.block[0] * op.block[1]
    count = max(1, BUDGET // max(8 * each, 1))
    pieces = [_some_heads(op, heads[i : i + count], u[i : i + count]) for i in range(0, len(heads), count)]
    return torch.cat(pieces) if pieces else u.new_zeros(0, op.length * op.block[0], u.shape[-1])


def _some_heads(op: Operator, heads: Tensor, u: Tensor) -> Tensor:
    if isinstance(op, Tiled):
        band = max(1, BUDGET // max(8 * len(heads) * op.length, 1))
        rows = [(i, min(i + band, op.length)) for i in range(0, op.length, band)]
        bands = [rows_of(op, heads, start, stop) @ u[:, :stop] for start, stop in rows]
        return torch.cat(bands, 1) if bands else u.clone()
    return _scan(op, heads, u) if isinstance(op, StateSpace) else op.dense_heads(heads) @ u


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
    return y + (own - tokens.diagonal_entries())[..., None] * u
