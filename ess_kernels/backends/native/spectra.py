"""Singular values of small matrices."""

from __future__ import annotations

from torch import Tensor

from ...engine.parallel import product_values, svdvals


def singular_values(A: Tensor, right: Tensor | None) -> Tensor:
    """`[batch, min(m, n)]`, descending, of `A` `[batch, m, n]` or `A right^T`."""
    return product_values(svdvals, A, right)
