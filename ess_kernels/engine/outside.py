"""Counts without squares, at any tolerance of a position's own: singular values of a block's outside, taken once.

The positions of a block of `c` tokens share their outside: `S` has the rows after the block and the columns before it.
With `S = X diag(s) Y^T`, position `r` of the block has the singular values of

    [ diag(s)   X^T N ]      N: later rows, own columns; only the first r of them
    [   .       far N ]      P: own rows, earlier columns; only the rows from r on
    [ P Y   far P   B ]      B: own rows, own columns

where `far N` and `far P` are what `S` does not reach, shrunk to `c` rows or columns by QR. The symmetric matrix
`[[-I, H], [H^T, -I]]` of `H` in units of the tolerance has one positive eigenvalue for every singular value above it.
Its pairs of `diag(s)` are eliminated by three weighted products. A pair that is weak where it is strongly coupled is
kept instead; one that is next to nothing is a part of what is far. What is left is a small symmetric matrix, whose
inertia comes from a factorisation with symmetric pivoting (Bunch and Kaufman's).

Errors are in proportion to `s_1 / tau`, never to its square. Each is the exact answer for another `H`:

- the factorisations of `S` and of what is far: their residuals, and what their vectors lack in orthogonality, are
  measured;
- products with these vectors: a sum of `n` terms errs by `eps` times its partial sums, all of them together by no more
  than `ROUNDING sqrt(n) eps` times the norm of what is multiplied, since the vectors are orthonormal (rounding errors
  taken as independent, Higham and Mary 2019; in the worst case `sqrt(n)` is `n`);
- the weighted products: the same times the sums of absolute terms, which the kept pairs keep small;
- the last factorisation: the same times `|A| + |L| |D| |L^T|` (Higham 2002, theorem 11.3), from the factors themselves.

A matrix that differs from the given one by `e tau` in norm has as many singular values above `tau`, unless one lies
within `e tau` of it (Weyl): the sum of all is the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .certainty import EPS

# rounding errors of a sum of n terms are below this times sqrt(n) eps of their magnitudes, but for one sum in 10^7
ROUNDING = 6.0
# singular values of the outside that are below this, in units of the tolerance, count as zero
FAINT = 1e-8
# a pair of which elimination adds more than this to a diagonal is kept
STRONG = 1e4
# at most so many pairs are kept, as a share of the block's positions
KEPT = 0.75
# by how much a computed norm may be too large, relatively
NORM_ERROR = 1e-12
# a vector whose share outside a subspace is below this lies in the subspace
EXHAUSTED = 1e-8
# positions whose matrices are made together
TOGETHER = 8


class Found(NamedTuple):
    """Numbers of singular values above tolerances, and relative widths; float64 of one shape."""

    above: Tensor
    width: Tensor


@dataclass
class Outside:
    """A batch of `J` blocks with the outside taken apart.

    Attributes:
        s: `[J, n]`, singular values of the outside.
        rows: `[J, c, n]`, `P Y`.
        cols: `[J, n, c]`, `X^T N`.
        inner: `[J, c, c]`, of which what lies strictly below the diagonal is read.
        far_rows: `[J, c, x]`, triangular in the last rows: row `r` has its first `c - r` columns.
        far_cols: `[J, x, c]`, upper triangular.
        error: `[J]`, the norm of what all this differs from the block by, up to an orthogonal change of basis.
    """

    s: Tensor
    rows: Tensor
    cols: Tensor
    inner: Tensor
    far_rows: Tensor
    far_cols: Tensor
    error: Tensor

    @classmethod
    def of(cls, S: Tensor, N: Tensor, P: Tensor, inner: Tensor, error: Tensor | None = None) -> Outside:
        """From `S` `[J, p, q]`, `N` `[J, p, c]`, `P` `[J, c, q]`, `inner` `[J, c, c]`, known up to `error` `[J]`."""
        p, q = S.shape[1:]
        n = min(p, q)
        X, s, Yh = torch.linalg.svd(S, full_matrices=False)
        cols, rows = X.mT @ N, P @ Yh.mT
        far_cols, lost_cols = _triangle(N - X @ cols if p > n else N[:, :0])
        far_rows, lost_rows = _triangle((P - rows @ Yh if q > n else P[..., :0]).flip(1).mT)
        norms = _norm(N) + _norm(P)
        lost = _norm(S - X @ (s[..., None] * Yh)) + lost_cols + lost_rows
        lost = lost + EPS * ROUNDING * math.sqrt(max(p, q, 1)) * (_norm(s[:, None]) + 2 * norms)
        if n:
            lost = lost + (_askew(X) + _askew(Yh.mT)) * (2 * s[:, 0] + norms)
        return cls(s, rows, cols, inner, far_rows.mT.flip(1), far_cols, lost if error is None else lost + error)

    def counts(self, tau: Tensor, wanted: Tensor) -> Found:
        """How many singular values exceed `tau` `[J, c]` at the positions `wanted`, bool `[J, c]`."""
        c = tau.shape[1]
        found = Found(torch.zeros_like(tau), torch.full_like(tau, torch.inf))
        least = torch.where(wanted, tau, torch.inf).amin(1)
        blocks = self._without_faint(FAINT * least)
        for first in range(0, c, TOGETHER):
            last = min(first + TOGETHER, c)
            some = wanted[:, first:last].any(1).nonzero()[:, 0]
            if len(some):
                mine = Found(*blocks._counts(some, tau[some, first:last], first))
                found.above[some, first:last], found.width[some, first:last] = mine
        return Found(*(x.masked_fill(~wanted, fill) for x, fill in zip(found, (0.0, torch.inf), strict=True)))

    def largest(self, steps: int) -> Tensor:
        """What the largest singular value is at least, `[J, c]`, by `steps` of Lanczos' method for every position."""
        J, c, n = self.rows.shape
        x, y = self.far_cols.shape[1], self.far_rows.shape[2]
        r = torch.arange(c, device=self.s.device)
        has_row, has_col = (r[:, None] >= r).to(self.s.dtype), (r[:, None] < r).to(self.s.dtype)
        inner, s = self.inner.tril(-1), self.s[..., None]

        def image(v: Tensor) -> Tensor:
            seen, far, own = v.split([n, y, c], 1)
            mine = (self.rows @ seen + self.far_rows @ far + inner @ own) * has_row
            return torch.cat([s * seen + self.cols @ own, self.far_cols @ own, mine], 1)

        def back(u: Tensor) -> Tensor:
            seen, far, own = u.split([n, x, c], 1)
            mine = (self.cols.mT @ seen + self.far_cols.mT @ far + inner.mT @ own) * has_col
            return torch.cat([s * seen + self.rows.mT @ own, self.far_rows.mT @ own, mine], 1)

        def size(v: Tensor) -> Tensor:
            return torch.linalg.vector_norm(v, dim=1, keepdim=True)

        def normalised(v: Tensor, least: Tensor | float = 0.0) -> Tensor:
            norm = size(v)
            return torch.where(norm > least, v / norm, 0.0)

        start = torch.randn(n + y + c, 1, dtype=s.dtype, generator=torch.Generator().manual_seed(0)).to(s.device)
        v = normalised(back(image(start.expand(J, -1, c) * torch.cat([has_col.new_ones(n + y, c), has_col]))))
        basis, images = [v], [image(v)]
        for _ in range(steps - 1):
            v, known = back(images[-1]), torch.stack(basis)
            # where the subspace is exhausted only rounding errors are left, which are no new direction
            least = EXHAUSTED * size(v)
            for _ in range(2):  # orthogonal to working accuracy
                v = normalised(v - (known * (known * v).sum(2, keepdim=True)).sum(0), least)
                least = 0.5 * size(v)
            basis.append(v)
            images.append(image(v))
        known, seen = torch.stack(basis, -1), torch.stack(images, -1)
        gram = torch.einsum("jdpk,jdpl->jpkl", seen, seen)
        best = torch.linalg.eigh(gram).eigenvectors[..., -1][:, None]  # [J, 1, c, steps]
        v = normalised((known * best).sum(-1))
        return (torch.linalg.vector_norm(image(v), dim=1) * (1 - NORM_ERROR) - self.error[:, None]).clamp_min(0.0)

    def none_above(self, tau: Tensor, wanted: Tensor) -> Found:
        """Whether no singular value exceeds `tau` `[J, c]`, 0 or 1, and the width, at the positions `wanted`.

        Near the largest singular value squares lose nothing, so what is far is eliminated as well. What is left is
        definite if and only if no singular value is above the tolerance, and a Cholesky factorisation tells.
        """
        found = Found(torch.ones_like(tau), torch.full_like(tau, torch.inf))
        J, c, n = self.rows.shape
        far_rows, far_cols = self.far_rows @ self.far_rows.mT, self.far_cols.mT @ self.far_cols
        for first in range(0, c, TOGETHER):
            last = min(first + TOGETHER, c)
            if not bool(wanted[:, first:last].any()):
                continue
            m, k = c - first, last
            tolerance = tau[:, first:last, None]
            p, q, s = self.rows[:, None, first:], self.cols[:, None, :, :k], self.s[:, None]
            weight = 1 / ((tolerance - s) * (tolerance + s))
            share = p * weight[:, :, None]
            square = tolerance.square()[..., None]
            R = share @ p.mT + far_rows[:, None, first:, first:] / square
            C = (q.mT * weight[:, :, None]) @ q + far_cols[:, None, :k, :k] / square
            across = (self.inner[:, None, first:, :k] + share @ (s[..., None] * q)) / tolerance[..., None]
            r = torch.arange(first, last, device=tau.device)[:, None]
            has_row = torch.arange(first, c, device=tau.device) >= r  # [G, m]
            has_col = torch.arange(k, device=tau.device) < r
            here = torch.cat([has_row, has_col], 1).to(tau.dtype)
            A = torch.cat([torch.cat([R, across], 3), torch.cat([across.mT, C], 3)], 2)
            A = A * (-here[:, :, None] * here[:, None])
            grown = -A.diagonal(dim1=2, dim2=3).sum(2)  # of terms that are all of one sign
            A.diagonal(dim1=2, dim2=3).add_(1.0)
            _, info = torch.linalg.cholesky_ex(A.flatten(0, 1))
            above = ((info.view(J, -1) != 0) | (s >= tolerance).any(-1)).to(tau.dtype)
            sums = EPS * ROUNDING * (math.sqrt(max(n, 1)) + math.sqrt(m + k))
            found.above[:, first:last] = above
            found.width[:, first:last] = self.error[:, None] / tau[:, first:last] + sums * (m + k + 2 * grown)
        return found

    def _without_faint(self, faint: Tensor) -> Outside:
        """Singular values of the outside up to `faint` `[J]` taken for zero: their rows and columns are far."""
        flat = self.s <= faint[:, None]
        if not bool(flat.any()):
            return self
        # pairs that are faint in every block are dropped from the arrays
        kept = int((~flat).sum(1).max())
        far_cols, lost_cols = _triangle(torch.cat([self.far_cols, self.cols * flat[..., None]], 1))
        far_rows, lost_rows = _triangle(torch.cat([self.far_rows, self.rows * flat[:, None]], 2).flip(1).mT)
        return Outside(
            self.s.masked_fill(flat, 0.0)[:, :kept],
            self.rows.masked_fill(flat[:, None], 0.0)[..., :kept],
            self.cols.masked_fill(flat[..., None], 0.0)[:, :kept],
            self.inner,
            far_rows.mT.flip(1),
            far_cols,
            self.error + faint.nan_to_num(posinf=0.0) + lost_cols + lost_rows,
        )

    def _counts(self, some: Tensor, tau: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The same at positions from `first` on of some blocks, `tau` `[B, G]`."""
        B, G = tau.shape
        c, n = self.inner.shape[-1], self.s.shape[1]
        m, k = c - first, first + G
        s, p, q, inner = self.s[some], self.rows[some, first:], self.cols[some, :, :k], self.inner[some, first:, :k]
        tolerance = tau[..., None]
        weight = 1 / ((s[:, None] - tolerance) * (s[:, None] + tolerance))  # [B, G, n], infinite for a tie
        # what eliminating a pair adds to the rows, to the columns
        rows, cols = p.square().sum(1)[:, None], q.square().sum(2)[:, None]
        added = (weight.abs() * torch.maximum(rows, cols)).nan_to_num(nan=torch.inf).amax(1)
        most = min(n, int(KEPT * c), int((added > STRONG).sum(1).max()) if n else 0)
        at = added.topk(most, 1).indices  # [B, most]; to keep a pair for the sake of another block does no harm
        kept = at[:, None].expand(-1, G, -1)
        weight = weight.scatter(2, kept, 0.0)
        above = (s[:, None] > tolerance).to(tau.dtype).scatter(2, kept, 0.0).sum(-1)
        between = weight.abs() * (s[:, None] / tolerance)
        grown = (weight.abs() * (rows + cols)).sum(-1) + 2 * (
            (between * rows).sum(-1) * (between * cols).sum(-1)
        ).sqrt()
        weight = weight.masked_fill(weight.isinf(), 0.0)
        # where all positions have the same tolerance, one product serves them all
        if bool((tau == tau[:, :1]).all()):
            weight, tolerance = weight[:, :1], tolerance[:, :1]
        inverse = 1 / tolerance[..., None]
        r = torch.arange(first, first + G, device=tau.device)[:, None]
        has_row = (torch.arange(first, c, device=tau.device) >= r).to(tau.dtype)  # [G, m]
        has_col = (torch.arange(k, device=tau.device) < r).to(tau.dtype)  # [G, k]
        weighted = p[:, None] * weight[:, :, None]
        across = (inner[:, None] - weighted @ (s[..., None] * q)[:, None]) * inverse
        x, y = min(k, self.far_cols.shape[1]), min(m, self.far_rows.shape[2])
        far_x, far_y, pair_x, pair_y = m + k, m + k + x, m + k + x + y, m + k + x + y + most
        size = pair_y + most
        A = tau.new_zeros(B, G, size, size)  # its lower triangle
        A[..., :m, :m] = (weighted @ p.mT[:, None]) * (-has_row[:, :, None] * has_row[:, None])
        A[..., m:far_x, m:far_x] = ((q.mT[:, None] * weight[:, :, None]) @ q[:, None]) * (
            -has_col[:, :, None] * has_col[:, None]
        )
        A[..., m:far_x, :m] = across.mT * (has_col[:, :, None] * has_row[:, None])
        A[..., far_x:far_y, m:far_x] = self.far_cols[some, None, :x, :k] * (inverse * has_col[:, None])
        A[..., far_y:pair_x, :m] = self.far_rows[some, None, first:, :y].mT * (inverse * has_row[:, None])
        if most:
            index = at[..., None].expand(-1, -1, k), at[:, None].expand(-1, m, -1)
            A[..., pair_x:pair_y, m:far_x] = q.gather(1, index[0])[:, None] * (inverse * has_col[:, None])
            A[..., pair_y:, :m] = p.gather(2, index[1]).mT[:, None] * (inverse * has_row[:, None])
            A[..., pair_y:, pair_x:pair_y] = torch.diag_embed(s.gather(1, at))[:, None] * inverse
        A.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        rest, error = inertia(A.flatten(0, 1))
        width = self.error[some][:, None] / tau + EPS * ROUNDING * math.sqrt(max(n, 1)) * grown
        return above + rest.view(B, G), width + error.view(B, G)


def inertia(A: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of positive eigenvalues of symmetric matrices, and the norm of what they are exact up to, `[B]`.

    Args:
        A: `[B, m, m]`, their lower triangles, with nothing above the diagonal.
    """
    m = A.shape[-1]
    LD, pivots, _ = torch.linalg.ldl_factor_ex(A)
    d, e = LD.diagonal(dim1=-2, dim2=-1).clone(), LD.diagonal(-1, -2, -1)
    paired = pivots < 0
    # pairs follow each other: the first of each is the one with an even number of paired ones before it
    head = paired & (paired.cumsum(-1) % 2 == 1)
    beside = torch.nn.functional.pad(e, (0, 1)).where(head, 0.0)
    # a pair of pivots always has one of each sign
    above = ((d > 0) & ~paired).sum(-1) + head.sum(-1)
    # what is left below the diagonal is L
    LD.diagonal(dim1=-2, dim2=-1).zero_()
    e.masked_fill_(head[..., :-1], 0.0)
    lengths = 1 + torch.linalg.vector_norm(LD, dim=-2).square()
    after = torch.nn.functional.pad(beside[..., :-1], (1, 0))
    product = (lengths * (d.abs() + beside.abs() + after.abs())).sum(-1)
    return above.to(A.dtype), (EPS * ROUNDING * math.sqrt(m)) * (2 * torch.linalg.vector_norm(A, dim=(1, 2)) + product)


def _norm(A: Tensor) -> Tensor:
    return A.flatten(1).square().sum(1).sqrt()


def _askew(X: Tensor) -> Tensor:
    """How far columns `[J, m, n]` are from orthonormal."""
    return _norm(X.mT @ X - torch.eye(X.shape[-1], dtype=X.dtype, device=X.device))


def _triangle(A: Tensor) -> tuple[Tensor, Tensor]:
    """`R` of `A = Q R`, `[J, min(m, k), k]` of `[J, m, k]`, and what it has lost, `[J]`."""
    if not A.shape[1]:
        return A, A.new_zeros(len(A))
    Q, R = torch.linalg.qr(A)
    sums = EPS * ROUNDING * math.sqrt(A.shape[1])
    return R, _norm(A - Q @ R) + (_askew(Q) + sums) * _norm(A)
