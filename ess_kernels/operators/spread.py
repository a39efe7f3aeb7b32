"""Operators of which every process of a group holds a share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from .structure import Operator


class Spread(Operator):
    """An operator that no process holds as a whole: metrics are asked of its shares, by all processes at once."""

    @abstractmethod
    def answer(self, metric: Callable[..., Any], positions: Any, **arguments: Any) -> Any:
        """What `metric(op, positions=..., **arguments)` says of this process's share of the positions."""
