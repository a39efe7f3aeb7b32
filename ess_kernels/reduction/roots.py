"""Roots of Gramians of a recurrence, by QR decompositions: no Gramian is formed, so nothing is squared."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.structure import Tokens


def observability_roots(tokens: Tokens, last: Tensor) -> list[Tensor]:
    """`G_i` `[N, at most n, n]` for i = 0..L: `|G_i s|` is the norm of what all rows from i on see of a state s at i.

    The state at i is the one before token i. `last` is `G_L` `[N, k, n]`: what is seen of the state after all tokens.
    """
    roots = [last]
    for i in reversed(range(tokens.read.shape[1])):
        later, read = roots[-1], tokens.read[:, i, None]
        if tokens.reads_before:
            seen = torch.cat([tokens.move(i, later.mT, transposed=True).mT, read], 1)
        else:
            seen = tokens.move(i, torch.cat([later, read], 1).mT, transposed=True).mT
        roots.append(root(seen))
    return roots[::-1]


def reachability_roots(tokens: Tokens) -> list[Tensor]:
    """`F_i` `[N, at most n, n]` for i = 0..L: `F_i^T F_i` is the sum of outer products of what inputs left at i."""
    write = tokens.write
    roots = [write.new_zeros(len(write), 0, write.shape[-1])]
    for i in range(write.shape[1]):
        moved = tokens.move(i, roots[-1].mT).mT
        roots.append(root(torch.cat([moved, write[:, i, None]], 1)))
    return roots


def root(A: Tensor) -> Tensor:
    """Some `R` `[N, at most n, n]` with `R^T R = A^T A`, for `A` `[N, m, n]`."""
    return A if A.shape[1] <= A.shape[2] else torch.linalg.qr(A, mode="r").R
