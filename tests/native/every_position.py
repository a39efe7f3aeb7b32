"""What kernels are compared with at every position, computed once: dispatch levels and block lengths ask the same."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def singular_values(T: Tensor) -> list[Tensor]:
    """Those of every `H_i` of `T` `[N, L, L]`, by position: `[i]` is `[N, min(i, L-i)]`, and `[0]` has none."""
    return _singular_values(T.contiguous().numpy().tobytes(), tuple(T.shape))


@functools.lru_cache(maxsize=32)
def _singular_values(entries: bytes, shape: tuple[int, int, int]) -> list[Tensor]:
    T = torch.frombuffer(bytearray(entries), dtype=torch.float64).view(shape)
    return [T.new_zeros(shape[0], 0), *(torch.linalg.svdvals(T[:, i:, :i]) for i in range(1, shape[1]))]
