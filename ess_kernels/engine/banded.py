"""One head of a lower triangular `T` that is never whole: bands of rows are made when they are needed, and go again.

What stays is what all tolerances share, the two first products, a quarter of `T` each. The left half of the positions
then needs the upper left quarter of `T` besides, the right half the lower right one, and one follows the other. Making
rows once more costs `L^2` operations where an elimination takes `L^3`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..caching import cached_property
from .cost import Cost
from .elimination import subtract_symmetric
from .outside import Outside
from .scaling import largest, power_of_two
from .staircase import Answer, Eliminated
from .tiled import Matrix, beside, schur_bound

# `make(start, stop)` gives rows `start..stop-1` of `T`, columns `0..stop-1`: float64 `[1, rows, stop]`, of which what
# lies strictly below the diagonal is read. It is asked for the same rows more than once.
Make = Callable[[int, int], Tensor]

# rows of a band: a small share of `T`, for making them takes a few copies, but enough for products to be fast
LEAST_ROWS, SHARE = 64, 64


def band_rows(length: int) -> int:
    return max(LEAST_ROWS, length // SHARE)


def bytes_per_head(length: int) -> int:
    """What the head needs while it is in work: two products, half of the positions with its factors, and bands."""
    return 14 * length * length + 64 * band_rows(length) * length


def _lower(rows: Tensor, start: int) -> Tensor:
    """Rows of `T` from row `start` on, with zeros on and above the diagonal. Only columns from `start` on have any."""
    rows[..., start:].tril_(-1)
    return rows


class BandedMatrix(Matrix):
    """As `Matrix`, for one head, without `T`."""

    def __init__(self, make: Make, length: int, finite: Tensor, budget: int, cost: Cost):
        self._make = make
        self.length = self.group = length
        magnitude = torch.zeros(1, dtype=torch.float64, device=finite.device)
        if bool(finite.all()):
            for start, stop in self._bands():
                magnitude = torch.maximum(magnitude, largest(_lower(make(start, stop).clone(), start)))
        self.finite = finite & magnitude.isfinite()
        magnitude = torch.where(self.finite, magnitude, 0.0)
        self._factor, self.unit = power_of_two(torch.ones_like(magnitude), magnitude)
        self.budget, self.cost = beside(budget, 4 * length * length, length), cost
        self._grams = {}

    def _bands(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
        """Where bands of the rows `first..last-1` start and stop."""
        last, rows = self.length if last is None else last, band_rows(self.length)
        for start in range(first, last, rows):
            yield start, min(start + rows, last)

    def _band(self, start: int, stop: int) -> Tensor:
        """Rows `start..stop-1` `[1, rows, stop]`, scaled, zero on and above the diagonal."""
        if not bool(self.finite):
            return torch.zeros(1, stop - start, stop, dtype=torch.float64, device=self.finite.device)
        return _lower(self._make(start, stop) * self._factor[:, None, None], start)

    def _block(self, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """A block of scaled `T`, `[1, rows, columns]`, each from a first to before a last one."""
        shape = (1, rows[1] - rows[0], columns[1] - columns[0])
        return self._fill(torch.empty(shape, dtype=torch.float64, device=self.finite.device), rows, columns)

    def _fill(self, block: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """The block `[1, rows, columns]` with its numbers."""
        (top, bottom), (left, right) = rows, columns
        for start, stop in self._bands(top, bottom):
            seen = self._band(start, stop)[..., left:right]
            target = block[:, start - top : stop - top]
            target[..., : seen.shape[-1]] = seen
            target[..., seen.shape[-1] :] = 0.0
        return block

    def _gram(self, left: bool) -> Tensor:
        if left not in self._grams:
            h = (self.length + 1) // 2
            size = h if left else self.length - h
            gram = torch.zeros(1, size, size, dtype=torch.float64, device=self.finite.device)
            if left:
                for start, stop in self._bands(h):
                    A = self._band(start, stop)[..., :h]
                    subtract_symmetric(gram, -A, A)
            else:
                A = self._block((h, self.length), (0, h)).mT
                subtract_symmetric(gram, -A, A)
            self._grams[left] = gram
        return self._grams[left]

    def _corner(self, head: Tensor, first: int, last: int) -> Tensor:
        corner = self._block((first, last), (first, last))
        return corner if len(head) == 1 else corner.repeat(len(head), 1, 1)

    def staircase(self, wanted: Tensor, shifts: Tensor, definite: bool) -> Eliminated:
        if bool(self.finite):
            return super().staircase(wanted, shifts, definite)
        return Answer.of(wanted.flatten(0, 1)).eliminated  # nobody reads what is said of a head with bad data

    @cached_property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        def squared(v: Tensor) -> Tensor:
            product = torch.zeros_like(v)
            for start, stop in self._bands():
                A = self._band(start, stop).abs_()
                product[:, :stop] += A.mT @ (A @ v[:, :stop])
            return product

        return schur_bound(self.unit.new_ones(1, self.length, 1), squared), self._below(Tensor.square)

    def _below(self, term: Callable[[Tensor], Tensor]) -> Tensor:
        sums = self.unit.new_zeros(1, self.length)
        later = torch.zeros_like(sums)  # of every column, over the rows after the band
        for start, stop in reversed(list(self._bands())):
            columns = term(self._band(start, stop)).flip(1).cumsum(1).flip(1) + later[:, None, :stop]
            later[:, :stop] = columns[:, 0]
            sums[:, start:stop] = columns.tril(start - 1).sum(-1)
        return sums

    def _norm_bound(self) -> Tensor:
        norms = [torch.linalg.matrix_norm(self._band(start, stop)) for start, stop in self._bands()]
        return torch.linalg.vector_norm(torch.stack([self.unit.new_zeros(1), *norms]), dim=0)

    def _extents(self) -> tuple[Tensor, Tensor]:
        at = torch.arange(self.length, device=self.finite.device)
        first, last = torch.full_like(at, self.length), torch.full_like(at, -1)
        for start, stop in self._bands():
            some = self._band(start, stop)[0] != 0
            first[start:stop] = torch.where(some, at[:stop], self.length).amin(1)
            last[:stop] = torch.maximum(last[:stop], torch.where(some, at[start:stop, None], -1).amax(0))
        return first[None], last[None]

    def _prepare(self) -> None:
        pass

    def _over_pieces(self, wanted: Tensor, work: Callable[[int, int, int], None]) -> None:
        # one after the other: each holds a quarter of T, and its decomposition several times that
        for start, stop in self._pieces():
            if bool(wanted[0, start:stop].any()):
                work(0, start, stop)

    def _take_apart(self, head: int, start: int, stop: int) -> Outside:
        rows = self._block((start, self.length), (0, stop))
        own = stop - start
        return Outside.of(rows[:, own:, :start], rows[:, own:, start:], rows[:, :own, :start], rows[:, :own, start:])

    def _block_at(self, head: int, position: int) -> Tensor:
        return self._block((position, self.length), (0, position))[0]
