"""Where heads, time and channels stand in the tensors of different libraries, and how they come to `[B, H, L, d]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Two views of the same numbers.

    Attributes:
        to_heads: the library's layout to `[B, H, L, d]`.
        from_heads: back again.
    """

    to_heads: Callable[[Tensor], Tensor]
    from_heads: Callable[[Tensor], Tensor]


# [B, L, H, d], as in flash-linear-attention
TIME_FIRST = Layout(lambda x: x.transpose(1, 2), lambda x: x.transpose(1, 2))
# [B, H, L, d]
HEADS_FIRST = Layout(lambda x: x, lambda x: x)
# [B, D, L], one operator a channel, as in Mamba
CHANNELS_FIRST = Layout(lambda x: x[..., None], lambda x: x[..., 0])
# [B, L, D], one operator a channel
CHANNELS_LAST = Layout(lambda x: x.transpose(1, 2)[..., None], lambda x: x[..., 0].transpose(1, 2))
