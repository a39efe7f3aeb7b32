"""A few heads of an operator, reduced: in units that neither overflow nor vanish when squared, on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.scaling import power_of_two, scaled_tokens
from ..operators.structure import Operator, StateSpace, Tokens
from .balanced import balanced_realisation
from .by_blocks import sweep_rows
from .realisation import Realisation, padded
from .roots import observability_roots
from .sweep import Limits, Swept, sweep, without_overflow

EPS = torch.finfo(torch.float64).eps


class Wish(NamedTuple):
    """What the caller of `reduce` asked for."""

    atol: float
    rank: int | None
    balanced: bool

    def limits(self, op: Operator, unit: Tensor) -> Limits:
        """For heads of the operator that were divided by units `[N]`."""
        ranks = [rank for rank in (self.rank, op.state_size) if rank is not None]
        # what torch.linalg.matrix_rank takes for rounding, with the length for the larger side of any H_i
        rounding = EPS * max(op.length, op.state_size or 0)
        return Limits(self.atol / unit, min(ranks, default=None), rounding)


def of_state_space(op: StateSpace, heads: Tensor, wish: Wish, fixed_width: bool) -> tuple[Realisation, Tensor]:
    """The realisation of some heads, and the diagonal of `T` `[N, L]`; without forming `T`."""
    whole = op.tokens(heads)
    own = op.own_diagonal(heads)
    diagonal = (whole.diagonal_entries() if own is None else own.double()).cpu()
    tokens, unit, _ = scaled_tokens(whole.map(Tensor.cpu))
    limits = wish.limits(op, unit)
    if wish.balanced:
        return _in_units(balanced_realisation(tokens, limits), unit), diagonal
    nothing = tokens.read.new_zeros(len(heads), 0, op.state_size)
    roots = observability_roots(tokens, nothing)
    swept = sweep(tokens, roots, nothing.mT, limits, fixed_width=fixed_width)
    return _in_units(_realisation(swept), unit), diagonal


def of_matrix(op: Operator, head: Tensor, wish: Wish) -> tuple[Realisation, Tensor]:
    """The same for one head `[1]` of an operator without a state, from its `T`."""
    T = op.dense_heads(head).cpu()
    diagonal = T.diagonal(dim1=1, dim2=2).clone()
    T, finite = without_overflow(T.tril(-1))
    T, unit = power_of_two(T)
    first = wish._replace(atol=0.0, rank=None) if wish.balanced else wish
    found = _realisation(sweep_rows(T, first.limits(op, unit)))
    if wish.balanced:
        minimal = padded([found], torch.zeros_like(diagonal))
        tokens = Tokens(read=minimal.C, write=minimal.B, transition=minimal.A, reads_before=True)
        found = balanced_realisation(tokens, wish.limits(op, unit))
    if finite is not None:
        found = replace(found, overflowed=~finite)
    return _in_units(found, unit), diagonal


def _realisation(swept: Swept) -> Realisation:
    """States before tokens from those after them: the first is empty, and what follows the last token is not needed."""
    none = torch.zeros_like(swept.overflowed, dtype=torch.int64)
    sizes = torch.stack([none, *swept.sizes[:-1]], 1) if swept.sizes else none[:, None].expand(-1, 0)
    cut = torch.cat(swept.cut, 1) if swept.cut else sizes.double()
    return Realisation(swept.steps, swept.reads, sizes, torch.linalg.vector_norm(cut, dim=1), swept.overflowed)


def _in_units(found: Realisation, unit: Tensor) -> Realisation:
    """The realisation with the units of the heads, `[N]`, put into what it reads."""
    return replace(found, reads=[read * unit[:, None] for read in found.reads], error=found.error * unit)
