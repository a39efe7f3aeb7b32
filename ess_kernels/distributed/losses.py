"""What rounding in other slices of a recurrence costs at the positions of this one.

A root that came from other processes is wrong by some number in every state. That error decays like the states
themselves: at a position it counts as much as is left of it there, times what is read from there on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.blocks import cut, products_after, products_upto
from ..operators.structure import Tokens
from .passage import Passage


def lost_in_slice(tokens: Tokens, before: Passage, after: Passage, c: int) -> Tensor:
    """By how much `H_i` may be wrong because of the roots before and after these tokens, `[N, ceil(L / c)]`.

    Every `c` positions in a row have one number; infinity where it overflows.

    Args:
        tokens: diagonal, `[N, L, n]`.
        before, after: all that comes before (reach) and after them (observe).
        c: positions that share a number.
    """
    blocks = cut(tokens, c)
    running = products_upto(blocks.transition, inclusive=True)
    seen = products_upto(blocks.transition, inclusive=False) if blocks.reads_before else running
    Phi = running[..., -1, :].abs()
    # seen from the left edge of each block, and carried to its right edge
    read, written = _norms(blocks.read * seen), _norms(blocks.write * products_after(blocks.transition))
    writes, reach_errors = before.sizes(), before.error
    reach: list[tuple[Tensor, Tensor]] = []
    for b in range(Phi.shape[1]):
        # the error at the left edge, all writes at the right edge
        writes = torch.hypot(writes * Phi[:, b], written[:, b])
        reach.append((reach_errors, writes))
        reach_errors = reach_errors * Phi[:, b]
    reads, observe_errors = after.sizes(), after.error
    lost = [Phi.new_zeros(len(Phi))] * Phi.shape[1]
    for b in reversed(range(Phi.shape[1])):
        error, writes = reach[b]
        reads = torch.hypot(reads * Phi[:, b], read[:, b])
        lost[b] = (error * reads + observe_errors * writes).sum(-1)
        observe_errors = observe_errors * Phi[:, b]
    return torch.stack(lost, 1).nan_to_num(nan=torch.inf)


def lost_everywhere(own: tuple[Passage, Passage], before: Passage, after: Passage) -> Tensor:
    """The same for all positions of a slice whose tokens are summed up, reach and observe, `[N, 1]`."""
    # an error of what was written before is seen by all that reads from here on, and the other way round
    seen, written = after.then(own[1]).sizes(), before.then(own[0]).sizes()
    lost = (before.error * seen).sum(-1, keepdim=True) + (after.error * written).sum(-1, keepdim=True)
    return lost.nan_to_num(nan=torch.inf)


def _norms(x: Tensor) -> Tensor:
    return x.square().sum(-2).sqrt()
