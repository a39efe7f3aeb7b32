"""Coordinates in pairs of neighbours, turned in their planes, as rotary embeddings turn them."""

from __future__ import annotations

import torch
from torch import Tensor


def turned_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """`x` `[..., 2 R]` with each pair of coordinates `(2r, 2r + 1)` turned by the angle of these, `[..., R]`."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([cosine * even - sine * odd, sine * even + cosine * odd], -1).flatten(-2)
