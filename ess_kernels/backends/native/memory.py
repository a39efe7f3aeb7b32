"""Large arrays that one call after the other needs: kept, since fresh pages cost more than the arithmetic on them."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ...environment import memory_budget
from .call import KEPT_WORKSPACE, LINE

_BYTES = 8


class _Kept(threading.local):
    def __init__(self) -> None:
        self.free: dict[str, Tensor] = {}
        self.lent: dict[str, Tensor] = {}


_kept = _Kept()


def borrow(name: str, count: int) -> Tensor:
    """`count` float64 numbers, undefined, aligned to a cache line; one array of a name is remembered a thread."""
    memory = _kept.free.pop(name, None)
    size = 0 if memory is None else len(memory)
    # what a larger budget has left behind is not kept
    wasteful = size > 4 * count and size * _BYTES > memory_budget()
    if memory is None or size < count + LINE // _BYTES or wasteful:
        memory = torch.empty(count + LINE // _BYTES, dtype=torch.float64, device="cpu")
    first = -memory.data_ptr() % LINE // _BYTES
    if len(memory) * _BYTES <= KEPT_WORKSPACE:
        _kept.lent[name] = memory
    return memory[first : first + count]


def give_back(name: str, array: Tensor) -> None:
    """To the next call: nothing may use `array`, which begins where a borrowed one did, any more. Ignores others."""
    memory = _kept.lent.get(name)
    if memory is not None and memory.untyped_storage().data_ptr() == array.untyped_storage().data_ptr():
        _kept.free[name] = _kept.lent.pop(name)
