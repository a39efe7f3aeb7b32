"""A dense operator at a few positions: each `H_i` by itself, its smaller side eliminated.

`H H^T - tau^2` has as many positive eigenvalues as `H` has singular values above tau; so has `H^T H - tau^2`. With
`m = min(i, L - i)` that takes `m^2 (L - m)` multiplications for the product and `m^3 / 3` for each tolerance, where the
staircase takes 0.3 `L^3` or more for any position. Nothing of `T` is made but the rows and columns of `H`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operators.tile_sources import TileSource
from .certain import EliminatingEngine
from .cost import Cost
from .elimination import growth_of_first
from .extent import FAR, SMALLEST_NORMAL, smallest_of
from .quadrature import Estimate, Quadrature
from .scaling import largest, power_of_two
from .staircase import Eliminated
from .wanted import Wanted

# what the staircase takes, in units of L^3
STAIRCASE = 0.3
# shorter operators take no time that could be saved
SHORTEST = 512
# rows of a symmetric product that are made together
STRIP = 128
# how many times a tolerance the largest entry of H may be: beyond that the squares overflow
LARGEST_RATIO = 2.0**400


def pays(positions: Sequence[int], length: int) -> bool:
    """Whether positions are cheaper one by one."""
    if length < SHORTEST:
        return False
    sizes = [min(i, length - i) for i in positions]
    return sum(m * m * (length - m) + m**3 / 3 for m in sizes) < STAIRCASE * length**3


def bytes_per_head(positions: Sequence[int], length: int) -> int:
    """What one head needs: the largest H with a copy, all products, and the factors of the largest with two copies."""
    sizes = [min(i, length - i) for i in positions] or [0]
    largest = max(sizes)
    return 8 * (2 * largest * (length - largest) + sum(m * m for m in sizes) + 3 * largest**2 + 8 * length)


def pivoted(A: Tensor) -> tuple[int, float, float]:
    """Positive eigenvalues of symmetric `A` `[m, m]`, by `P L D L^T P^T` with pivots of one and two rows.

    The lower triangle of A is read.

    Returns:
        How many; the largest sum of absolute updates that a diagonal entry has received, and the least row, as in
        `Elimination`. A pair of pivots has an eigenvalue of either sign.
    """
    LD, pivots, _ = torch.linalg.ldl_factor_ex(A)
    paired = pivots < 0
    # pairs follow each other: the first of each is the one with an even number of paired ones before it
    head = paired & (paired.cumsum(0) % 2 == 1)
    d = LD.diagonal().clone()
    beside = torch.nn.functional.pad(LD.diagonal(-1), (0, 1)).where(head, 0.0).abs()
    beside = beside + torch.nn.functional.pad(beside[:-1], (1, 0))
    squares = LD.tril_(-1)
    squares.diagonal(-1).masked_fill_(head[:-1], 0.0)
    squares.square_()
    weights = d.abs() + beside
    least = float((weights * squares.amax(0).sqrt().clamp_min(1.0)).amin())
    squares.mul_(weights)
    # columns lie in the order that rows had when they were eliminated: later exchanges of rows are made good for
    exchanged, paired_rows = pivots.abs().tolist(), paired.tolist()
    updates = squares.cpu().numpy()
    k = 0
    while k < len(exchanged):
        last, other = k + paired_rows[k], exchanged[k] - 1
        if other != last:
            updates[[last, other], :k] = updates[[other, last], :k]
        k = last + 1
    above = int(((d > 0) & ~paired).sum()) + int(head.sum())
    return above, float(updates.sum(1).max()), least


def lower_product(side: Tensor) -> Tensor:
    """The lower triangle of `side side^T` `[m, m]` by strips of rows; what lies above it means little."""
    m = len(side)
    product = side.new_zeros(m, m)
    for start in range(0, m, STRIP):
        stop = min(start + STRIP, m)
        product[start:stop, :stop] = side[start:stop] @ side[:stop].mT
    return product


class FewDense(EliminatingEngine):
    """One head of a dense operator, given by its tiles; counts only.

    The engine is in the operator's own units. Each `H_i` has one of its own, so that its squares neither overflow nor
    vanish.
    """

    state_size = None

    def __init__(self, source: TileSource, finite: Tensor, cost: Cost):
        self.source, self.finite, self.cost = source, finite, cost
        self.length = self.group = source.length
        self.unit = torch.ones(1, dtype=torch.float64, device=finite.device)
        self._grams: dict[int, tuple[Tensor, float]] = {}
        self._units: dict[int, float] = {}

    def _matrix(self, position: int) -> Tensor:
        """`H` `[1, L - i, i]`, zero where the head is not finite."""
        H = self.source.tile(slice(position, self.length), slice(0, position))
        return H if bool(self.finite) else torch.zeros_like(H)

    def _scaled(self, position: int, H: Tensor) -> tuple[Tensor, float]:
        """`H` in units of a power of two, and that unit."""
        H, unit = power_of_two(H)
        self._units[position] = float(unit)
        return H, float(unit)

    def too_small(self, scaled: Tensor, positions: Tensor) -> Tensor | None:
        units = [self._units.get(i, 1.0) for i in positions.tolist()]
        small = scaled / scaled.new_tensor(units) < FAR
        for column, (i, unit) in enumerate(zip(positions.tolist(), units, strict=True)):
            if bool(small[..., column].any()):
                least = float(smallest_of(self._matrix(i)))
                small[..., column] &= unit > 1 and least / unit < SMALLEST_NORMAL
        return small

    def _gram(self, position: int) -> tuple[Tensor, float]:
        """The lower triangle of the smaller Gram matrix `[m, m]` of `H` in units of a power of two, and that unit."""
        if position not in self._grams:
            H = self._matrix(position)
            if not bool(largest(H).isfinite()):
                self.finite = torch.zeros_like(self.finite)
                H = torch.zeros_like(H)
            H, unit = self._scaled(position, H)
            side = H[0].mT if position <= self.length - position else H[0]
            self._grams[position] = lower_product(side), unit
        return self._grams[position]

    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        value, growth = torch.zeros(2, *wanted.positions.shape, dtype=torch.float64, device=tau.device).unbind()
        least = torch.full_like(value, torch.inf)
        for _, s, i in wanted.positions.nonzero().tolist():
            gram, unit = self._gram(i)
            ratio = unit / float(tau[0, s, 0])
            if ratio > LARGEST_RATIO:
                growth[0, s, i] = torch.inf
                continue
            gram = gram * ratio**2
            updates = gram.diagonal().clone()
            gram.diagonal().sub_(1.0)
            # the largest may be far larger than all others, as that of a sink is, and costs no certainty then
            first = updates.argmax()
            updates[first] = growth_of_first(gram[first, first], updates[first])
            above, grown, smallest = pivoted(gram)
            value[0, s, i], growth[0, s, i], least[0, s, i] = above, float(updates.amax()) + grown, smallest
        return Eliminated(value, growth, least)

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        values = self.unit.new_zeros(len(heads), self.length // 2)
        for q, i in enumerate(positions.tolist()):
            size = min(i, self.length - i)
            self.cost.note(1, 4.0 * size**2 * (self.length - size) - 4 / 3 * size**3)
            H, unit = self._scaled(i, self._matrix(i))
            values[q, :size] = torch.linalg.svdvals(H[0]) * unit
        return values

    def known_zero(self) -> Tensor:
        raise NotImplementedError

    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        raise NotImplementedError
