"""Numbers of one head that do not fit into float64 together once they have a common unit.

Engines scale every head by a power of two that brings its largest numbers near 1. Numbers 2^1022 times smaller lose
digits then, or become zero. Beside the largest one they mean nothing: singular values of a matrix are known to some ulp
of the largest. But an `H_i` may have no other numbers, and a tolerance may be as small as they are. This file finds the
positions where such numbers were, so that no answer is made of the zeros that they became.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.compressed import Compressed
from ..operators.structure import Operator, StateSpace, Tiled
from .zeros import zero_positions_of

# the smallest number of float64 that has all of its digits
SMALLEST_NORMAL = 2.0**-1022
# Tolerances and singular values above this many units do not depend on what was rounded away below the smallest normal
# number, not even where transitions have made that 1e70 times larger: engines of recurrences allow no more.
FAR = 2.0**-700
# Where the unit is above this, products of gates count as well: they may vanish with the unit taken out, and not
# without. Below, only what is less than 1e-288 in the operator's own units can vanish so.
LARGE_FOR_GATES = 2.0**64
# bytes of rows that are looked at together
TOGETHER = 2**23


class Extent(NamedTuple):
    """What is known of the numbers in `H_i`.

    Attributes:
        nonzero: bool `[N, L]`, whether there are any that are not zero.
        smallest: float64 `[N, L]`, none of these is smaller than this, in magnitude and in the operator's own units.
    """

    nonzero: Tensor
    smallest: Tensor

    def rounded(self, unit: Tensor) -> Tensor:
        """bool `[N, L]`: whether `H_i` may have lost a number to the unit `[N]`."""
        unit = unit[:, None]
        return (unit > 1) & self.nonzero & (self.smallest / unit < SMALLEST_NORMAL)


def rounded_positions(op: Operator, heads: Tensor, unit: Tensor) -> Tensor:
    """bool `[N, L]`: whether `H_i` may have lost a number to the unit `[N]`; in bad heads it means nothing."""
    if not bool((unit > 1).any()):
        return torch.zeros(len(heads), op.length, dtype=torch.bool, device=op.device)
    return extent_of(op, heads, unit).rounded(unit)


def extent_of(op: Operator, heads: Tensor, unit: Tensor) -> Extent:
    """The extent of some heads, for `rounded`."""
    if isinstance(op, StateSpace):
        zero = zero_positions_of(op, heads)
        smallest = _smallest_products(op, heads, unit > LARGE_FOR_GATES)[:, None].expand_as(zero)
        return Extent(~zero, smallest)
    assert isinstance(op, Tiled)
    if isinstance(op, Compressed):
        # its parts have a unit of their own, so that rows no longer tell
        smallest = torch.zeros(len(heads), op.length, dtype=torch.float64, device=op.device)
        return Extent(torch.ones_like(smallest, dtype=torch.bool), smallest)
    each = max(1, TOGETHER // max(1, 8 * len(heads) * op.length))
    starts = reversed(range(0, op.length, each))
    return extent_of_rows((op.rows(heads, start, min(op.length, start + each)) for start in starts), op.length)


def extent_of_rows(bands: Iterable[Tensor], length: int) -> Extent:
    """The extent of `T`, of which bands of rows `[N, rows, stop]` come one after the other, the last rows first."""
    below: Tensor | None = None  # the smallest number of every column in the rows that came before
    found = []
    for band in bands:
        N, rows, stop = band.shape
        before = torch.ones(rows, stop, dtype=torch.bool, device=band.device).tril(stop - rows - 1)
        size = torch.where((band != 0) & before, band.abs(), torch.inf)
        if below is None:
            below = size.new_full((N, length), torch.inf)
        # in row r the smallest numbers from this row on
        least = torch.cat([size, below[:, None, :stop]], 1).flip(1).cummin(1).values[:, 1:].flip(1)
        below = least[:, 0]
        found.append(torch.where(before, least, torch.inf).amin(-1))
    smallest = torch.cat(found[::-1], 1)
    return Extent(smallest < torch.inf, smallest)


def smallest_of(x: Tensor) -> Tensor:
    """The smallest magnitude of each `x[n]` that is not zero, `[N]`; infinity where there is none."""
    flat = x.flatten(1)
    if not flat.shape[1]:
        return x.new_full((len(x),), torch.inf)
    return torch.where(flat != 0, flat.abs(), torch.inf).amin(1)


def _smallest_products(op: StateSpace, heads: Tensor, gates: Tensor) -> Tensor:
    """No product of a read, a write and what lies between them is smaller than this and not zero, float64 `[N]`.

    Where `gates`, bool `[N]`, is false, transitions are taken for 1.
    """
    tokens = op.one_period(heads)
    if tokens is None:
        tokens = op.tokens(heads)
    periods = -(-op.length // max(1, tokens.read.shape[1]))
    product = smallest_of(tokens.read).log2() + smallest_of(tokens.write).log2()
    if tokens.diagonal:
        size = tokens.transition.abs()
        between = periods * torch.where(size > 0, size, 1.0).amin(-1).clamp_max(1.0).log2().sum(-1)
    else:
        # what terms that cancel come to is not known
        between = torch.full_like(product, -torch.inf)
    return torch.exp2(torch.where(gates, product + between, product))
