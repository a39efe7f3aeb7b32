"""Functions of the singular values of an operator's `H_i` with a gradient with respect to its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.extent import rounded_positions
from ..engine.scaling import largest, power_of_two, scaled_tokens
from ..memory import make_sure
from ..operators.structure import Operator, StateSpace, Tiled, Tokens
from .functions import SpectralFunction
from .matrix import matrix_values
from .need import need_of_gradient
from .recurrence import recurrence_values


def spectral_values(op: Operator, positions: Sequence[int], function: SpectralFunction) -> Tensor:
    """The functions `[N, M, P]` at positions in ascending order.

    NaN in heads that are not finite, and no gradient flows into what only they read.

    Raises:
        MemoryError: this, with its backward, needs more than is free.
    """
    make_sure(need_of_gradient(op, positions, function), op.device)
    with torch.no_grad():
        finite = op.finite(op.all_heads())
    if bool(finite.all()):
        return _of_heads(op, op.all_heads(), positions, function)
    good = finite.nonzero()[:, 0]
    values = torch.full(
        (op.num_heads, function.number, len(positions)), torch.nan, dtype=torch.float64, device=op.device
    )
    return values.index_copy(0, good, _of_heads(op, good, positions, function)) if len(good) else values


def _of_heads(op: Operator, heads: Tensor, positions: Sequence[int], function: SpectralFunction) -> Tensor:
    """`[N, M, P]` of some heads whose inputs are finite."""
    if isinstance(op, Tiled):
        return _of_matrices(op, heads, op.rows(heads, 0, op.length), positions, function)
    assert isinstance(op, StateSpace)
    return op.from_tokens(heads, lambda some, tokens: _of_tokens(op, some, tokens, positions, function))


def _of_tokens(
    op: StateSpace, heads: Tensor, tokens: Tokens, positions: Sequence[int], function: SpectralFunction
) -> Tensor:
    """`[N, M, P]` of the heads that have these tokens."""
    tokens, unit, representable = scaled_tokens(tokens)
    found, kept = recurrence_values(tokens, unit, positions, function)
    kept = kept & representable
    if bool(kept.all()):
        return _without_unknown(op, heads, unit, positions, function, found)
    # Gramians of what grows too fast have no root, but T itself may be representable
    good, bad = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
    pieces = [_of_matrices(op, heads[bad], op.dense_heads(heads[bad]), positions, function)]
    if len(good):
        pieces.append(_of_heads(op, heads[good], positions, function))
    return torch.cat(pieces).index_select(0, torch.cat([bad, good]).argsort())


def _of_matrices(
    op: Operator, heads: Tensor, T: Tensor, positions: Sequence[int], function: SpectralFunction
) -> Tensor:
    """`[N, M, P]` of heads that are given as `T` `[N, L, L]`."""
    unit = power_of_two(T[:, :0], largest(T.detach().tril(-1)))[1]
    return _without_unknown(op, heads, unit, positions, function, matrix_values(T, positions, function))


def _without_unknown(
    op: Operator, heads: Tensor, unit: Tensor, positions: Sequence[int], function: SpectralFunction, found: Tensor
) -> Tensor:
    """What was found, `[N, M, P]`, but NaN where it depends on numbers that the unit `[N]` has made zero."""
    with torch.no_grad():
        unknown = function.depends_on_tiny(found, unit)
        if not bool(unknown.any()):
            return found
        at = torch.tensor(positions, device=unit.device)
        unknown = unknown & rounded_positions(op, heads, unit)[:, None, at]
    return found.masked_fill(unknown, torch.nan)
