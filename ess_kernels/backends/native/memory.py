"""Memory of kernels: every thread keeps its large arrays and its workspace from one call to the next.

The operating system's work for fresh pages takes longer than the arithmetic that is done on them.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from ...memory import budget_in_bytes
from .abi import LINE

# what is kept of one kind, at most: bytes
MOST_KEPT = 2**28


class _Kept(threading.local):
    """What this thread keeps: arrays by name, those that are lent out, and the workspace, aligned bytes."""

    def __init__(self) -> None:
        self.free: dict[str, Tensor] = {}
        self.lent: dict[str, Tensor] = {}
        self.workspace = torch.empty(0, dtype=torch.uint8, device="cpu")


kept = _Kept()


def _with_line(count: int, dtype: torch.dtype) -> Tensor:
    """Room for `count` numbers from the next cache line on."""
    return torch.empty(count + LINE // dtype.itemsize, dtype=dtype, device="cpu")


def _from_line(memory: Tensor, count: int) -> Tensor:
    """`count` numbers of `memory` from the next cache line on."""
    first = -memory.data_ptr() % LINE // memory.itemsize
    return memory[first : first + count]


def aligned(*shape: int) -> Tensor:
    """An uninitialised float64 tensor at an address that kernels take for an array of theirs."""
    count = math.prod(shape)
    return _from_line(_with_line(count, torch.float64), count).view(shape)


def borrow(name: str, count: int) -> Tensor:
    """`count` float64 numbers, undefined, aligned to a cache line; one array of a name is remembered a thread."""
    memory = kept.free.pop(name, None)
    if memory is not None:
        size = memory.numel() * memory.itemsize
        # drop an array that is four times too large and above today's budget: a larger budget has left it behind
        wasteful = size > 4 * memory.itemsize * count and size > budget_in_bytes()
        if wasteful or memory.numel() < count + LINE // memory.itemsize:
            memory = None
    if memory is None:
        memory = _with_line(count, torch.float64)
    if memory.numel() * memory.itemsize <= MOST_KEPT:
        kept.lent[name] = memory
    return _from_line(memory, count)


def give_back(name: str, array: Tensor) -> None:
    """Returns a borrowed array for the next call; nothing may use it any more. Ignores arrays that were not lent."""
    memory = kept.lent.get(name)
    if memory is not None and memory.untyped_storage().data_ptr() == array.untyped_storage().data_ptr():
        kept.free[name] = kept.lent.pop(name)


def workspace(size: int) -> Tensor:
    """`size` bytes of workspace, aligned; kept for the thread's next call where that is no waste."""
    memory = _from_line(_with_line(size, torch.uint8), size)
    if size <= MOST_KEPT:
        kept.workspace = memory
    return memory
