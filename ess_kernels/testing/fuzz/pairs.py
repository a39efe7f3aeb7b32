"""Sums and products in twice the precision of float64: a number is the sum `high + low` of two (Dekker 1971).

NumPy arrays all through. Products of two float64 are exact; sums of pairs lose about `2**-104` of the sum of the
magnitudes, so that cancellation of up to 30 digits in a matrix of products can be seen for what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SPLITTER = 2.0**27 + 1
# what a sum or product of pairs loses at most, relative to the magnitudes that went in
LOSS = 2.0**-100


@dataclass(frozen=True)
class Pair:
    """`high + low`, with `high` the float64 nearest to it."""

    high: np.ndarray
    low: np.ndarray

    def __getitem__(self, index: Any) -> Pair:
        return Pair(self.high[index], self.low[index])

    def __setitem__(self, index: Any, other: Pair) -> None:
        self.high[index], self.low[index] = other.high, other.low

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Pair:
        """A change of shape, the same for both."""
        return Pair(change(self.high), change(self.low))


def exact(x: np.ndarray) -> Pair:
    """Numbers that float64 holds."""
    return Pair(x, np.zeros_like(x))


def from_longdouble(x: np.ndarray) -> Pair:
    high = x.astype(np.float64)
    return Pair(high, np.where(np.isfinite(high), x - high, 0).astype(np.float64))


def to_longdouble(x: Pair) -> np.ndarray:
    return x.high.astype(np.longdouble) + x.low


def zeros(shape: tuple[int, ...]) -> Pair:
    return Pair(np.zeros(shape), np.zeros(shape))


def add(a: Pair, b: Pair) -> Pair:
    s = a.high + b.high
    part = s - a.high
    rest = (a.high - (s - part)) + (b.high - part)
    return _settle(s, rest + (a.low + b.low))


def multiply(a: Pair, b: Pair) -> Pair:
    p = a.high * b.high
    a_top, a_rest = _halves(a.high)
    b_top, b_rest = _halves(b.high)
    rest = ((a_top * b_top - p) + a_top * b_rest + a_rest * b_top) + a_rest * b_rest
    return _settle(p, rest + (a.high * b.low + a.low * b.high))


def total(x: Pair) -> Pair:
    """The sum over the last axis."""
    while x.high.shape[-1] > 1:
        n = x.high.shape[-1]
        half = n // 2
        summed = add(x[..., :half], x[..., half : 2 * half])
        if n % 2:
            summed = Pair(
                np.concatenate([summed.high, x.high[..., -1:]], -1), np.concatenate([summed.low, x.low[..., -1:]], -1)
            )
        x = summed
    return x[..., 0]


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = SPLITTER * x
    top = scaled - (scaled - x)
    return top, x - top


def _settle(high: np.ndarray, low: np.ndarray) -> Pair:
    s = high + low
    return Pair(s, low - (s - high))
