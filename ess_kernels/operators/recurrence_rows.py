"""Rows of the `T` of a recurrence, block by block: for families that mix with a function of them, entry by entry."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..engine.blocks import Blocks, block_parts, cut
from .structure import Tokens

# tokens a block; a power of two
BLOCK = 32


def recurrence_rows(tokens: Tokens, start: int, stop: int) -> Tensor:
    """Rows `start..stop-1`, columns `0..stop-1`, of `T` with its diagonal: float64 `[N, rows, stop]`.

    Rows of a block multiply what all columns before the block have become at its left edge. Blocks begin at multiples
    of their length, so that a row is the same number in every band.
    """
    edge = start // BLOCK * BLOCK
    if stop == start:
        return tokens.read.new_zeros(len(tokens.read), 0, stop)
    own = cut(tokens.map(lambda x: x[:, edge:stop]), BLOCK)
    blocks = block_parts(own)
    local = blocks.Y
    if not tokens.reads_before:
        local = local + torch.diag_embed((own.read * own.write).sum(-1))
    reached = _carried(tokens, edge)
    rows = []
    for b in range(local.shape[1]):
        band = torch.cat([blocks.X[:, b] @ reached, local[:, b]], -1)
        rows.append(pad(band, (0, edge + local.shape[1] * BLOCK - band.shape[-1])))
        reached = torch.cat([_passed(blocks.Phi[:, b], reached), blocks.Z[:, b].mT], -1)
    return torch.cat(rows, 1)[:, start - edge : stop - edge, :stop]


def _carried(tokens: Tokens, edge: int) -> Tensor:
    """What a block's left edge has of the write of each earlier token, `[N, n, edge]`; `edge` is a block's."""
    if edge == 0:
        return tokens.write.new_zeros(len(tokens.write), tokens.write.shape[-1], 0)
    blocks: Blocks = block_parts(cut(tokens.map(lambda x: x[:, :edge]), BLOCK))
    last = blocks.Z.shape[1] - 1
    # from the last block on: the transitions after a block are one product for all of its columns
    pieces, after = [blocks.Z[:, last].mT], blocks.Phi[:, last]
    for b in range(last - 1, -1, -1):
        pieces.insert(0, _passed(after, blocks.Z[:, b].mT))
        after = after @ blocks.Phi[:, b] if after.dim() == 3 else after * blocks.Phi[:, b]
    return torch.cat(pieces, -1)


def _passed(transition: Tensor, states: Tensor) -> Tensor:
    """`Phi` of a block, `[N, n]` if diagonal, times columns `[N, n, m]`."""
    return transition @ states if transition.dim() == 3 else transition[..., None] * states
