"""What counts at some positions say of all others: from one position to the next a count moves by one at most.

`H_{i+1}` is `H_i` without its first row and with one more column. Without a row `s_{k+1}(H) <= s_k(G) <= s_k(H)`, so
that a count falls by 0 or 1; with a column it rises by 0 or 1: it moves by -1, 0 or +1, at any tolerance.
"""

from __future__ import annotations

import torch
from torch import Tensor

# nothing is known below or above these
NOTHING = 2**62


def interlaced(lower: Tensor, upper: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of counts int64 `[..., P]` at ascending positions, each made as narrow as all others allow.

    `max_j (lower_j - |i - j|)` and `min_j (upper_j + |i - j|)`.
    """
    return _highest(lower, positions), -_highest(-upper, positions)


def _highest(x: Tensor, positions: Tensor) -> Tensor:
    if not x.shape[-1]:
        return x
    forwards = (x + positions).cummax(-1).values - positions
    backwards = (x - positions).flip(-1).cummax(-1).values.flip(-1) + positions
    return torch.maximum(forwards, backwards)
