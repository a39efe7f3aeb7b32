"""Counts that are wrong and say nothing of it, and the matrices on which eliminations lose most."""

from __future__ import annotations

import torch
from torch import Tensor

import ess_kernels as ek

EPS = torch.finfo(torch.float64).eps


def integers(generator: torch.Generator, *shape: int) -> Tensor:
    """-1, 0 and 1, at random."""
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.float64)


def huge_and_small(seed: int, heads: int, length: int, rank: int, scale: float) -> Tensor:
    """`scale` times integers of low rank, and integers of full rank beside them: all entries are exact."""
    g = torch.Generator().manual_seed(seed)
    u, v = integers(g, heads, length, rank), integers(g, heads, length, rank)
    return scale * (u @ v.mT) + integers(g, heads, length, length)


def as_block(H: Tensor) -> Tensor:
    """An operator whose position in the middle has the matrix `H` `[heads, m, m]`."""
    m = H.shape[-1]
    T = H.new_zeros(len(H), 2 * m, 2 * m)
    T[:, m:, :m] = H
    return T


def silent_counts(T: Tensor, tau: float, backend: str) -> tuple[int, list[tuple[int, int]]]:
    """How many counts of `T` `[heads, L, L]` were checked, and which (head, position) are silently wrong.

    A count is silently wrong if no singular value lies within the certificate's width of the tolerance, and it is not
    called unresolved. Positions that float64 singular values cannot decide are left out.
    """
    counts, certificate = ek.tolerance_ess(T, tau, backend=backend, certificate=True)
    checked, wrong = 0, []
    for i in range(1, T.shape[-1]):
        s = torch.linalg.svdvals(T[:, i:, :i])
        nearest = (s - tau).abs().amin(-1)
        decided = nearest > 256 * EPS * s[:, 0]
        checked += int(decided.sum())
        bad = decided & (counts[:, i - 1] != (s > tau).sum(-1)) & ~certificate.unresolved[:, i - 1]
        bad &= nearest > certificate.width[:, i - 1] * tau
        wrong += [(int(h), i) for h in bad.nonzero()[:, 0]]
    return checked, wrong
