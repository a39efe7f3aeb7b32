"""Where `H_i` of a recurrence is zero, whatever rounding says: ends of padded sequences, states that were emptied."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.structure import StateSpace, Tokens

# bytes of tokens that are looked at together
TOGETHER = 1 << 27


def zero_positions(tokens: Tokens) -> Tensor:
    """bool `[N, L]`: no token before i writes, none from i on reads, or nothing passes from the former to the latter.

    Of what passes only the last transition before the first read is looked at: it has to be zero in all of its entries.
    """
    reads, writes, passes = (_any(x) for x in (tokens.read, tokens.write, tokens.transition))
    if tokens.lookup is not None:
        passes = passes | (_any(tokens.lookup) & _any(tokens.updates))
    later = reads.flip(1).cummax(1).values.flip(1)
    earlier = _before(writes.cummax(1).values)
    if tokens.reads_before:
        # the first read sees what the last token has written, before any transition
        return ~(later & earlier & (_before(passes) | _before(writes)))
    return ~(later & earlier & passes)


def zero_positions_of(op: StateSpace, heads: Tensor) -> Tensor:
    """The same of some heads of an operator."""
    each = max(1, TOGETHER // max(1, 32 * op.length * op.state_size))
    return torch.cat([zero_positions(op.tokens(some)) for some in heads.split(each)])


def _any(x: Tensor) -> Tensor:
    """bool `[N, L]`: whether any number of a token in `x` `[N, L, ...]` is not zero."""
    return (x != 0).flatten(2).any(-1)


def _before(x: Tensor) -> Tensor:
    """`x` `[N, L]` of the token before, false at the first."""
    return torch.nn.functional.pad(x, (1, 0))[:, :-1]
