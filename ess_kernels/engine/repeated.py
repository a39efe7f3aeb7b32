"""Recurrences whose tokens repeat: blocks are alike, and their parts are made once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..operators.structure import Tokens
from .blocks import Blocks, block_parts, cut


@dataclass
class RepeatedBlocks(Blocks):
    """Parts that several blocks have in common.

    Attributes:
        places: int64 `[B]`, where the parts of each block lie along the second axis.
    """

    places: Tensor

    @property
    def number(self) -> int:
        return len(self.places)

    def at(self, index):
        heads, numbers = index
        return heads, self.places[numbers]

    def every(self, x: Tensor) -> Tensor:
        return x[:, self.places]


def cut_repeated(period: Tokens, length: int, c: int) -> tuple[Tokens, Tensor]:
    """Cuts `length` tokens into blocks of `c` and keeps one of each kind.

    Args:
        period: the tokens that repeat, `[N, r, ...]`.

    Returns:
        The tokens of the blocks that differ, `[N, kinds, c, ...]`, and the kind of each block, int64 `[B]`. The last
        block, if it is not full, is padded with zero tokens as in `cut`.
    """
    r, device = period.read.shape[1], period.read.device
    whole, rest = divmod(length, c)
    kinds = min(r // math.gcd(r, c), whole)

    def tokens(first: int, count: int) -> Tokens:
        index = torch.arange(first, first + count, device=device) % r
        return cut(period.map(lambda x: x[:, index]), c)

    blocks, places = tokens(0, kinds * c), torch.arange(whole, device=device) % max(kinds, 1)
    if rest:
        blocks = blocks.cat(tokens(whole * c, rest), dim=1)
        places = torch.cat([places, places.new_full((1,), kinds)])
    return blocks, places


def repeated_parts(blocks: Tokens, places: Tensor) -> RepeatedBlocks:
    """The parts of blocks of which `cut_repeated` has kept one of each kind."""
    parts = block_parts(blocks)
    return RepeatedBlocks(parts.X, parts.Y, parts.Z, parts.Phi, places)
