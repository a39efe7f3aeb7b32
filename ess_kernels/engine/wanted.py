"""What an elimination is asked for: positions, or only the groups of positions that share a tolerance."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..caching import cached_property


class Wanted:
    """Positions `[N, S, L]` of `S` tolerances. Engines that answer group by group never make the mask of positions."""

    def __init__(self, positions: Callable[[], Tensor], groups: Callable[[], Tensor]):
        """Functions that make `positions` and `groups`, each called at its first use."""
        self._positions, self._groups = positions, groups

    @classmethod
    def of(cls, positions: Tensor, group: int) -> Wanted:
        """From bool `[N, S, L]`."""
        return cls(lambda: positions, lambda: grouped(positions, group).any(-1))

    @classmethod
    def alike(cls, possible: Tensor, positions: Tensor, group: int) -> Wanted:
        """The same positions, bool `[L]`, of some heads and tolerances, bool `[N, S]`."""
        pairs = possible[..., None]
        return cls(lambda: pairs & positions, lambda: pairs & grouped(positions, group).any(-1))

    @cached_property
    def positions(self) -> Tensor:
        """bool `[N, S, L]`."""
        return self._positions()

    @cached_property
    def groups(self) -> Tensor:
        """bool `[N, S, ceil(L / group)]`, contiguous: which groups hold a position asked for."""
        return self._groups().contiguous()


@lru_cache(maxsize=4)
def everywhere(length: int, device: torch.device) -> Tensor:
    """bool `[length]`, true but at position 0; for reading only."""
    return torch.arange(length, device=device) > 0


def grouped(x: Tensor, group: int, fill: float = False) -> Tensor:
    """`[..., L]` as `[..., ceil(L / group), group]`, filled up."""
    padding = -x.shape[-1] % group
    if padding:
        x = torch.nn.functional.pad(x, (0, padding), value=fill)
    return x.unflatten(-1, (-1, group))
