"""Marks in memory that nobody has written yet, so that a load of it is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

# bits of numbers that no computation makes: NaN with a payload, and integers as unlikely
POISON64, POISON32 = 0x7FF8_DEAD_BEEF_DEAD, 0x7FC0_BEEF
# larger storages stay as they are: tests of 64-bit offsets ask for more memory than they use
LARGEST_BYTES = 1 << 30
FACTORIES = [(owner, name, getattr(owner, name)) for owner, name in (
    (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"),
)]  # fmt: skip


def _filled(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or x.layout != torch.strided or not 0 < x.untyped_storage().nbytes() <= LARGEST_BYTES:
        return x
    bits = torch.tensor([], dtype=torch.uint8).set_(x.untyped_storage())
    if x.dtype in (torch.float64, torch.int64):
        bits.view(torch.int64).fill_(POISON64)
    elif x.dtype in (torch.float32, torch.int32):
        bits.view(torch.int32).fill_(POISON32)
    return x


def _filling(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments, **options: _filled(factory(*arguments, **options))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, `torch.empty` and its kin give CPU memory of 32 and 64 bits that is full of poison."""
    before = [getattr(owner, name) for owner, name, _ in FACTORIES]
    for owner, name, factory in FACTORIES:
        setattr(owner, name, _filling(factory))
    try:
        yield
    finally:
        for (owner, name, _), factory in zip(FACTORIES, before):
            setattr(owner, name, factory)


def poisoned(values: np.ndarray, mask: np.ndarray) -> int:
    """How many of the numbers that were loaded, where the mask is set, are poison."""
    if values.dtype.itemsize not in (4, 8):
        return 0
    kind, poison = (np.uint64, POISON64) if values.dtype.itemsize == 8 else (np.uint32, POISON32)
    return int(((np.ascontiguousarray(values).view(kind) == poison) & mask).sum())
