"""What consecutive tokens of a recurrence are to all other tokens: a matrix to pass through, and what they add.

Whatever earlier tokens have written reaches the right edge of a slice of tokens through `Phi`, the product of the
slice's transitions, and what the slice itself has written is added there. With roots of Gramians (`F F^T = P`), where
slice 2 follows slice 1:

    Phi = Phi_2 Phi_1        F^T = R factor of [F_1^T Phi_2^T; F_2^T]

What later tokens read is the same in the other direction, with transposed transitions. Both are associative, so slices
may be joined in any grouping: a tree inside of a process, a scan over processes. Gramians themselves are never formed:
they would lose half of the digits, and small singular values with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.blocks import block_parts, cut, products_after, products_upto
from ..engine.boundary import carry
from ..engine.certainty import EPS
from ..engine.lost import TOKENS_A_ROUNDING
from ..engine.lost_rank_one import TokenSizes
from ..engine.outside import ROUNDING
from ..engine.parallel import triangular_root
from ..operators.structure import Tokens
from .scan import Summary

# bytes of parts of blocks that are made together
TOGETHER = 1 << 26
# squarings behind a bound of a 2-norm: it is then at most 1.08 times the norm of a 128 x 128 matrix
SQUARINGS = 4


@dataclass
class Passage(Summary):
    """One direction of a slice of tokens of `N` heads; leading axes `[N, ...]`.

    With diagonal transitions errors and norms are known for every state (`s = n`), otherwise for all together, `s = 1`.
    Errors are those of rounding, to first order.

    Attributes:
        Phi: what a state passes through, `[N, n]` (diagonal) or `[N, n, n]`.
        root: `[N, n, n]`, rows that add up to the Gramian of what the slice adds: `root^T root`.
        rows: how many rows of the root there are, the first ones: the number of tokens, at most n.
        norm: a bound of the 2-norm of Phi, `[N, s]`.
        drift: how wrong Phi is at most, `[N, s]`.
        error: how wrong the root is at most: its columns, or all of it, `[N, s]`.
    """

    Phi: Tensor
    root: Tensor
    rows: int
    norm: Tensor
    drift: Tensor
    error: Tensor

    @classmethod
    def empty(cls, heads: int, n: int, diagonal: bool, like: Tensor) -> Passage:
        """That of no tokens, of the dtype and on the device of `like`."""
        zeros = like.new_zeros(heads, n, n)
        none = zeros[:, 0] if diagonal else zeros[:, 0, :1]
        one = torch.ones_like(none)
        Phi = one if diagonal else torch.eye(n, dtype=like.dtype, device=like.device).expand(heads, n, n)
        return cls(Phi, zeros, 0, one, none, none)

    @property
    def diagonal(self) -> bool:
        return self.Phi.dim() < self.root.dim()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.Phi, self.root, self.norm, self.drift, self.error

    def of(self, tensors: Sequence[Tensor], rows: int) -> Passage:
        """Another one of other tensors."""
        Phi, root, norm, drift, error = tensors
        return Passage(Phi, root, rows, norm, drift, error)

    def each(self, change: Callable[[Tensor], Tensor]) -> Passage:
        """With every tensor changed."""
        return self.of([change(x) for x in self.tensors], self.rows)

    @classmethod
    def joined(cls, passages: Sequence[Passage]) -> Passage:
        """Those of several heads, side by side."""
        return passages[0].of([torch.cat(x) for x in zip(*(one.tensors for one in passages))], passages[0].rows)

    def sizes(self) -> Tensor:
        """Norms of the root's columns, or of all of it: `[N, s]`."""
        squares = self.root.square().sum(-2)
        return (squares if self.diagonal else squares.sum(-1, keepdim=True)).sqrt()

    def then(self, later: Passage) -> Passage:
        """This one, followed by `later`."""
        if self.diagonal:
            Phi = later.Phi * self.Phi
            norm = Phi.abs()
        else:
            Phi = later.Phi @ self.Phi
            norm = torch.minimum(later.norm * self.norm, spectral_bound(Phi)[..., None])
        n = self.root.shape[-1]
        carried = carry(self.root[..., : self.rows, :], later.Phi)
        root = _root_of_rows(torch.cat([carried, later.root[..., : later.rows, :]], -2))
        rounded = EPS * ROUNDING * n**0.5
        joined = Passage(Phi, root, min(n, self.rows + later.rows), norm, self.drift, self.error)
        drift = later.norm * self.drift + later.drift * self.norm + rounded * later.norm * self.norm
        error = later.norm * self.error + later.drift * self.sizes() + later.error + rounded * joined.sizes()
        # where states grow a bound may overflow, or be a product of zero and infinity, and says nothing then
        return replace(joined, drift=_bound(drift), error=_bound(error))


def _bound(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _root_of_rows(rows: Tensor) -> Tensor:
    """A root `[..., n, n]` with the Gramian of rows `[..., m, n]`: the rows themselves while there are at most n."""
    m, n = rows.shape[-2:]
    return triangular_root(rows) if m > n else torch.nn.functional.pad(rows, (0, 0, 0, n - m))


def spectral_bound(A: Tensor) -> Tensor:
    """A bound of the 2-norm of `[..., n, n]`, `[...]`, within a factor `n^(1/64)` of it."""
    # |M|_2 <= |M^16|_F^(1/16) for M = A^T A, in units of its largest entry, so that nothing overflows
    peak = A.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    power = A / peak
    power = power.mT @ power
    unit = power.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    power = power / unit
    for _ in range(SQUARINGS):
        power = power @ power
    size = power.square().sum((-2, -1)).pow(1 / 2 ** (SQUARINGS + 2))
    return peak[..., 0, 0] * unit[..., 0, 0].sqrt() * size * (1 + 1e-12)


def passages(tokens: Tokens, c: int) -> tuple[Passage, Passage]:
    """What tokens `[N, L, ...]` are to later ones (reach) and, with transposed transitions, to earlier ones (observe).

    Args:
        tokens: finite.
        c: so many of them are summed up at once, a power of two.
    """
    heads, length, n = tokens.read.shape
    reach = observe = Passage.empty(heads, n, tokens.diagonal, tokens.read)
    numbers = 8 * heads * c * (n if tokens.diagonal else n * n // c + 2 * n + 4 * c if tokens.rank_one else n * n)
    most = max(1, TOGETHER // (6 * numbers))
    start = 0
    while start < length:
        # as many blocks as a power of two, or what is left of the last block
        blocks = min(most, (length - start) // c)
        stop = start + c * 2 ** (blocks.bit_length() - 1) if blocks else length
        mine = tokens.map(lambda x: x[:, start:stop])  # noqa: B023 (used at once)
        later_reach, later_observe = _of_blocks(mine, min(c, stop - start))
        reach, observe = reach.then(later_reach), later_observe.then(observe)
        start = stop
    return reach, observe


def _of_blocks(tokens: Tokens, c: int) -> tuple[Passage, Passage]:
    """Both directions of `c 2^m` tokens, block by block and then as a tree."""
    parts = tokens.map(lambda x: x.unflatten(1, (-1, c)))
    reach, observe = _of_diagonal(parts) if tokens.diagonal else _of_others(parts)
    while reach.root.shape[1] > 1:
        (first, second), (before, after) = _halves(reach), _halves(observe)
        reach, observe = first.then(second), after.then(before)
    return reach.each(lambda x: x[:, 0]), observe.each(lambda x: x[:, 0])


def _halves(passage: Passage) -> tuple[Passage, Passage]:
    """Every first and every second one of neighbouring blocks `[N, B, ...]`."""
    return passage.each(lambda x: x[:, 0::2]), passage.each(lambda x: x[:, 1::2])


def _of_diagonal(blocks: Tokens) -> tuple[Passage, Passage]:
    """Blocks `[N, B, c, n]` with diagonal transitions, state by state."""
    a, c = blocks.transition, blocks.transition.shape[-2]
    running = products_upto(a, inclusive=True)
    seen = products_upto(a, inclusive=False) if blocks.reads_before else running
    Phi = running[..., -1, :]
    # a number takes a rounding for every token that it passes; factors of one round nothing, but are summed up over
    each = EPS * torch.where(Phi == 1, 1 / TOKENS_A_ROUNDING, 1.0)
    age = torch.arange(1, c + 1, dtype=a.dtype, device=a.device)[:, None]
    written, read = blocks.write * products_after(a), blocks.read * seen

    def passage(rows: Tensor, ages: Tensor) -> Passage:
        error = each * (rows * ages).square().sum(-2).sqrt()
        n = rows.shape[-1]
        rounded = EPS * ROUNDING * n**0.5 * rows.square().sum(-2).sqrt() if c > n else 0.0
        return Passage(Phi, _root_of_rows(rows), min(c, n), Phi.abs(), c * each * Phi.abs(), error + rounded)

    return passage(written, age.flip(0)), passage(read, age)


def _of_others(blocks: Tokens) -> tuple[Passage, Passage]:
    """Blocks `[N, B, c, n]` with transitions that are matrices, or have rank-one terms."""
    c, n = blocks.read.shape[-2:]
    padded = cut(blocks.map(lambda x: x.flatten(0, 1)), 1 << (c - 1).bit_length())
    parts = block_parts(padded.map(lambda x: x.reshape(*blocks.read.shape[:2], *x.shape[2:])))
    X, Z, Phi = parts.X[..., :c, :], parts.Z[..., :c, :], parts.Phi
    norm = spectral_bound(Phi)[..., None]
    if blocks.rank_one:
        rounded = EPS * TokenSizes.of(blocks).step.sum(-1, keepdim=True)
    else:
        largest = torch.linalg.matrix_norm(blocks.transition).amax(-1, keepdim=True)
        rounded = EPS * c * largest.clamp_min(1.0)

    def passage(Phi: Tensor, rows: Tensor, token: Tensor) -> Passage:
        # a number may have been larger than it is at the edge, but hardly larger than where it came from
        sizes = (rows.square().sum((-2, -1)) + token.square().sum((-2, -1))).sqrt()[..., None]
        return Passage(Phi, _root_of_rows(rows), min(c, n), norm, rounded * norm.clamp_min(1.0), rounded * sizes)

    return passage(Phi, Z, blocks.write), passage(Phi.mT, X, blocks.read)
