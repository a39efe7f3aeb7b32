"""What rounding takes from a recurrence before anything is eliminated: how wrong `H_i` may be, position by position.

`H_i` is a product of what the earlier tokens wrote and what the later ones read: for diagonal transitions
`T_ij = sum_k read_ik a_ik ... write_jk`. Every factor on the way from token j to token i is rounded, and so is every
product with it: term k is wrong by up to one rounding for every token between. Where terms cancel, as in `q = [a, a]`,
`k = [b, -b]`, those errors are all that is left, however exactly the singular values of what was computed are known.
The sum over k of `(norm of all reads) (norm of all writes)`, each once with its own errors, bounds the Frobenius norm
of the error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.structure import Tokens
from .blocks import cut
from .certainty import EPS

# at least this many positions in a row share one bound at first; where that is too wide, every position gets its own
SPAN = 16
# in PyTorch every span takes a few calls, so that no more than this many spans are made
MOST_SPANS = 32
# tokens without decay that take one rounding, of what is summed up over them
TOKENS_A_ROUNDING = 8
# roundings of the sum over the states
ROUNDINGS_OF_SUM = 8


class Spans(NamedTuple):
    """Tokens in spans of `size`, state by state; `[N, spans, n]` each.

    Attributes:
        read, write: norms of what the span reads and writes.
        decay: the product of its transitions, in magnitude.
        growth: the product of those that are larger than 1.
        gate: what every path from an earlier span into this one passes at least: the largest transition, at most 1.
        size: tokens a span.
    """

    read: Tensor
    write: Tensor
    decay: Tensor
    growth: Tensor
    gate: Tensor
    size: int

    @classmethod
    def of(cls, tokens: Tokens, size: int) -> Spans:
        spans = cut(tokens, size)
        factors = spans.transition.abs()
        # padding tokens in the last span have no rows of T
        present = torch.arange(factors.shape[1] * size, device=factors.device).view(-1, size, 1) < tokens.read.shape[1]
        largest = (factors * present).amax(-2).clamp_max(1.0)
        if tokens.reads_before:
            # a row that reads before its own transition need not pass any
            largest = torch.ones_like(largest)
        growth = factors.clamp_min(1.0).prod(-2)
        return cls(_norms(spans.read), _norms(spans.write), factors.prod(-2), growth, largest, size)

    @classmethod
    def joined(cls, pieces: Iterable[Spans]) -> Spans:
        """The spans of several slices of heads, one slice after the other."""
        *tensors, sizes = zip(*pieces, strict=True)
        read, write, decay, growth, gate = map(torch.cat, tensors)
        return cls(read, write, decay, growth, gate, sizes[0])


def few_spans(length: int) -> int:
    """The length of a span where every span takes a few calls: a multiple of `SPAN`."""
    return SPAN * -(-length // (SPAN * MOST_SPANS))


def lost_in_states(tokens: Tokens, size: int = SPAN) -> Tensor:
    """A bound of the 2-norm of the error of `H_i` by rounding in diagonal states: float64 `[N, ceil(L / size)]`.

    Position i belongs to span `i // size`. To first order in the unit roundoff; infinite where the bound overflows.
    """
    return lost_in_spans(Spans.of(tokens, size))


def lost_in_spans(spans: Spans) -> Tensor:
    """The same from what is known of spans, `[N, spans]`.

    Writes and reads count with the decay of whole spans, so that nothing need be known of single tokens.
    """
    # forwards for writes, backwards for reads, in one scan
    new = torch.stack([spans.write * spans.growth, (spans.read * spans.growth).flip(1)])
    decay, growth = (torch.stack([x, x.flip(1)]) for x in (spans.decay, spans.growth))
    roundings = torch.where(decay == 1, spans.size / TOKENS_A_ROUNDING, float(spans.size))
    norm = error = torch.zeros_like(new[:, :, 0])
    norms, errors = torch.empty_like(new), torch.empty_like(new)
    for b in range(new.shape[2]):
        fresh = new[:, :, b]
        # the earlier tokens' norms take the roundings of one more span
        aged, young = error + norm * roundings[:, :, b], fresh * roundings[:, :, b]
        norms[:, :, b] = torch.hypot(norm * growth[:, :, b], fresh)
        errors[:, :, b] = aged * growth[:, :, b] + young
        error = aged * decay[:, :, b] + young
        norm = torch.hypot(norm * decay[:, :, b], fresh)
    (write, read), (write_error, read_error) = ((x[0], x[1].flip(1)) for x in (norms, errors))
    lost = (spans.gate * (write * (read_error + ROUNDINGS_OF_SUM * read) + write_error * read)).sum(-1)
    return (EPS * lost).nan_to_num(nan=torch.inf)


def lost_at_one_position(write: Tensor, read: Tensor) -> Tensor:
    """The same for one position, `[N]`, from the writes before it `[N, i, n]`, carried to it, and the reads after it.

    Reads `[N, L - i, n]` are as the state at the position is seen. A token is as many roundings away as tokens.
    """
    ages = (torch.arange(x.shape[1], 0, -1, device=x.device, dtype=x.dtype)[:, None] for x in (write, read))
    write_error, read_error = (_norms(x * age) for x, age in zip((write, read.flip(1)), ages, strict=True))
    written, seen = _norms(write), _norms(read)
    lost = (written * (read_error + ROUNDINGS_OF_SUM * seen) + write_error * seen).sum(-1)
    return (EPS * lost).nan_to_num(nan=torch.inf)


def lost_in_dense_states(
    reach: Tensor, written: Tensor, seen: Tensor, read: Tensor, transition: Tensor, c: int
) -> Tensor:
    """The same for dense transitions, `[N, 1]`: one number for all positions of a head.

    A step from token t to the next one rounds the states by up to `EPS |A_t| |F_t|`, which later tokens see as large as
    `|G_t|`: the bound is the sum of `EPS |A_t| |F_t| |G_t|`. Inside of a block `|F_t|` and `|G_t|` are taken to be at
    most the larger one of those at its edges, with the block's own tokens added: so it is where transitions do not
    grow, and where all tokens share one matrix. Squared Frobenius norms by block, `[N, B]`:

    Args:
        reach: of the reachability root at the left edge.
        written: of the block's writes, as they are written and as they are at its end: `squares(write, Z)`.
        seen: of the observability root at the right edge.
        read: of the block's reads, as they read and seen from its left edge: `squares(read, X)`.
        transition: the largest of the block's transitions.
        c: tokens a block.
    """
    reach = torch.maximum(reach, torch.cat([reach[:, 1:], reach[:, -1:]], 1)) + written
    seen = torch.maximum(seen, torch.cat([seen[:, :1], seen[:, :-1]], 1)) + read
    lost = EPS * c * (transition.clamp_min(1.0) * reach * seen).sqrt().sum(1)
    return lost.nan_to_num(nan=torch.inf)[:, None]


def squares(token: Tensor, carried: Tensor) -> Tensor:
    """`[N, B]` from `[N, B, c, n]` each: what tokens write or read, and what that has become at the block's edge.

    A write that the next token erases has been rounded all the same, and one that grows is rounded as large as it is.
    """
    return token.square().sum((-2, -1)) + carried.square().sum((-2, -1))


def _norms(x: Tensor) -> Tensor:
    return x.square().sum(-2).sqrt()
