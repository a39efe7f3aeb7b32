"""The boundary of a block: what all earlier inputs and all later outputs do to it, through `n` numbers each.

With reachability Gramian `P_a = F F^T` at a block's left edge and observability Gramian `Q_e` at its right edge, let
`S = F^T Phi^T Q_e Phi F`: its eigenvalues are the squared singular values of `T[e:, :a]`. `S` is diagonalised once per
block and then serves every tolerance and every shift at the price of one product. `F` comes from QR updates
(`F^T` of the next edge is the R factor of `[F^T Phi^T; Z]`), never from a factorisation of `P`, which would lose half
of the digits, and small singular values with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import Blocks
from .parallel import eigh, triangular_root
from .staircase import Nodes


def carry(rows: Tensor, Phi: Tensor) -> Tensor:
    """`rows Phi^T`: state vectors (rows) carried through a block."""
    return rows * Phi[..., None, :] if Phi.dim() == rows.dim() - 1 else rows @ Phi.mT


def _observe(rows: Tensor, Phi: Tensor) -> Tensor:
    """`rows Phi`: read-outs after a block, seen from before it."""
    return rows * Phi[..., None, :] if Phi.dim() == rows.dim() - 1 else rows @ Phi


def reach_root_step(root: Tensor, blocks: Blocks) -> Tensor:
    """`F^T` at the right edge of a block from `F^T` at its left edge, `[..., n, n]` upper triangular."""
    return triangular_root(torch.cat([carry(root, blocks.Phi), blocks.Z], -2))


def observe_root_step(root: Tensor, blocks: Blocks) -> Tensor:
    """`G` (`G^T G = Q`) at the left edge of a block from `G` at its right edge, `[..., n, n]` upper triangular."""
    return triangular_root(torch.cat([_observe(root, blocks.Phi), blocks.X], -2))


def reach_roots(blocks: Blocks) -> Tensor:
    """`F^T` at the left edge of every block: `[N, B, n, n]`."""
    N, B, n = len(blocks.Z), blocks.number, blocks.Z.shape[-1]
    roots = blocks.Z.new_zeros(N, B, n, n)
    for b in range(B - 1):
        roots[:, b + 1] = reach_root_step(roots[:, b], blocks[:, b])
    return roots


def observe_roots(blocks: Blocks) -> Tensor:
    """`G` at the right edge of every block: `[N, B, n, n]`."""
    N, B, n = len(blocks.X), blocks.number, blocks.X.shape[-1]
    roots = blocks.X.new_zeros(N, B, n, n)
    for b in range(B - 1, 0, -1):
        roots[:, b - 1] = observe_root_step(roots[:, b], blocks[:, b])
    return roots


def observe_gramians(blocks: Blocks) -> Tensor:
    """`Q_e` at the right edge of every block: `[N, B, n, n]`."""
    N, B, n = len(blocks.X), blocks.number, blocks.X.shape[-1]
    gramians = blocks.X.new_zeros(N, B, n, n)
    increments = blocks.X.mT @ blocks.X
    for b in range(B - 1, 0, -1):
        here = blocks.at((slice(None), b))
        Phi, Q = blocks.Phi[here], gramians[:, b]
        carried = _observe(_observe(Q, Phi).mT, Phi)
        gramians[:, b - 1] = carried + increments[here]
    return gramians


def norm_bound(gram: Tensor) -> Tensor:
    """A bound of the norm of symmetric `[J, m, m]`, `[J]`, within a factor `m^(1/8)` of it."""
    # ||M||_2 <= ||M M||_F^(1/2), and so on
    peak = gram.abs().amax((-2, -1)).clamp_min(1e-300)
    square = gram / peak[:, None, None]
    square = square @ square
    square = square @ square
    return peak * square.square().sum((-2, -1)).pow(1 / 8)


@dataclass
class Boundary:
    """A block's outside, diagonalised, for `J` blocks.

    Attributes:
        squares: `[J, n]`, eigenvalues of `S`.
        coupling: `[J, n, 2c]`, `[F^T X^T, F^T Phi^T Q Z^T]` in the eigenbasis of `S`.
        corner: `[J, c, c]`, `Z Q Z^T`.
        inner: `[J, c, c]`, `Y`.
        magnitude: `[J]`, the largest sum of absolute terms behind a diagonal entry of `S` or of the corner: rounding
            errors there are in proportion to it.
    """

    squares: Tensor
    coupling: Tensor
    corner: Tensor
    inner: Tensor
    magnitude: Tensor

    @classmethod
    def of(cls, blocks: Blocks, root: Tensor, Q: Tensor) -> Boundary:
        """From block parts `[J, ...]`, `F^T` at the left edges and `Q` at the right edges, `[J, n, n]`."""
        carried = carry(root, blocks.Phi)
        seen = carried @ Q
        squares, basis = eigh(seen @ carried.mT)
        coupling = basis.mT @ torch.cat([root @ blocks.X.mT, seen @ blocks.Z.mT], -1)
        mass = Q.diagonal(dim1=-2, dim2=-1)[..., None]
        rows = torch.cat([carried, blocks.Z], -2)
        return cls(
            squares,
            coupling,
            blocks.Z @ Q @ blocks.Z.mT,
            blocks.Y,
            (rows.square() @ mass)[..., 0].amax(-1),
        )

    def scale(self) -> Tensor:
        """`[J]`: a bound of the squared largest singular value at all positions of the block."""
        c = self.inner.shape[-1]
        past_rows = self.coupling[..., :c]
        return (
            self.squares[..., -1].clamp_min(0)
            + norm_bound(past_rows.mT @ past_rows)
            + norm_bound(self.corner)
            + norm_bound(self.inner.mT @ self.inner)
        )

    def nodes(self, definite: bool, which: Tensor, shift: Tensor, item: Tensor, start: Tensor, stop: Tensor) -> Nodes:
        """Eliminates the outside for a batch of (block, shift) pairs.

        Args:
            definite: log-determinants (`True`) or counts.
            which: int64 `[B]`, the block of each pair, an index into this boundary.
            shift: `[B]`, `tau` (counts) or `sqrt(t)` (log-determinants).
            item, start, stop: as in `Nodes`.
        """
        c = self.inner.shape[-1]
        sign = 1.0 if definite else -1.0
        inverse = (1 / shift)[:, None]
        units = torch.cat([inverse.expand(-1, c), inverse.square().expand(-1, c)], 1)
        coupling = self.coupling[which] * units[:, None]
        pivots = 1 + sign * self.squares[which] * inverse.square()
        scaled = coupling / pivots[..., None]
        product = coupling.mT @ scaled
        one = torch.eye(c, dtype=product.dtype, device=product.device)
        corner = self.corner[which] * inverse.square()[..., None]
        R = product[:, :c, :c] + sign * one
        K = self.inner[which] * inverse[..., None] - sign * product[:, :c, c:]
        C = product[:, c:, c:] - sign * corner - one
        if definite:
            value, growth, least = pivots.log().sum(-1), torch.zeros_like(shift), torch.ones_like(shift)
        else:
            value = (pivots < 0).sum(-1).to(shift.dtype)
            update = (coupling * scaled).abs().sum(1).amax(-1)
            growth = torch.maximum(update, self.magnitude[which] * inverse[:, 0].square())
            least = torch.maximum(pivots.abs(), coupling.abs().amax(-1)).amin(-1)
        return Nodes(R, K, C, value, growth, least, item, start, stop)
