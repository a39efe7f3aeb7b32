"""What rounding takes from a recurrence with rank-one transitions, position by position; `lost.py` asks the question.

Token t moves the states by `A_t = diag(d_t) + b_t a_t^T`. That rounds them by up to `EPS step_t |F_t|`, where `F_t` is
what all earlier tokens wrote, and `step_t` the size of the terms that are added up. From then on the error passes
through transitions, which make it larger by at most their norms, to where it is read. A write that is erased by the
next token has still been rounded: so `|F_t|` is bounded from the writes themselves, not from what is left of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.over_time import decayed_sum
from ..operators.structure import Tokens
from .certainty import EPS
from .lost import ROUNDINGS_OF_SUM


class TokenSizes(NamedTuple):
    """What each token of a recurrence does at most, float64 `[N, L]`.

    Attributes:
        read, write: norms of what it reads and writes.
        norm: a bound of the 2-norm of its transition.
        step: the same of the terms of which the transition is made, twice over where a block's substitution rounds
            through the updates of two tokens.
    """

    read: Tensor
    write: Tensor
    norm: Tensor
    step: Tensor

    @classmethod
    def of(cls, tokens: Tokens) -> TokenSizes:
        a, b, d = tokens.lookup, tokens.updates, tokens.transition
        assert a is not None
        largest, lookup, update = d.abs().amax(-1), a.norm(dim=-1), b.norm(dim=-1)
        # A^T A = D^2 + v a^T + a v^T with v = D b + |b|^2 a / 2, and the last two have the eigenvalue a.v + |a| |v|
        v = d * b + 0.5 * update.square()[..., None] * a
        more = ((a * v).sum(-1) + lookup * v.norm(dim=-1)).clamp_min(0.0)
        norm = (largest.square() + more).sqrt()
        terms = lookup * update
        return cls(tokens.read.norm(dim=-1), tokens.write.norm(dim=-1), norm, (largest + terms) * (1 + terms))

    def padded(self, c: int) -> TokenSizes:
        """With tokens that do nothing up to a multiple of `c`."""
        padding = -self.read.shape[1] % c
        fill = {"norm": 1.0}
        return TokenSizes(
            *(torch.nn.functional.pad(x, (0, padding), value=fill.get(name, 0.0)) for name, x in self._asdict().items())
        )


def lost_in_rank_one_states(
    sizes: TokenSizes, reach: Tensor, seen: Tensor, c: int, reads_before: bool, span: int
) -> Tensor:
    """A bound of the 2-norm of the error of `H_i` by rounding in the states: float64 `[N, ceil(L / span)]`.

    To first order in the unit roundoff; infinite where the bound overflows.

    Args:
        sizes: of the tokens, `[N, L]`.
        reach: squared Frobenius norms of the reachability roots at the left edges of blocks, `[N, B]`.
        seen: of the observability roots at the right edges.
        c: tokens a block.
        reads_before: see `Tokens`.
        span: this many positions share a bound, `c` or fewer.
    """
    length = sizes.read.shape[1]
    sizes = sizes.padded(c)
    before, after = _states(sizes, reach, c), _rows(sizes, seen, c, reads_before)
    # what a token adds to the errors of states, and of rows
    fresh = sizes.step * before + sizes.write
    following = torch.cat([after.unflatten(1, (-1, c))[..., 1:], seen.sqrt()[..., None]], -1).flatten(1)
    read_too = torch.hypot(following, sizes.read)
    # a read that comes after its own transition is seen through that
    fresh_rows = sizes.step * read_too + sizes.read * (1.0 if reads_before else sizes.norm)
    everywhere = (sizes.step * before * read_too).sum(1, True) + ROUNDINGS_OF_SUM * (before * after).amax(1, True)

    norms = _spanned(sizes.norm, span, 1.0)
    growth, norm = norms.clamp_min(1.0).prod(-1), norms.prod(-1)
    F, G, new, new_rows = (_spanned(x, span) for x in (before, after, fresh, fresh_rows))
    if span == 1:
        # a position lies before its token: states have not passed it, and rows have
        errors = _arriving(new[..., 0], norm)
        row_errors = norm * _arriving(new_rows[..., 0].flip(1), norm.flip(1)).flip(1) + new_rows[..., 0]
    else:
        new, new_rows = growth * new.sum(-1), growth * new_rows.sum(-1)
        errors = growth * _arriving(new, norm) + new
        row_errors = growth * _arriving(new_rows.flip(1), norm.flip(1)).flip(1) + new_rows
    F, G = F.amax(-1), G.amax(-1)
    lost = errors * G + F * row_errors + ROUNDINGS_OF_SUM * F * G
    # where transitions grow, products of their norms say less than the sum over all tokens of what each of them loses
    lost = torch.minimum(lost.nan_to_num(nan=torch.inf), everywhere.nan_to_num(nan=torch.inf))
    return (EPS * lost)[:, : -(-length // span)]


def _spanned(x: Tensor, span: int, fill: float = 0.0) -> Tensor:
    return torch.nn.functional.pad(x, (0, -x.shape[1] % span), value=fill).unflatten(1, (-1, span))


def _states(sizes: TokenSizes, reach: Tensor, c: int) -> Tensor:
    """Bounds of the norms of all states before each token, `[N, L]`, from their norms at the edges of blocks."""
    write, norm = (x.square().unflatten(1, (-1, c)) for x in (sizes.write, sizes.norm))
    new = torch.cat([reach[..., None], write[..., :-1]], -1)
    kept = torch.cat([torch.zeros_like(reach)[..., None], norm[..., :-1]], -1)
    return decayed_sum(new, kept, -1).sqrt().flatten(1)


def _rows(sizes: TokenSizes, seen: Tensor, c: int, reads_before: bool) -> Tensor:
    """Bounds of the norms of all rows from each token on, as they see the state before it, `[N, L]`."""
    read, norm = (x.square().unflatten(1, (-1, c)).flip(-1) for x in (sizes.read, sizes.norm))
    new = read if reads_before else norm * read
    new = torch.cat([new[..., :1] + norm[..., :1] * seen[..., None], new[..., 1:]], -1)
    return decayed_sum(new, norm, -1).flip(-1).sqrt().flatten(1)


def _arriving(new: Tensor, norm: Tensor) -> Tensor:
    """What the spans before each one have added up to, `[N, spans]`."""
    total = decayed_sum(new, norm, 1)
    return torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], 1)
