"""The sweep over an operator without a state, `c` tokens at a time: `O(L^2 r)` instead of `O(L^2 r^2)`.

At a position a, all rows from a on are functions of the state there (r numbers) and of later inputs. Over the next c
tokens the r numbers and the c inputs are a state of their own, which no token changes but for its input: a recurrence
with r + c states, whose last observability root is that of all rows beyond the block. The sweep over these c tokens is
the one of any recurrence, so that every position is cut with all of its future in view, and sizes, error and bounds are
those of a sweep token by token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.structure import Tokens
from .roots import observability_roots, root
from .sweep import Limits, Swept, sweep

# A block has so many tokens, or an eighth as many as the state has numbers if that is more. More tokens make every
# decomposition larger, fewer mean more passes over the rest of T.
FEWEST, SHARE = 16, 8


def sweep_rows(T: Tensor, limits: Limits) -> Swept:
    """The sweep for one head, `T` `[1, L, L]`, zero on and above the diagonal."""
    length = T.shape[-1]
    whole = Swept([], [], [], [], T.new_zeros(1, 0, 0), torch.zeros(1, dtype=torch.bool))
    # rows from `start` on as functions of the state there
    rows = T.new_zeros(1, length, 0)
    start = 0
    while start < length:
        size = rows.shape[2]
        count = min(max(FEWEST, size // SHARE), length - start)
        wide = torch.cat([rows, T[:, start:, start : start + count]], 2)
        block, beyond = wide[:, :count], wide[:, count:]
        states = torch.eye(size + count, dtype=T.dtype)[None]
        tokens = Tokens(
            read=block,
            write=states[:, size:],
            transition=torch.ones_like(block),
            reads_before=True,
        )
        roots = observability_roots(tokens, root(beyond))
        swept = sweep(tokens, roots, states[:, :, :size], limits, fixed_width=False)
        whole = whole.then(swept)
        rows = beyond @ swept.basis
        start += count
    return whole
