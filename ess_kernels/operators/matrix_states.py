"""States that are matrices, one a token, as first passes need them: read where they are, never kept for all tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad


def read_states(left: Tensor, right: Tensor, decay: Tensor, read: Callable[..., Tensor], *per_token: Tensor) -> Tensor:
    """What `read` finds in each of the states `S_t = decay_t * S_{t-1} + left_t right_t^T`.

    All blocks of about `sqrt(T)` tokens, a power of two, run side by side, first from nothing, for what they add to the
    state that they find, and again from that state: about `3 sqrt(T)` steps in which no decay is divided out.

    Args:
        left: `[B, T, H, K]`.
        right: `[B, T, H, M]`.
        decay: `[B, T, H, K or 1, M or 1]`.
        read: is called with states `[B, blocks, H, K, M]` and with `per_token` of these tokens, `[B, blocks, H, ...]`.
        per_token: `[B, T, H, ...]`.

    Returns:
        `[B, T, H, ...]` with the trailing axes of what `read` returns.
    """
    length = left.shape[1]
    size = 1
    while size * size < length:
        size *= 2
    blocks = max(1, -(-length // size))

    def cut(x: Tensor) -> list[Tensor]:
        """The first tokens of all blocks, the second ones, ...: `size` tensors `[B, blocks, H, ...]`."""
        x = pad(x, (0, 0) * (x.dim() - 2) + (0, blocks * size - length))
        return list(x.unflatten(1, (blocks, size)).unbind(2))

    lefts, rights, decays = cut(left), cut(right), cut(decay)

    def step(states: Tensor, t: int) -> Tensor:
        return decays[t] * states + lefts[t][..., :, None] * rights[t][..., None, :]

    added = left.new_zeros(*lefts[0].shape, right.shape[-1])
    kept = torch.ones_like(decays[0])
    for t in range(size):
        added, kept = step(added, t), kept * decays[t]
    found = [torch.zeros_like(added[:, 0])]
    for block in range(blocks - 1):
        found.append(kept[:, block] * found[-1] + added[:, block])
    states, answers = torch.stack(found, 1), []
    tokens = [cut(x) for x in per_token]
    for t in range(size):
        states = step(states, t)
        answers.append(read(states, *(x[t] for x in tokens)))
    return torch.stack(answers, 2).flatten(1, 2)[:, :length]
