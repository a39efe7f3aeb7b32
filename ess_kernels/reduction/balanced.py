"""Balanced truncation of a time-varying recurrence by the square-root method, the textbook's, and its measured error.

With roots `F_i` of the reachability and `G_i` of the observability Gramian, `H_i` has the singular values of
`G_i F_i^T = U S V^T`. The state is projected on those that are kept: its new numbers are `S^-1/2 U^T G_i s`, and
`F_i^T V S^-1/2` says what they are in terms of the old ones. This divides by the square roots of what is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.structure import Tokens
from .realisation import Realisation
from .roots import observability_roots, reachability_roots, root
from .sweep import Limits, without_overflow


def balanced_realisation(tokens: Tokens, limits: Limits) -> Realisation:
    """What balanced truncation keeps of `N` heads; `error` is the Frobenius norm of the difference, measured."""
    heads, length, n = tokens.read.shape
    reachable = reachability_roots(tokens)
    observable = observability_roots(tokens, tokens.read.new_zeros(heads, 0, n))
    steps, reads, sizes = [], [], []
    overflowed = torch.zeros(heads, dtype=torch.bool)
    size, right = torch.zeros(heads, dtype=torch.int64), tokens.read.new_zeros(heads, n, 0)
    error = _Difference(tokens)
    for i in range(length):
        moved = tokens.move(i, right)
        sizes.append(size)
        reads.append((tokens.read[:, i, None] @ (right if tokens.reads_before else moved))[:, 0])
        F, G = reachable[i + 1], observable[i + 1]
        product, finite = without_overflow(G @ F.mT)
        if finite is not None:
            overflowed |= ~finite
            G = torch.where(finite[:, None, None], G, 0.0)
            F = torch.where(finite[:, None, None], F, 0.0)
        U, values, vectors = torch.linalg.svd(product, full_matrices=False)
        kept = limits.kept(values)
        size = kept.sum(1)
        scale = torch.where(kept, values, 1.0).rsqrt() * kept
        left = scale[:, :, None] * (U.mT @ G)
        right = (F.mT @ vectors.mT) * scale[:, None]
        steps.append(left @ torch.cat([moved, tokens.write[:, i, :, None]], 2))
        error.add(i, steps[-1], reads[-1])
    return Realisation(steps, reads, torch.stack(sizes, 1) if sizes else torch.zeros(heads, 0), error.norm, overflowed)


class _Difference:
    """The Frobenius norm of the difference between a recurrence and a reduced one, token by token.

    Both are one recurrence with their states side by side, and row i of the difference has the norm of what it reads
    from a root of the reachability Gramian of that one.

    Attributes:
        norm: over the rows so far, `[N]`.
    """

    def __init__(self, tokens: Tokens):
        heads, _, n = tokens.read.shape
        self.tokens = tokens
        self.norm = tokens.read.new_zeros(heads)
        # the root's columns for the states of either
        self.states, self.reduced = (tokens.read.new_zeros(heads, size, 0) for size in (n, 0))

    def add(self, i: int, step: Tensor, read: Tensor) -> None:
        moved = self.tokens.move(i, self.states)
        seen = self.states if self.tokens.reads_before else moved
        row = self.tokens.read[:, i, None] @ seen - read[:, None] @ self.reduced
        self.norm = torch.hypot(self.norm, torch.linalg.vector_norm(row, dim=(1, 2)))
        written = torch.cat([self.tokens.write[:, i], step[:, :, -1]], 1)
        both = torch.cat([moved, step[:, :, :-1] @ self.reduced], 1)
        both = root(torch.cat([both, written[:, :, None]], 2).mT).mT
        self.states, self.reduced = both.split([self.states.shape[1], step.shape[1]], 1)
