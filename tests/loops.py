"""Loops over recurrences, column by column: the second form of `T` that tests compare operators with."""

import torch
from torch.nn.functional import logsigmoid


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gates(*shape):
    return logsigmoid(randn(*shape))


def qk(length, *, heads=4, size=3):
    return {"q": randn(2, length, heads, size), "k": randn(2, length, heads, size)}


def by_token(length, columns):
    """`T [*batch, L, L]` from `columns(j)`, which yields the entries `T[..., i, j]` for i = j, j + 1, ..."""
    rows = [list(columns(j)) for j in range(length)]
    T = torch.zeros(*rows[0][0].shape, length, length, dtype=torch.float64)
    for j, column in enumerate(rows):
        for step, entry in enumerate(column):
            T[..., j + step, j] = entry
    return T


def loop(q, k, decay):
    """`q_i . D_i ... D_{j+1} k_j` from `[B, T, H, n]`, decays not in logarithms."""

    def column(j):
        state = k[:, j]
        yield (q[:, j] * state).sum(-1)
        for i in range(j + 1, q.shape[1]):
            state = state * decay[:, i]
            yield (q[:, i] * state).sum(-1)

    return by_token(q.shape[1], column)


def heads_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]
