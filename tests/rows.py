"""Loops over the rows of softmax attention and its kin: the second form of `T` that tests compare operators with."""

import torch
from loops import randn


def repeated(x, heads, axis=2):
    """One head of `x` for each of the heads that share it."""
    return x.repeat_interleave(heads // x.shape[axis], axis)


def row_by_row(batch_shape, length, row):
    """`T [*batch, L, L]` of weights `row(b, h, i)` `[<= L]` for the first columns of a row."""
    T = torch.zeros(*batch_shape, length, length, dtype=torch.float64)
    for b in range(batch_shape[0]):
        for h in range(batch_shape[1]):
            for i in range(length):
                weights = row(b, h, i)
                T[b, h, i, : len(weights)] = weights
    return T


def softmax(z, sink=None):
    """Of logits of which some are -inf, with one more in the denominator; all -inf is all zeros."""
    total = z.exp().sum() + (0 if sink is None else sink.exp())
    return z.exp() / (total if total > 0 else 1)


def windowed(z, window_size):
    """All but the last logits of a row hidden."""
    hidden = max(0, len(z) - window_size)
    return torch.cat([torch.full((hidden,), -torch.inf).double(), z[hidden:]])


def decays(g, i):
    """The sum of `g[j+1 .. i]` for every j up to i, added up one by one."""
    sums = [g.new_zeros(())]
    for j in range(i, 0, -1):
        sums.append(sums[-1] + g[j])
    return torch.stack(sums[::-1])


def seq_first(q, k, **more):
    """Attention's layout as fla's, for its naive functions."""
    return [x.transpose(1, 2) for x in (q, k, *more.values())]


def heads_first(length, heads=4, kv=2, size=3):
    return {"q": randn(2, heads, length, size), "k": randn(2, kv, length, size)}


def tokens_first(length, heads=4, kv=2, size=3, keys=("k",)):
    """Queries and what has the keys' shape, `[B, T, H, K]`."""
    return {"q": randn(2, length, heads, size), **{name: randn(2, length, kv, size) for name in keys}}
