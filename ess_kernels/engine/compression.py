"""A dense causal operator turned into the block parts of a recurrence, with a proven bound of what that loses.

Edges `e` lie every `c` tokens. At an edge `a` there are `R_a` `[r, a]`, orthonormal rows that are never formed, and
`O_a = T[a:, :a] R_a^T` `[L - a, r]`. For the block `[a, e)`:

    X = the first c rows of O_a,     Y = T[a:e, a:e] below its diagonal,
    M = [ O_a[c:], T[e:, a:e] ] = U S V^T,       V = [ V_1, V_2 ]:   V_2 is dropped,   delta_e = |M V_2|_2
    Phi = V_1^T[:, :r],   Z^T = V_1^T[:, r:],   O_e = M V_1,   R_e = V_1^T diag(R_a, 1)

The tile `T[e:, a:e]` is made when it is needed, so that nothing of the size of T ever exists: `O(L (r + c))` numbers,
and `L^2 / (2 c) (r + c) (3 r + c)` multiplications where the rank is r at every edge.

**The bound.** Let `T~` be the operator of the block parts. `T - T~ = sum_e E_e` with `E_e = H_e D_e`, where `D_e`
projects on what was dropped at e: on a part of the rows of `diag(R_a, 1)`, orthogonal to those of `R_e`. All later `D`
project on parts of the rows of `R_e` and of newer columns. So the `D_e` are orthogonal to each other, and
`(T - T~) (T - T~)^T = sum_e E_e E_e^T`:

    max delta_e <= |T - T~|_2 <= (sum delta_e^2)^(1/2),  |T - T~|_F^2 = sum |E_e|_F^2,  |T - T~|_* <= sum |E_e|_*.

Both ends of the first are attained. `H_i - H~_i` is a submatrix of `T - T~` at every position, also inside of blocks.

**Rounding.** With the V that was computed, `M = M V V^T + M (1 - V V^T)`, and the product `M V_1` is rounded. What
either loses at an edge is added to the errors as it is, because it lies in no space of its own:
`|M|_F (|1 - V^T V|_F + ROUNDING sqrt(w) eps)` for M of w columns. Singular values of M are found from `M^T M` where an
edge may lose more than the squares' rounding errors, and from the R factor of M elsewhere; their own errors are added
to `delta_e`. Entries below `VANISHING` may leave no trace in any square, of M or of what was dropped: where M holds
numbers other than zero, as much as all of its entries can lose in that way is added as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .blocks import Blocks
from .certainty import EPS
from .outside import ROUNDING

# squares are taken where an edge may lose this many times the rounding errors of what it drops
SQUARED = 4.0
# the largest share of the error asked for that is set aside for rounding
SET_ASIDE = 0.5
# squares of smaller numbers are rounded off by more than their last digit, or to zero; with room for sums of them
VANISHING = 2.0**-500

Tile = Callable[[slice, slice], Tensor]


class TooWide(Exception):
    """The walk would take more operations than it may: `rank` at `edge` says why."""

    def __init__(self, rank: int, edge: int):
        super().__init__(f"rank {rank} at position {edge}")
        self.rank, self.edge = rank, edge


@dataclass
class Walked:
    """What a walk over one head has found.

    Attributes:
        blocks: block parts `[B, c, n]`, ..., filled up with zeros to the largest rank n; Phi is dense.
        ranks: at the edges, B - 1 of them.
        spectral, frobenius, nuclear: bounds of those norms of `T - T~`.
    """

    blocks: Blocks
    ranks: list[int]
    spectral: float
    frobenius: float
    nuclear: float


@dataclass
class _Spent:
    """Errors so far: sums of squares of what was dropped, the sum of nuclear norms, and what rounding has taken."""

    squares: float = 0.0
    frobenius: float = 0.0
    nuclear: float = 0.0
    rounding: float = 0.0
    ranks: list[int] = field(default_factory=list)


def bytes_of_walk(length: int, rank: int, c: int) -> int:
    """What a walk takes where ranks stay as they are, beside what makes its tiles: a tile, O, M and what decomposes M,
    and block parts, before and after they are filled up to one rank."""
    return 8 * (length * (3 * (rank + c) + c) + 2 * -(-length // c) * (2 * rank * c + c * c + rank * rank))


def walk(
    tile: Tile,
    length: int,
    error: float,
    c: int,
    max_rank: int | None,
    device: torch.device,
    most: float = math.inf,
    announce: Callable[[int], None] = lambda size: None,
) -> Walked:
    """Compresses one head.

    Every edge may spend the same share of the squared error that is left; what it does not need is left to the others.

    Args:
        tile: `tile(rows, columns)` of `T` `[rows, columns]`, float64; what lies above the diagonal is not read.
        length: L.
        error: what the 2-norm of `T - T~` may become. It becomes more where `max_rank` is in the way, or rounding.
        c: tokens a block.
        max_rank: the largest rank that an edge may keep, if any.
        device: of the tiles.
        most: floating-point operations that the walk may take, as far as can be told from the ranks so far.
        announce: told what the walk takes, in bytes, before it begins, and again where a rank turns out to be larger.

    Raises:
        TooWide: it would take more.
    """
    edges = list(range(c, length, c))
    seen = torch.zeros(length, 0, dtype=torch.float64, device=device)  # O
    parts: list[tuple[Tensor, ...]] = []
    spent, work, largest = _Spent(), 0.0, 0
    announce(bytes_of_walk(length, 0, c))
    for b, e in enumerate(edges):
        own = slice(e - c, e)
        X, Y = seen[:c].clone(), tile(own, own).tril(-1)  # a view would keep all of O
        M = torch.cat([seen[c:], tile(slice(e, length), own)], 1)
        m, w = M.shape
        allowed = (_budget(error, spent.rounding, b, len(edges)) ** 2 - spent.squares) / (len(edges) - b)
        values, V, size = right_singular_vectors(M, allowed)
        drop = int((values.square() <= allowed).sum())
        if max_rank is not None:
            drop = max(drop, w - max_rank)
        dropped, kept = values[:drop], V[:, drop:].contiguous()
        if drop:
            spent.squares += float(dropped[-1]) ** 2
            spent.frobenius += float(dropped.square().sum())
            spent.nuclear += float(dropped.sum())
        spent.rounding += size * (_defect(V) + EPS * ROUNDING * math.sqrt(w))
        if bool(M.any()):
            spent.rounding += VANISHING * math.sqrt(m) * w
        r = seen.shape[1]
        parts.append((X, Y, kept[r:], kept[:r].T))
        seen = M @ kept
        rank = w - drop
        spent.ranks.append(rank)
        if rank > largest:
            largest = rank
            announce(bytes_of_walk(length, rank, c))
        work += m * w * (w + 2.0 * rank) + 10.0 * w**3
        # what is to come if the rank stays as it is
        if work + sum((length - x) * (rank + c) * (3.0 * rank + c) for x in edges[b + 1 :]) > most:
            raise TooWide(rank, e)
    last = slice(edges[-1] if edges else 0, length)
    parts.append((seen, tile(last, last).tril(-1)))
    ranks = spent.ranks
    narrow = math.sqrt(2 * max([1, *ranks]))  # the rank of what rounding has taken at an edge
    return Walked(
        _stacked(parts, c, max([1, *ranks]), device),
        ranks,
        math.sqrt(spent.squares) + spent.rounding,
        math.sqrt(spent.frobenius) + spent.rounding,
        spent.nuclear + narrow * spent.rounding,
    )


def _budget(error: float, rounding: float, edge: int, edges: int) -> float:
    """What of the error is left for what is dropped, if rounding goes on as it has begun."""
    foreseen = rounding * edges / edge if edge else 0.0
    return max(error - foreseen, SET_ASIDE * error)


def right_singular_vectors(M: Tensor, allowed: float) -> tuple[Tensor, Tensor, float]:
    """Singular values of `M` `[m, w]`, ascending, at least as large as they are; right singular vectors; `|M|_F`.

    Args:
        M: the matrix.
        allowed: the square of what may be dropped: squares of M are taken where they are good enough for that.

    Returns:
        values `[w]` with their rounding errors added, V `[w, w]`.
    """
    m, w = M.shape
    size = float(torch.linalg.vector_norm(M))
    # of sums of m terms, and of the decomposition
    errors = EPS * ROUNDING * math.sqrt(m + w) * size**2
    if m >= w and SQUARED * errors <= allowed:
        squares, V = torch.linalg.eigh(M.T @ M)
        return (squares.clamp_min(0) + errors).sqrt(), V, size
    R = torch.linalg.qr(M, mode="r").R if m >= w else M
    _, s, Vh = torch.linalg.svd(R, full_matrices=True)
    values = M.new_zeros(w)
    # each of w reflections is a sum of m terms
    values[w - len(s) :] = s.flip(0) + EPS * ROUNDING * math.sqrt(m + w * w) * size
    # a wide M has no more values than rows; the vectors beyond them are off by rounding as the others are
    values[: w - len(s)] = EPS * ROUNDING * math.sqrt(m + w * w) * size
    return values, Vh.T.flip(1), size


def _defect(V: Tensor) -> float:
    """How far square V is from orthogonal: `|1 - V V^T|_F`."""
    return float(torch.linalg.matrix_norm(V @ V.T - torch.eye(len(V), dtype=V.dtype, device=V.device)))


def _stacked(parts: list[tuple[Tensor, ...]], c: int, n: int, device: torch.device) -> Blocks:
    """Block parts of all blocks, zero where ranks are smaller than n, and where the last block has fewer tokens."""
    B = len(parts)
    shapes = ((c, n), (c, c), (c, n), (n, n))
    X, Y, Z, Phi = (torch.zeros(B, *shape, dtype=torch.float64, device=device) for shape in shapes)
    for b, part in enumerate(parts):
        for into, given in zip((X, Y, Z, Phi), part):
            into[b, : given.shape[0], : given.shape[1]] = given
    return Blocks(X, Y, Z, Phi)
