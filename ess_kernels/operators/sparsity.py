"""Where `T` is zero for certain: behind a window, but for a few first columns that rows of any distance may see."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# rows `start..stop-1` and columns `0..stop-1` of a pattern, bool `[M, rows, stop]`: what may be other than zero
Seen = Callable[[int, int], Tensor]

# entries of a pattern that are looked at together
TOGETHER = 2**22
# rows of the later half that are asked how many first columns they see
SAMPLES = 8


class Sparsity(NamedTuple):
    """What is known of some heads, int64 `[N]` each; `L` where a width is not known to be less.

    Attributes:
        bandwidth: `T_ij = 0` where `i - j >= bandwidth`.
        window: `T_ij = 0` where `i - j >= window` and `j >= first_columns`. At most the bandwidth.
        first_columns: see `window`.
    """

    bandwidth: Tensor
    window: Tensor
    first_columns: Tensor

    @classmethod
    def of_width(cls, width: Tensor) -> Sparsity:
        """Of a window alone, from its width `[N]`."""
        return cls(width, width, torch.zeros_like(width))

    def of_heads(self, index: Tensor) -> Sparsity:
        return Sparsity(*(x.index_select(0, index) for x in self))

    def within(self, width: int) -> Sparsity:
        """The same where `T_ij = 0` for `i - j >= width` as well."""
        return Sparsity(self.bandwidth.clamp_max(width), self.window.clamp_max(width), self.first_columns)


def sparsity_of(seen: Seen, count: int, length: int, device: torch.device) -> Sparsity:
    """What `count` patterns of `length` rows have in common with a window and a few first columns.

    The number of first columns is guessed from a few rows, and is 0 where nothing like a window follows them. The
    widths are then found from all rows, or none where the last row sees the first column and everything after it: they
    are right, whatever was guessed.
    """
    whole = torch.full((count,), length, device=device)
    if not count or length < 2:
        return Sparsity.of_width(whole)
    first_columns = _first_columns(seen, count, length, device)
    full = seen(length - 1, length)[:, 0, 0] & (first_columns == 0)
    if bool(full.all()):
        return Sparsity.of_width(whole)
    bandwidth, window = (torch.ones(count, dtype=torch.int64, device=device) for _ in range(2))
    step = max(1, TOGETHER // (count * length))
    for start in range(0, length, step):
        stop = min(start + step, length)
        pattern = seen(start, stop)
        bandwidth = torch.maximum(bandwidth, _widest(pattern, start))
        later = torch.arange(stop, device=device) >= first_columns[:, None]
        window = torch.maximum(window, _widest(pattern & later[:, None], start))
    return Sparsity(bandwidth, window, first_columns)


def _widest(pattern: Tensor, start: int) -> Tensor:
    """The largest `i - j + 1` of what is seen below the diagonal, `[M]`, from rows `start..` `[M, rows, stop]`."""
    row = torch.arange(start, start + pattern.shape[1], device=pattern.device)
    # of several largest numbers argmax takes the first
    first = pattern.to(torch.uint8).argmax(-1)
    return torch.where(pattern.any(-1), row - first + 1, 1).amax(1)


def _first_columns(seen: Seen, count: int, length: int, device: torch.device) -> Tensor:
    """How many first columns to leave out, `[M]`: those before the longest gap in each of a few rows.

    A gap of less than a quarter of the sequence is none: no window that would pay begins after it.
    """
    most = torch.zeros(count, dtype=torch.int64, device=device)
    for sample in range(SAMPLES):
        row = length - 1 - sample * length // (2 * SAMPLES)
        pattern = seen(row, row + 1)[:, 0]
        column = torch.arange(row + 1, device=device)
        last_seen = torch.where(pattern, column, -1).cummax(1).values
        gap, end = (column - last_seen).max(1)
        before = last_seen.gather(1, end[:, None])[:, 0] + 1
        most = torch.maximum(most, torch.where((4 * gap >= length) & pattern.any(1), before, 0))
    return most
