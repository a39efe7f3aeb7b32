"""Any lower triangular `T`: about `L^3` multiplications for all positions and one tolerance.

The root of the staircase is free: its pivots are `-I` or `+I`, so its two halves need one symmetric product each,
`T21^T T21` and `T21 T21^T`, and these serve every tolerance and every shift.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..caching import cached_property
from .certain import take_settled
from .certainty import EPS, HOPEFUL
from .cost import Cost
from .elimination import growth_of_first, subtract_symmetric
from .outside import Outside
from .quadrature import FINE, Estimate, Quadrature
from .scaling import largest, power_of_two
from .staircase import Answer, Eliminated, Nodes, bytes_of_node, descend
from .unsquared import UnsquaredEngine
from .wanted import Wanted

# up to this many positions singular values cost less than another round of eliminations
FEW_SVDS = 16
# positions whose squared norms differ by more than this do not share a scale
SCALE_RANGE = 256.0
MAX_SCALES = 8
# the scale of a last attempt, in units of the usual one
RESCUE_SCALE = 4.0
# up to this many positions singular values cost less than a last attempt, although it prunes most of the tree
FEW_RESCUED = 4
# how many sets of weights Schur's test tries, and the least share of the largest weight that any of them has
NORM_STEPS = 8
LEAST_WEIGHT = 1e-3
# what rounding errors of a sum of a million positive terms add to it
SUMMED = 1 + 1e-9


def schur_bound(v: Tensor, squared: Callable[[Tensor], Tensor]) -> Tensor:
    """An upper bound `[N]` of the squared norm of every `T`, right to rounding errors of sums.

    Schur's test: for any positive weights `v`, the squared norm is at most the largest ratio of `|T|^T |T| v` to `v`.
    Power iteration finds weights that bring it near the squared norm of `|T|`; where it has started and whether it has
    converged does not matter.

    Args:
        v: the first weights, positive, `[N, L, 1]`.
        squared: gives `|T|^T |T| v`.
    """
    bound = v.new_full(v.shape[:1], torch.inf)
    for _ in range(NORM_STEPS if v.shape[1] else 0):
        product = squared(v)
        bound = torch.minimum(bound, (product / v).amax((1, 2)))
        most = product.amax(1, keepdim=True)
        v = product / torch.where(most > 0, most, 1.0) + LEAST_WEIGHT
    return bound


def piece_length(length: int) -> int:
    """Positions that share an outside: its singular values cost `L^3` a piece, the rest `c^3` a position."""
    return 32 if length <= 512 else 48 if length <= 1024 else 64 if length <= 2048 else 128


def bytes_per_head(length: int) -> int:
    """What one head needs while its operator is in work: T, the two products, half of T with its factors."""
    return 8 * 5 * length * length


def bytes_of_heads(length: int, heads: int, shifts: int, budget: int) -> int:
    """What some heads take at most at so many shifts at a time."""
    held = heads * bytes_held(length)
    work = min(heads * shifts * bytes_of_node((length + 1) // 2), beside(budget, held, length))
    # making T takes a few copies of it
    return max(held + work, heads * 4 * 8 * length * length)


def bytes_held(length: int) -> int:
    """What of that one head holds from its first elimination to its last: T and the two products."""
    return 12 * length * length


def beside(budget: int, held: int, length: int) -> int:
    """What of a budget is left for eliminations: at least what a quarter of the positions takes."""
    return max(budget - held, bytes_of_node(length // 4 + 1))


class Matrix(UnsquaredEngine):
    """`N` heads of `T` `[N, L, L]`, of which only the strictly lower part is read.

    Attributes:
        T: scaled, zero on and above the diagonal.
        budget: bytes that eliminations may use beside what is held all the time.
    """

    state_size = None

    def __init__(self, T: Tensor, finite: Tensor, budget: int, cost: Cost):
        T = T.tril(-1)
        magnitude = largest(T)
        self.finite = finite & magnitude.isfinite()
        if not bool(self.finite.all()):
            T[~self.finite] = 0.0
        self.T, self.unit = power_of_two(T, torch.where(self.finite, magnitude, 0.0))
        self.length = self.group = T.shape[-1]
        self.budget, self.cost = beside(budget, len(T) * bytes_held(self.length), self.length), cost
        self._grams: dict[bool, Tensor] = {}

    def _gram(self, left: bool) -> Tensor:
        """`T21^T T21` `[N, h, h]` for the left half of the positions, `T21 T21^T` `[N, L - h, L - h]` for the right."""
        if left not in self._grams:
            h = (self.length + 1) // 2
            A = self.T[:, h:, :h] if left else self.T[:, h:, :h].mT
            zeros = A.new_zeros(A.shape[0], A.shape[2], A.shape[2])
            self._grams[left] = subtract_symmetric(zeros, -A, A)
        return self._grams[left]

    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        return self.staircase(wanted.positions, tau[..., 0], definite=False)

    def _typical_widths(self, asked: Tensor, doubtful: Tensor, width: Tensor) -> Tensor:
        # one group is the whole head: its smallest width would do for hardly any other position, its median does for
        # nearly all, unless a tolerance on a singular value of a large block has widened most
        own = torch.where(doubtful & width.isfinite(), width, torch.nan)
        median = own.nanmedian(-1, keepdim=True).values
        return torch.where(median <= HOPEFUL, median, super()._typical_widths(asked, doubtful, width))

    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        nodes = quadrature.nodes(wanted.device)
        scale = self.bound_of_squares() if scale is None else scale
        scale = torch.where(scale > 0, scale, 1.0)[:, None]
        each = wanted[:, None].expand(-1, len(nodes), -1)
        logdets = self.staircase(each, (nodes * scale).sqrt(), definite=True).value.view(each.shape)
        logdets = logdets.masked_fill(~wanted[:, None], torch.nan)
        found = quadrature.estimate(logdets, cap, self._rounding(cap) / scale)
        return found._replace(total=found.total * scale.sqrt())

    def _rounding(self, cap: Tensor) -> Tensor:
        """How wrong squared singular values are by rounding, `[N, L]`, on an average over `cap` of them.

        An entry of what is eliminated is a sum of products, wrong by about `EPS` times the root of both diagonal
        entries: a matrix of errors with a Frobenius norm of `EPS` times the squared one of `H`. Squares move by no more
        than its nuclear norm together (Lidskii), which is at most `sqrt(cap)` times that.
        """
        return EPS * self.squared_norms / cap.clamp_min(1.0).sqrt()

    def bound_of_squares(self) -> Tensor:
        """`[N]`, an upper bound of every squared singular value of every `H_i`.

        `H_i` is a submatrix of `T`, whose norm is at most the one that Schur's test gives, and at most the Frobenius
        norm of its own, the better one where signs cancel.
        """
        return SUMMED * torch.minimum(self.squared_norm, self.squared_norms.amax(-1))

    @property
    def squared_norm(self) -> Tensor:
        """An upper bound of the squared norm of `T`, `[N]`."""
        return self._sizes[0]

    @property
    def squared_norms(self) -> Tensor:
        """Squared Frobenius norm of every `H_i`, `[N, L]`, by sums of positive terms only."""
        return self._sizes[1]

    @cached_property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        A = self.T.abs()
        return schur_bound(A.new_ones(*A.shape[:2], 1), lambda v: A.mT @ (A @ v)), self._below(Tensor.square)

    def staircase(self, wanted: Tensor, shifts: Tensor, definite: bool) -> Eliminated:
        """Values and growth at `wanted` `[N, S, L]` for `shifts` `[N, S]`."""
        L, S = self.length, shifts.shape[1]
        wanted = wanted.flatten(0, 1)
        answer = Answer.of(wanted)
        if L < 2:
            return answer.eliminated
        h = (L + 1) // 2
        for left, first, last in ((True, 0, h), (False, h, L)):
            items = wanted[:, first:last].any(1).nonzero()[:, 0]
            for item in items.split(max(1, self.budget // bytes_of_node(h))):
                head = item // S
                # nobody else holds the half: it goes when its own halves are there
                descend(
                    self._half(left, first, last, item, head, shifts[head, item % S], definite),
                    answer,
                    definite,
                    self.budget,
                )
        return answer.eliminated

    def _half(
        self, left: bool, first: int, last: int, item: Tensor, head: Tensor, shift: Tensor, definite: bool
    ) -> Nodes:
        """A half of the root after its elimination: only one of R and C has anything but the empty pivots in it."""
        sign = 1.0 if definite else -1.0
        inverse = (1 / shift)[:, None, None]
        gram = self._gram(left)[head].mul_(inverse.square())
        updates = gram.diagonal(dim1=-2, dim2=-1)
        if left and not definite:
            updates = torch.cat([growth_of_first(updates[:, :1] - 1, updates[:, :1]), updates[:, 1:]], 1)
        growth = updates.amax(-1)
        if left:
            gram.mul_(-sign)
        own = -1.0 if left else sign
        gram.diagonal(dim1=-2, dim2=-1).add_(own)
        # in one byte a number: products and joined blocks with float64 are float64
        empty = torch.eye(last - first, dtype=torch.int8, device=gram.device).mul_(int(sign) if left else -1)
        return Nodes(
            R=empty.expand_as(gram) if left else gram,
            K=self._corner(head, first, last).mul_(inverse),
            C=gram if left else empty.expand_as(gram),
            value=torch.zeros_like(growth),
            growth=growth,
            least=torch.ones_like(growth),
            item=item,
            start=torch.full_like(item, first),
            stop=torch.full_like(item, last),
        )

    def _corner(self, head: Tensor, first: int, last: int) -> Tensor:
        """A copy of rows and columns `first..last-1` of some heads' `T`, `[len(head), m, m]`."""
        return self.T[head, first:last, first:last]

    def _refine_entropy(self, doubtful: Tensor, cap: Tensor, found: Estimate) -> Tensor:
        """More nodes, and for positions far below the norm of `T` scales that fit them."""
        norms, whole = self.squared_norms, self.bound_of_squares()
        rest = torch.zeros_like(doubtful)
        for _ in range(MAX_SCALES):
            # head by head, so that no head's answer depends on another's
            many = doubtful.sum(1, keepdim=True) > FEW_SVDS
            if not bool(many.any()):
                break
            scale = torch.minimum(norms.masked_fill(~doubtful, 0.0).amax(-1), whole)
            alike = doubtful & many & (norms * SCALE_RANGE >= scale[:, None])
            settled = take_settled(found, self.estimate(alike, FINE, cap, scale), alike)
            # positions that this scale does not settle would not be settled by a smaller one
            rest |= alike & ~settled
            doubtful = doubtful & ~alike
        rest |= doubtful
        if bool((rest.sum(1) > FEW_RESCUED).any()):
            # a larger scale has larger nodes, at which fewer pivots are lost
            scale = RESCUE_SCALE * torch.minimum(norms.masked_fill(~rest, 0.0).amax(-1), whole)
            rest &= ~take_settled(found, self.estimate(rest, FINE, cap, scale), rest)
        return rest

    def known_zero(self) -> Tensor:
        return self._below(Tensor.abs) == 0

    def _below(self, term: Callable[[Tensor], Tensor]) -> Tensor:
        """Sums over `H_i` of a term of every entry that is not negative, `[N, L]`."""
        return term(self.T).flip(1).cumsum(1).flip(1).tril(-1).sum(-1)

    def _pieces(self) -> list[tuple[int, int]]:
        c = piece_length(self.length)
        return [(start, min(start + c, self.length)) for start in range(0, self.length, c)]

    def _prepare(self) -> None:
        assert self.T is not None  # made at its first use where a backend does without it

    def _take_apart(self, head: int, start: int, stop: int) -> Outside:
        T = self.T[head, None]
        later, earlier, own = slice(stop, None), slice(None, start), slice(start, stop)
        return Outside.of(T[:, later, earlier], T[:, later, own], T[:, own, earlier], T[:, own, own])

    def _norm_bound(self) -> Tensor:
        return torch.linalg.matrix_norm(self.T)

    def _rank_cap(self) -> Tensor:
        """No larger than the numbers of rows and columns that are not zero."""
        first, last = self._extents()
        at = torch.arange(self.length, device=first.device)
        i = at[:, None]
        rows = ((at >= i) & (first[:, None] < i)).sum(-1)
        return torch.minimum(rows, ((at < i) & (last[:, None] >= i)).sum(-1))

    def _extents(self) -> tuple[Tensor, Tensor]:
        """The first column of every row that is not zero, beyond all where there is none, and the last row of every
        column, before all where there is none: int64 `[N, L]` both."""
        some = self.T != 0
        at = torch.arange(self.length, device=some.device)
        return torch.where(some, at, self.length).amin(2), torch.where(some, at[:, None], -1).amax(1)

    def _value_work(self, positions: Tensor) -> Tensor:
        # a values-only decomposition of an m x k block, m >= k, takes about 4 m k^2 - 4/3 k^3
        size = self.cap(positions).double()
        return 4 * size**2 * (self.length - size) - 4 / 3 * size**3

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        self.cost.note(len(heads), float(self._value_work(positions).sum()))
        widest = int(self.cap(positions).max()) if len(positions) else 0
        values = self.unit.new_zeros(len(heads), widest)
        for q, (head, i) in enumerate(zip(heads.tolist(), positions.tolist(), strict=True)):
            s = torch.linalg.svdvals(self._block_at(head, i))
            values[q, : len(s)] = s
        return values

    def _block_at(self, head: int, position: int) -> Tensor:
        """Scaled `H_i` of a head."""
        return self.T[head, position:, :position]
