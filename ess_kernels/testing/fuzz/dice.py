"""Random choices and random tensors from one seed; the same seed gives the same case on every run."""

from __future__ import annotations

import random

import torch
from torch import Tensor


class Dice(random.Random):
    """Python's generator for choices, with one of torch's beside it for tensors (all float64)."""

    def __init__(self, seed: str):
        super().__init__(seed)
        self._tensors = torch.Generator().manual_seed(self.getrandbits(60))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._tensors, dtype=torch.float64)

    def flat(self, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(*shape, generator=self._tensors, dtype=torch.float64)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """`low .. high`, both included."""
        return torch.randint(low, high + 1, shape, generator=self._tensors).double()

    def orthogonal(self, n: int) -> Tensor:
        return torch.linalg.qr(self.normal(n, n)).Q

    def chance(self, probability: float) -> bool:
        return self.random() < probability


def powers(low: float, high: float, steps: int) -> Tensor:
    """`10**low .. 10**high`, evenly in the exponent."""
    return torch.logspace(low, high, steps, dtype=torch.float64)
