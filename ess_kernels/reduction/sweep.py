"""One pass from left to right that cuts the state at every position, and knows what it has cut (theorems 3.1, 3.2).

The state is kept in an orthonormal basis of past inputs: the rows of `[A_i B_i]` are orthonormal. What the rows of `T`
from i on see of the inputs before i is then `G_i X_i`, where the columns of `X_i` are the basis in terms of the
caller's state, and `G_i` is a root of the observability Gramian. Its singular value decomposition says what to keep:
the first `n_i` right singular vectors are the new basis. Nothing is inverted or divided.

Why the error is known. After the cut at i, every row from i on, as a function of the inputs before i, lies in the span
of the basis that was kept. What is cut at i + 1 lies in that span and input i; what was cut at i is orthogonal to both.
So, row by row, all that is ever cut is orthogonal, and with `e_i` the norm of what was cut at i,

    |T - T_r|_F^2 = sum_i e_i^2 <= sum_i sum_{k > n_i} s_k(H_i)^2.

The inequality, and sizes of at most the ESS, hold because earlier cuts have multiplied `H_i` by a projection, which
makes no singular value larger.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.structure import Tokens


class Limits(NamedTuple):
    """What is kept at a position.

    Attributes:
        atol: singular values above it, float64 `[N]`, in the units of the tokens.
        rank: at most so many of them; None: any number.
        rounding: singular values up to this part of the largest are never kept: rounding alone may have made them.
    """

    atol: Tensor
    rank: int | None
    rounding: float

    def kept(self, values: Tensor) -> Tensor:
        """Which of the singular values `[N, k]` of each head, descending, are kept."""
        above = values > torch.maximum(self.atol[:, None], self.rounding * values[:, :1])
        if self.rank is not None:
            above[:, self.rank :] = False
        return above


class Swept(NamedTuple):
    """What a sweep over some tokens has made, for `N` heads; `w_i` is the room for the state before token i.

    Attributes:
        steps, reads: as in `Realisation`.
        sizes: the state size after each token, int64 `[N]` for each.
        cut: the singular values that were cut after each token, float64 `[N, k]` for each, among zeros.
        basis: that of the state after the last token, `[N, n, w]`.
        overflowed: bool `[N]`.
    """

    steps: list[Tensor]
    reads: list[Tensor]
    sizes: list[Tensor]
    cut: list[Tensor]
    basis: Tensor
    overflowed: Tensor

    def then(self, later: Swept) -> Swept:
        """This and a sweep over the tokens that follow."""
        return Swept(
            steps=self.steps + later.steps,
            reads=self.reads + later.reads,
            sizes=self.sizes + later.sizes,
            cut=self.cut + later.cut,
            basis=later.basis,
            overflowed=self.overflowed | later.overflowed,
        )


def sweep(tokens: Tokens, roots: list[Tensor], basis: Tensor, limits: Limits, *, fixed_width: bool) -> Swept:
    """Cut the state after every token.

    Args:
        tokens: of `N` heads.
        roots: the observability roots `G_0 .. G_L`.
        basis: of the state before the first token, `[N, n, w]`.
        limits: what is kept.
        fixed_width: whether room for states is given by sizes alone and not by the numbers, so that a head's results
            are the same bits whatever the others are. Without it there must be one head.
    """
    swept = Swept([], [], [], [], basis, torch.zeros(len(basis), dtype=torch.bool))
    # which columns of a step belong to numbers of the state before it, or to the input
    columns = torch.ones(len(basis), 1, basis.shape[2] + 1, dtype=torch.bool)
    for i in range(tokens.read.shape[1]):
        moved = tokens.move(i, basis)
        seen = basis if tokens.reads_before else moved
        swept.reads.append(torch.bmm(tokens.read[:, i, None], seen)[:, 0])
        # the state after the token, in terms of the basis before it and of the token's input
        wide = torch.cat([moved, tokens.write[:, i, :, None]], 2)
        product, finite = without_overflow(torch.bmm(roots[i + 1], wide))
        if finite is not None:
            wide = torch.where(finite[:, None, None], wide, 0.0)
            swept.overflowed.logical_or_(~finite)
        _, values, vectors = torch.linalg.svd(product, full_matrices=False)
        kept = limits.kept(values)
        sizes = kept.sum(1)
        if fixed_width:
            width = kept.shape[1] if limits.rank is None else min(kept.shape[1], limits.rank)
            rows = kept[:, :width, None]
            chosen = vectors[:, :width] * (rows & columns)
            columns = torch.cat([rows.mT, columns[:, :, -1:]], 2)
        else:
            chosen = vectors[:, : int(sizes)].clone()  # without what is cut in the same memory
        swept.steps.append(chosen)
        swept.sizes.append(sizes)
        swept.cut.append(values.masked_fill(kept, 0.0))
        basis = torch.bmm(wide, chosen.mT)
    return swept._replace(basis=basis)


def without_overflow(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Matrices `[N, m, n]`, zero where one is not finite, and bool `[N]` whether it is: None where all are."""
    if math.isfinite(float(x.sum())):  # the quickest way to see it
        return x, None
    finite = x.isfinite().flatten(1).all(1)
    if bool(finite.all()):
        return x, None
    return torch.where(finite[:, None, None], x, 0.0), finite
