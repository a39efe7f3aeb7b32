"""A recurrence at a few positions: no boundary recurrences, both root factors straight from all tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.structure import Tokens
from .blocks import products_after, products_upto
from .certainty import Counts
from .cost import Cost
from .engine import Engine
from .lost import lost_at_one_position, lost_in_states
from .parallel import svdvals, triangular_root
from .scaling import LARGE_UNIT, largest, scaled_tokens


class FewPositions(Engine):
    """`N` heads of a diagonal recurrence; every answer comes from singular values, `O(L n^2)` a position."""

    lost_span = 1

    def __init__(self, tokens: Tokens, cost: Cost):
        self.length, self.n = tokens.read.shape[1:]
        self.state_size = self.n
        self.cost = cost
        self.tokens, self.unit, self.finite = scaled_tokens(tokens)
        # whether no product on the way to the singular values can overflow
        self.supported = bool((largest(self.tokens.transition) <= 1).all() and (self.unit <= LARGE_UNIT).all())

    def counts(self, positions: Tensor, atol: Tensor) -> Counts:
        tau = atol / self.unit[:, None]
        result = Counts.empty((len(self.unit), len(atol), self.length - 1), self.unit.device)
        open_ones = torch.zeros_like(result.redone)
        open_ones[..., positions - 1] = tau.isfinite()[..., None]
        self._count_by_values(open_ones, tau, result)
        result.redone.fill_(False)
        return Counts(*(x[..., positions - 1] for x in result))

    def _lost(self, span: int) -> Tensor:
        return lost_in_states(self.tokens, span)

    def lost_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        heads, positions = torch.broadcast_tensors(heads, positions)
        lost = self.unit.new_zeros(heads.shape)
        for i in positions.unique().tolist():
            here = positions == i
            lost[here] = lost_at_one_position(*self._sides(heads[here], i))
        return lost if self.already_lost is None else lost + self.already_lost.expand(-1, self.length)[heads, positions]

    def _sides(self, heads: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Writes before position `i`, carried to it, and reads from it on, as they see the state there."""
        read, write, a = self.tokens.read, self.tokens.write, self.tokens.transition
        if len(heads) < len(read):
            read, write, a = read[heads], write[heads], a[heads]
        seen = products_upto(a[:, i:], inclusive=not self.tokens.reads_before)
        return write[:, :i] * products_after(a[:, :i]), read[:, i:] * seen

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        values = self.unit.new_zeros(len(heads), self.n)
        for i in positions.unique().tolist():
            here = positions == i
            written, seen = self._sides(heads[here], i)
            found = svdvals(_tall_root(seen) @ _tall_root(written).mT)
            cap = min(i, self.length - i)
            found[:, cap:] = 0.0
            values[here] = found
        return values


def _tall_root(A: Tensor) -> Tensor:
    """`R` `[N, n, n]` with `R^T R = A^T A` for `A` `[N, m, n]`: QR of slices, then of their stacked factors."""
    N, m, n = A.shape
    rows = 4 * n
    A = torch.nn.functional.pad(A, (0, 0, 0, -m % rows if m > rows else max(0, n - m)))
    if m <= rows:
        return triangular_root(A)
    slices = triangular_root(A.reshape(-1, rows, n)).reshape(N, -1, n)
    return _tall_root(slices)
