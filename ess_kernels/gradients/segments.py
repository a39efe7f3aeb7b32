"""A recurrence cut into blocks whose edges are the positions asked for.

A block here has any number of tokens up to a power of two, and is filled up with tokens that change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.blocks import block_parts, identity_like, products_after, products_upto
from ..operators.structure import Tokens

# The most tokens a block: transitions with a rank-one term solve a triangular system of that size, and matrices go
# from token to token with that many columns.
LONGEST = 256
LONGEST_RANK_ONE = 64
LONGEST_DENSE = 32


class Segments(NamedTuple):
    """What blocks show to their outside, as `engine.blocks.Blocks` has it.

    Attributes:
        X, Z: `[N, S, c, n]`.
        Phi: `[N, S, n]` or `[N, S, n, n]`.
        edges: where the S blocks start, and L.
    """

    X: Tensor
    Z: Tensor
    Phi: Tensor
    edges: list[int]


def cut_at(tokens: Tokens, positions: Sequence[int]) -> Segments:
    """The blocks of a recurrence with tokens `[N, L, ...]`, cut at positions in ascending order."""
    length, n = tokens.read.shape[1:]
    ends = [0, *positions, length]
    c = block_length(ends, n, _longest(tokens))
    edges = [start for a, e in pairwise(ends) for start in range(a, e, c)] + [length]
    X, Z, Phi = _parts(_gathered(tokens, edges, c))
    return Segments(X, Z, Phi, edges)


def block_length(ends: Sequence[int], n: int, longest: int) -> int:
    """The power of two for which the QRs of all blocks cost least: `n^2 (n + c)` each, however full they are."""
    lengths = torch.tensor(ends, device="cpu").diff()
    choices = [1 << k for k in range(longest.bit_length())]
    return min(choices, key=lambda c: int((-(-lengths // c)).sum()) * (n + c))


def _longest(tokens: Tokens) -> int:
    if tokens.rank_one:
        return LONGEST_RANK_ONE
    return LONGEST if tokens.diagonal else LONGEST_DENSE


def _gathered(tokens: Tokens, edges: Sequence[int], c: int) -> Tokens:
    """Every block's tokens, `[N, S, c, ...]`."""
    length = tokens.read.shape[1]
    starts = torch.tensor(edges[:-1], device=tokens.read.device)
    if len(starts) * c == length:
        return tokens.map(lambda x: x.unflatten(1, (-1, c)))
    ends = torch.tensor(edges[1:], device=tokens.read.device)
    index = starts[:, None] + torch.arange(c, device=starts.device)
    # beyond its end a block has the padding token, which is put behind the last one
    index = torch.where(index < ends[:, None], index, length).flatten()
    one = tokens.map(lambda x: torch.zeros_like(x[:, :1]))
    padded = tokens.cat(replace(one, transition=identity_like(one.transition, one.read)), dim=1)
    return padded.map(lambda x: x.index_select(1, index).unflatten(1, (-1, c)))


def _parts(cut: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    if not cut.diagonal:
        blocks = block_parts(cut)
        return blocks.X, blocks.Z, blocks.Phi
    # without the block's own rows of T, which are in no H at its edges
    a = cut.transition
    running = products_upto(a, inclusive=True)
    seen = products_upto(a, inclusive=False) if cut.reads_before else running
    return cut.read * seen, cut.write * products_after(a), running[..., -1, :]
