"""Unpivoted LDL^T of many symmetric matrices at once, with the growth that tells how far its inertia can be trusted.

No pivoting: definite matrices do not need it, and for indefinite ones the growth says when it would have been needed
(then the caller does the position again). Leading pivots are eliminated in panels: the diagonal block of a panel is
factorised column by column with the batch innermost, the columns right of it are found by substitution, and everything
else is a batched matrix product.

Nothing here forms the inverse of a triangle, nor leaves it to a library that may: `L^-1` can be huge where neither `L`
nor `L^-1 V` is, then products with it lose digits that the growth knows nothing of. What substitution loses is in
proportion to `|L| |D| |L^T|`, and that is what the growth bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PANEL = 32
# symmetric products of at least this size compute their lower left quarters once
SPLIT = 256
# from this batch size on, column operations run over the batch instead of along the row
LANES = 16
# so many rows are substituted one by one; of more, the second half first receives the first half's by a product
ROWS = 4


class Elimination(NamedTuple):
    """What is left of `[[E, V], [V^T, .]]` after the pivots of `E`: the Schur complement is `. - scaled^T rows`.

    Attributes:
        rows: `L^-1 V`, `[B, h, w]`.
        scaled: `D^-1 L^-1 V`, `[B, h, w]`.
        pivots: diagonal of `D`, `[B, h]`.
        updates: `[B, h + w]`, the sum of absolute updates that each diagonal entry of E and of the rest receives, or
            `[B, 1]`, the largest of them.
        least: `[B]`, the smallest over the pivots of the largest magnitude in a pivot's row `D L^T`, itself included: a
            row that is negligible as a whole makes the sign of its pivot a matter of rounding, and no growth shows it.
    """

    rows: Tensor
    scaled: Tensor
    pivots: Tensor
    updates: Tensor
    least: Tensor

    @property
    def growth(self) -> Tensor:
        """`[B]`, the largest of the updates."""
        return self.updates.amax(-1)


class Block(NamedTuple):
    """A small matrix factorised: unit upper triangular `L^T` `[B, b, b]`, pivots, growth, row magnitudes `[B, b]`."""

    upper: Tensor
    pivots: Tensor
    growth: Tensor
    magnitude: Tensor


def factor_block(E: Tensor) -> Block:
    """`E = L D L^T` for small blocks `[B, b, b]`. A zero pivot turns into inf or NaN and stays visible in growth."""
    batch, b, _ = E.shape
    A = E.permute(1, 2, 0)
    A = A.contiguous() if batch >= LANES else A.clone()
    for k in range(b - 1):
        # row k is column k by symmetry
        row = A[k, k + 1 :]
        A[k + 1 :, k + 1 :].addcmul_((row / A[k, k])[:, None], row[None], value=-1)
    pivots = A.diagonal()  # [B, b]
    rows = A.permute(2, 0, 1).triu()
    return Block(rows / pivots[..., None], pivots, _updates(rows.triu(1), pivots), rows.abs().amax(-1))


def substitute(upper: Tensor, V: Tensor) -> None:
    """`V <- L^-1 V` in place, `V` `[B, b, w]`; of `L^T` `[B, b, b]` what lies above the diagonal is read."""
    b = V.shape[1]
    if b <= ROWS:
        for k in range(b - 1):
            V[:, k + 1 :].addcmul_(upper[:, k, k + 1 :, None], V[:, k, None], value=-1)
        return
    h = b // 2
    substitute(upper[:, :h, :h], V[:, :h])
    V[:, h:].baddbmm_(upper[:, :h, h:].mT, V[:, :h], alpha=-1)
    substitute(upper[:, h:, h:], V[:, h:])


def eliminate(M: Tensor) -> Elimination:
    """Eliminates symmetric `E` `[B, h, h]` next to `V` `[B, h, w]`, which lie side by side in `M` `[B, h, h + w]`.

    About `h^3 / 3 + h^2 w` multiplications. `M` is overwritten; the rows returned are a view of it.
    """
    h = M.shape[1]
    pivots, magnitude = M.new_empty(M.shape[:-1]), M.new_empty(M.shape[:-1])
    updates = M.new_zeros(M.shape[0], M.shape[2])
    for p in range(0, h, PANEL):
        q = min(p + PANEL, h)
        block, rows = factor_block(M[:, p:q, p:q]), M[:, p:q, q:]
        substitute(block.upper, rows)
        pivots[:, p:q] = block.pivots
        magnitude[:, p:q] = torch.maximum(block.magnitude, _row_magnitude(rows))
        updates[:, p:q] += block.growth
        updates[:, q:] += _updates(rows, block.pivots)
        if q < h:
            M[:, q:h, q:].baddbmm_((rows[..., : h - q] / block.pivots[..., None]).mT, rows, alpha=-1)
    rows = M[..., h:]
    return Elimination(rows, rows / pivots[..., None], pivots, updates, magnitude.amin(-1))


def _row_magnitude(rows: Tensor) -> Tensor:
    return torch.maximum(rows.amax(-1), -rows.amin(-1))


def _updates(rows: Tensor, pivots: Tensor) -> Tensor:
    """`sum_k rows_kj^2 / |pivots_k|` `[B, w]`: how much each later diagonal entry is changed, all terms positive."""
    return ((1 / pivots.abs())[:, None] @ rows.square())[:, 0]


def growth_of_first(pivot: Tensor, update: Tensor) -> Tensor:
    """What `update` of the entry that is the next to be a pivot means for the growth, all of one shape.

    However large the pivot is, errors in its row and column are in proportion to what the other rows grow to, unless it
    is what large numbers have left of each other: divide its row and column by its root, which changes no inertia, and
    none of their entries exceeds the roots of the others' diagonals. A sink, one column far larger than the others,
    costs no certainty where it comes first.
    """
    return torch.where(2 * pivot.abs() >= update, update.clamp_max(4.0), update)


def eliminate_definite(M: Tensor, sign: Tensor) -> Elimination:
    """As `eliminate` for positive (`sign` 1) or negative (-1) definite `E`, `sign` `[B]`, by Cholesky: `D` is `sign`.

    The pivots returned are the squared diagonal of the Cholesky factor. A matrix that is
    not definite, because it is not finite, gives NaN. There is no growth to watch, and no least row.
    """
    h, sign = M.shape[1], sign[:, None, None]
    E = M[..., :h]
    factor, info = torch.linalg.cholesky_ex(E * sign)
    rows = torch.linalg.solve_triangular(factor, M[..., h:], upper=False)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    pivots = torch.where((info == 0)[:, None], pivots, torch.nan)
    zeros = E.new_zeros(E.shape[0], 1)
    return Elimination(rows, rows * sign, pivots, zeros, zeros[:, 0])


def subtract_symmetric(A: Tensor, scaled: Tensor, rows: Tensor) -> Tensor:
    """`A -= scaled^T rows` in place for `A` `[B, m, m]` and a symmetric product: three quarters of its flops."""
    m = A.shape[-1]
    if m < SPLIT:
        return A.baddbmm_(scaled.mT, rows, alpha=-1)
    h = m // 2
    subtract_symmetric(A[:, :h, :h], scaled[..., :h], rows[..., :h])
    subtract_symmetric(A[:, h:, h:], scaled[..., h:], rows[..., h:])
    A[:, h:, :h].baddbmm_(scaled[..., h:].mT, rows[..., :h], alpha=-1)
    A[:, :h, h:] = A[:, h:, :h].mT
    return A
