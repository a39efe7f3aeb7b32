"""Which tokens answer which positions of an operator with a window: chunks of positions, and the tokens beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Chunks of as many positions as the window is wide take the fewest operations. These are more positions for each of
# them: small matrices are slow for their operations.
MORE = 64
# so many chunks are one batch, although that answers at more positions than were asked for
FEW = 6
# What an operator of L tokens costs, as a power of L: between 2, where reading and writing it takes the time, and 3.
COST_POWER = 2.5
# chunks have to be cheaper than the whole by this, because taking them out costs something as well
WORTHWHILE = 0.9


class Alike(NamedTuple):
    """Operators of neighbouring tokens that are asked for the same positions, so that they can be one batch.

    Attributes:
        first: int64 `[K]`, the first of each operator's neighbouring tokens.
        places: int64 `[Q]`, distinct and ascending, the positions in these operators.
        columns: int64 `[K, R]`, which of the positions asked for are answered; their number where none of them.
        source: int64 `[R]`, which of the places answers each of these columns; None: they are the places, in order.
    """

    first: Tensor
    places: Tensor
    columns: Tensor
    source: Tensor | None = None


class Plan(ABC):
    """How ascending positions of an operator of `length` tokens are answered by operators of fewer tokens.

    Attributes:
        first_columns: how many first tokens these have, beside neighbours.
        neighbours: how many neighbouring tokens they have.
        size: how many tokens they have with one more for each first column, in place of all later rows.
        cost: in units of what the whole operator costs.
    """

    cost: float = 1.0

    def __init__(self, positions: Sequence[int], length: int, neighbours: int, first_columns: int = 0):
        self.positions, self.length = positions, length
        self.neighbours, self.first_columns = neighbours, first_columns
        self.size = neighbours + 2 * first_columns

    @abstractmethod
    def batches(self, alone: bool, device: torch.device) -> list[Alike]:
        """All operators.

        `alone`: each position has a price of its own, so that nothing is answered that was not asked for. Else
        operators with other positions share a batch, which then answers those of all.
        """


class Whole(Plan):
    """The whole operator, for heads that have no window beside heads that have one."""

    def __init__(self, positions: Sequence[int], length: int):
        super().__init__(positions, length, length)

    def batches(self, alone: bool, device: torch.device) -> list[Alike]:
        columns = torch.arange(len(self.positions), device=device)[None]
        return [Alike(columns.new_zeros(1), torch.tensor(self.positions, device=device), columns)]


class Shortened(Plan):
    """One shorter operator, where `T_ij = 0` for `i - j >= window` and depends on `i - j` only.

    All `H_i` are then alike but for those near both ends.
    """

    def __init__(self, positions: Sequence[int], length: int, window: int):
        self.beside = max(window - 1, 1)
        super().__init__(positions, length, min(2 * self.beside, length))
        self.cost = (self.size / length) ** COST_POWER / WORTHWHILE

    def batches(self, alone: bool, device: torch.device) -> list[Alike]:
        positions = torch.tensor(self.positions, device=device)
        shortened = self.length - self.size
        moved = torch.maximum(positions.clamp_max(self.beside), positions - shortened)
        places, source = moved.unique(return_inverse=True)
        return [Alike(places.new_zeros(1), places, torch.arange(len(positions), device=device)[None], source)]


class Chunked(Plan):
    """Chunks of positions, where `T_ij = 0` for `i - j >= window` and `j >= first_columns`."""

    def __init__(self, positions: Sequence[int], length: int, window: int, first_columns: int = 0):
        # a chunk [a, e) needs the tokens a - beside .. e + beside - 2
        self.beside = max(window - 1, 1)
        self.chunk = window + MORE
        self.slices = _slices(positions, self.chunk)
        widest = max((positions[stop - 1] - positions[start] + 1 for start, stop in self.slices), default=0)
        super().__init__(positions, length, min(widest + 2 * self.beside - 1, length - first_columns), first_columns)
        self.cost = len(self.slices) * (self.size / length) ** COST_POWER / WORTHWHILE

    def batches(self, alone: bool, device: torch.device) -> list[Alike]:
        groups: dict[object, list[tuple[int, int, int]]] = {}
        few = len(self.slices) <= FEW
        for start, stop in self.slices:
            first = max(min(self.positions[start] - self.beside, self.length - self.neighbours), self.first_columns)
            moved = tuple(p - first for p in self.positions[start:stop])
            # chunks at both ends have their positions at other places than those between them
            key = moved if alone else few or moved[0] == self.beside
            groups.setdefault(key, []).append((first, start, stop))
        return [self._alike(members, device) for members in groups.values()]

    def _alike(self, members: list[tuple[int, int, int]], device: torch.device) -> Alike:
        moved = [[p - first + self.first_columns for p in self.positions[start:stop]] for first, start, stop in members]
        places = sorted(set().union(*moved))
        columns = torch.full((len(members), len(places)), len(self.positions), device="cpu")
        for row, ((_, start, stop), mine) in enumerate(zip(members, moved, strict=True)):
            columns[row, [bisect_left(places, place) for place in mine]] = torch.arange(start, stop, device="cpu")
        first = torch.tensor([first for first, _, _ in members], device=device)
        return Alike(first, torch.tensor(places, device=device), columns.to(device))


def _slices(positions: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Ascending positions in slices `[start, stop)`, each within `size` positions in a row."""
    slices, start = [], 0
    while start < len(positions):
        stop = bisect_left(positions, positions[start] + size, start)
        slices.append((start, stop))
        start = stop
    return slices
