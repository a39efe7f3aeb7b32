"""Singular values of `Gamma_i`, `O_i` and the content `S_i` of a recurrence, at chosen positions.

All three are kept as rows of state vectors, `[m, n]`: the columns of `Gamma_i` (one for each earlier write), the rows
of `O_i` (one for each later read), or the columns of `S_i` (one for each channel of the values). Going one token
further multiplies every row by a transition and then adds one row, or adds to all of them. At the edges of blocks of
tokens the triangle of a QR decomposition takes the place of all rows so far: it has n rows and the same singular
values, and nothing is squared.

The edges are found one block after the other. From there all blocks that hold a position go on side by side, token by
token, so that only as many steps are taken as a block has tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ..engine.blocks import Blocks, block_parts, cut
from ..engine.boundary import carry, observe_roots, reach_roots
from ..engine.parallel import svdvals
from ..engine.state_space import block_length
from ..memory import budget_in_bytes
from ..metrics import MAX_SMALL, small_spectra
from ..operators.structure import StateSpace, Tokens

Which = Literal["causal", "observable", "content"]

# bytes of rows, with what they are moved by, in work at once
WORKSPACE = 1 << 26


def spectra_of_states(
    tokens: Tokens, which: Which, positions: Tensor, most: int, c: int, values: Tensor | None = None
) -> Tensor:
    """The largest singular values, float64 `[N, P, most]`, descending, zero padded.

    Args:
        tokens: of N heads, all of them finite.
        positions: int64 `[P]`, distinct and ascending, each in `1..L-1`.
        most: how many values to return.
        c: tokens a block, a power of two.
        values: float64 `[N, L, V]`, what each token writes into the state. Only the content reads it.
    """
    found = tokens.read.new_zeros(len(tokens.read), len(positions), most)
    if not found.numel():
        return found
    # tokens that no position can see are left out: later ones, or for O_i the blocks before the first position
    first, stop = 0, int(positions[-1]) + 1
    if which == "observable":
        first, stop = int(positions[0]) // c * c, tokens.read.shape[1]
    cut_tokens = cut(tokens.map(lambda x: x[:, first:stop]), c)
    written = None if values is None else _cut_values(values[:, first:stop], c)
    edges = _edges(block_parts(cut_tokens), which, written)
    number, offset = (positions - first) // c, (positions - first) % c
    places = torch.full((edges.shape[1], c), -1, device=positions.device)
    places[number, offset] = torch.arange(len(positions), device=positions.device)
    offsets = offset.unique().tolist()
    heads, numbers = _pairs(len(found), number.unique())
    each = max(1, min(WORKSPACE, budget_in_bytes() // 4) // (8 * _numbers_per_block(cut_tokens, edges, c)))
    for head, block in zip(heads.split(each), numbers.split(each), strict=True):
        own = _blocks_at(cut_tokens, head, block)
        its_values = None if written is None else written[head, block]
        for t, rows in _walk(own, which, edges[head, block], its_values, offsets):
            place = places[block, t]
            asked = place >= 0
            if bool(asked.any()):
                s = _singular_values(rows[asked])[:, :most]
                found[head[asked], place[asked], : s.shape[1]] = s
    return found


def bytes_of_walk(op: StateSpace, positions: int) -> int:
    """What one head's blocks take at most beside their tokens: those that hold a position, each with its rows."""
    n = op.state_size
    c = block_length(n, entropy=True)
    blocks = min(positions, -(-op.length // c))
    of_tokens = c * (n * n if not op.diagonal and not op.rank_one else 5 * n)
    return 8 * blocks * (of_tokens + 3 * (n + c) * n)


def _walk(
    tokens: Tokens, which: Which, rows: Tensor, values: Tensor | None, offsets: list[int]
) -> Iterator[tuple[int, Tensor]]:
    """Offsets inside of blocks, with the rows of all blocks there, as far as the ascending `offsets` ask for.

    Args:
        tokens: of J blocks, `[J, c, ...]`.
        rows: at the blocks' edges, `[J, m, n]`.
        values: `[J, c, V]`.
    """
    if which == "observable":
        for t in range(tokens.read.shape[1] - 1, offsets[0] - 1, -1):
            rows = _observed(tokens, t, rows)
            yield t, rows
        return
    yield 0, rows
    for t in range(offsets[-1]):
        rows = _moved(tokens, t, rows)
        if values is None:
            rows = torch.cat([rows, tokens.write[:, t, None]], 1)
        else:
            rows = torch.addcmul(rows, values[:, t, :, None], tokens.write[:, t, None])
        yield t + 1, rows


def _observed(tokens: Tokens, t: int, rows: Tensor) -> Tensor:
    """Rows of reads after token t of the blocks, and its own, as the state before the token is seen by them."""
    read = tokens.read[:, t, None]
    if tokens.reads_before:
        return torch.cat([_moved(tokens, t, rows, transposed=True), read], 1)
    return _moved(tokens, t, torch.cat([rows, read], 1), transposed=True)


def _moved(tokens: Tokens, t: int, rows: Tensor, transposed: bool = False) -> Tensor:
    """`rows A_t^T`, or `rows A_t`."""
    return tokens.move(t, rows.mT, transposed).mT


def _blocks_at(cut_tokens: Tokens, heads: Tensor, numbers: Tensor) -> Tokens:
    return cut_tokens.map(lambda x: x[heads, numbers])


def _edges(blocks: Blocks, which: Which, values: Tensor | None) -> Tensor:
    """The rows at the left edge of every block, or at the right edge for `O_i`: `[N, B, m, n]`."""
    if which == "causal":
        return reach_roots(blocks)
    if which == "observable":
        return observe_roots(blocks)
    assert values is not None
    rows = values.new_zeros(*values.shape[:2], values.shape[3], blocks.Z.shape[-1])
    for b in range(blocks.number - 1):
        rows[:, b + 1] = carry(rows[:, b], blocks.Phi[:, b]) + values[:, b].mT @ blocks.Z[:, b]
    return rows


def _cut_values(values: Tensor, c: int) -> Tensor:
    """Values `[N, L, V]` of blocks, `[N, B, c, V]`, zero behind the last token."""
    return torch.nn.functional.pad(values, (0, 0, 0, -values.shape[1] % c)).unflatten(1, (-1, c))


def _pairs(heads: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Every head with every one of the blocks, head by head."""
    every = torch.arange(heads, device=numbers.device)
    return every.repeat_interleave(len(numbers)), numbers.repeat(heads)


def _numbers_per_block(cut_tokens: Tokens, edges: Tensor, c: int) -> int:
    """How many numbers are in work for a block: its tokens, and its rows in three copies."""
    of_tokens = sum(x.shape[2:].numel() for x in cut_tokens.tensors)
    return of_tokens + 3 * (edges.shape[2] + c) * edges.shape[3]


def _singular_values(rows: Tensor) -> Tensor:
    """Those of `[J, m, n]`, descending; NaN where a product of transitions has overflowed."""
    if min(rows.shape[1:]) <= MAX_SMALL:
        return small_spectra(rows).values
    finite = rows.isfinite().flatten(1).all(1)
    return svdvals(torch.where(finite[:, None, None], rows, 0.0)).masked_fill(~finite[:, None], torch.nan)
