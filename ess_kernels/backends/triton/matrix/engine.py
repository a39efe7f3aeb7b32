"""Any lower triangular `T` on the GPU: the staircase of `engine.tiled`, all heads, shifts and nodes of a level at once.

Nearly all work is in matrix products. Two things make them smaller:

- Along the two edges of the tree one of `R` and `C` stays empty, so that the first and last node of every level follow
  from `T` and one Gram matrix each, shared by all shifts; only their inner halves are eliminated.
- Of `R`, `C` and `K` the lower triangle is enough. Large products leave out most of the upper one.

With perfect triangles a shift takes `0.127 L^3` multiplications, the Gram matrices once `0.143 L^3`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....engine.cost import Cost
from ....engine.staircase import Answer, Eliminated
from ....engine.tiled import Matrix
from ..staircase.descent import Roots, descend
from .elimination import eliminate
from .halves import children, edge

# nodes of at most this many positions go to the kernels that finish them inside
LEAF = 64
# bytes per h^2 that one elimination of a level needs: [E | V] and its scaled rows, what is kept, the products, and
# what the next level starts with
ELIMINATION_BYTES = 8 * 15
# a product is cut as long as its pieces have this many entries, of all items together, and rows: enough for a GPU
PIECE_ENTRIES, PIECE_ROWS = 2**20, 128


@dataclass
class Family:
    """Nodes of one level that are not at an edge, before their last update: `[R, K, C] = kept - update`.

    Attributes:
        kept, update: float64 `[B, 3, m, m]`, of which the lower triangles count.
        value, growth, least: `[B]`, as in `engine.staircase.Nodes`.
        where: the nodes' places.
    """

    kept: Tensor
    update: Tensor
    value: Tensor
    growth: Tensor
    least: Tensor
    where: Places


@dataclass
class Places:
    """Rows of the answer and positions `start..stop-1` of nodes, int64 `[B]` on the CPU, where the tree is grown.

    `origin` says where a node comes from: 0 the family's node `index` or its half `side`, 1 the first node of the level
    above, 2 the last one.
    """

    origin: Tensor
    index: Tensor
    side: Tensor
    item: Tensor
    start: Tensor
    stop: Tensor

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, index: Tensor | slice) -> Places:
        return Places(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @classmethod
    def all_of(cls, *pieces: Places) -> Places:
        return cls(*(torch.cat([getattr(x, name) for x in pieces]) for name in cls.__dataclass_fields__))


def half(size: int) -> int:
    """Half of a node, in whole tiles."""
    return (size + 31) // 32 * 16


def lower_product(out: Tensor, A: Tensor, B: Tensor, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """`out = beta out + alpha A^T B`, at least in the lower triangle of `out` `[N, h, h]`, for `A`, `B` `[N, k, h]`."""
    h = out.shape[-1]
    first = half(h)
    if first < PIECE_ROWS or len(out) * first**2 < PIECE_ENTRIES:
        return out.baddbmm_(A.mT, B, alpha=alpha, beta=beta)
    lower_product(out[:, :first, :first], A[..., :first], B[..., :first], alpha, beta)
    lower_product(out[:, first:, first:], A[..., first:], B[..., first:], alpha, beta)
    out[:, first:, :first].baddbmm_(A[..., first:].mT, B[..., :first], alpha=alpha, beta=beta)
    return out


class TritonMatrix(Matrix):
    """`engine.tiled.Matrix` with its staircase on the GPU; everything that decides what is certain is the same."""

    def __init__(self, T: Tensor, finite: Tensor, budget: int, cost: Cost):
        super().__init__(T, finite, budget, cost)
        self.T = self.T.contiguous()
        self._edge_grams: dict[tuple[bool, int], Tensor] = {}

    def staircase(self, wanted: Tensor, shifts: Tensor, definite: bool) -> Eliminated:
        answer = Answer.of(wanted.flatten(0, 1))
        if self.length > 1:
            _Descent(self, answer, shifts, definite).run()
            unasked = ~answer.wanted
            answer.value.masked_fill_(unasked, 0.0)
            answer.growth.masked_fill_(unasked, 0.0)
            answer.least.masked_fill_(unasked, torch.inf)
        return answer.eliminated

    def _edge_gram(self, left: bool, sizes: tuple[int, ...]) -> Tensor:
        """What the first or last node has in `C` or `R`: of the later rows, or of the earlier columns, of all `T`.

        Args:
            left: the first node, positions `0..m-1`, or the last.
            sizes: nodes' sizes from the root's halves down to the level in question.

        Returns:
            `[N, m, m]`, lower triangle.
        """
        key = (left, len(sizes))
        if key not in self._edge_grams:
            T, start = self.T, sum(sizes)
            if not sizes:
                gram = T.new_zeros(T.shape)
            elif left:
                m, above = sizes[-1], sizes[-2] if len(sizes) > 1 else self.length
                A = T[:, m:above, :m]
                gram = self._edge_gram(left, sizes[:-1])[:, :m, :m].clone()
            else:
                A = T[:, start:, start - sizes[-1] : start].mT
                gram = self._edge_gram(left, sizes[:-1])[:, sizes[-1] :, sizes[-1] :].clone()
            self._edge_grams[key] = lower_product(gram, A, A, beta=1.0) if sizes else gram
        return self._edge_grams[key]


class _Descent:
    """One run of the staircase: `answer` `[N S, L]` for `shifts` `[N, S]`."""

    def __init__(self, matrix: TritonMatrix, answer: Answer, shifts: Tensor, definite: bool):
        self.matrix, self.answer, self.definite = matrix, answer, definite
        self.S = shifts.shape[1]
        self.inverse = 1 / shifts.flatten()
        self.device = shifts.device
        self.sums = None if answer.everything else answer.sums.cpu()
        sizes = []
        size = matrix.length
        while size > LEAF:
            size = half(size)
            sizes.append(size)
        self.sizes = tuple(sizes)

    def run(self) -> None:
        # the root's own halves are the edges of the first level
        self._descend(min(1, len(self.sizes)), None, edges=True)

    def _descend(self, level: int, family: Family | None, edges: bool) -> None:
        """From nodes `sizes[: level]` down from the root, the family and the two at the edges if due, to answers."""
        while level < len(self.sizes):
            h = self.sizes[level]
            places = [] if family is None else [_halves(family.where, h)]
            *pieces, last = self._pieces(places + (self._edges(level, h) if edges else []), h)
            for piece in pieces:
                self._descend(level + 1, self._halve(level, family, piece, h), edges=False)
            # the edges go down with the last piece, in this loop
            family = self._halve(level, family, last, h) if len(last) else None
            level += 1
        m = max(16, 1 << (self._size(level) - 1).bit_length())
        places = [] if family is None else [_wholes(family.where)]
        for piece in self._pieces(places + (self._edges(level, None) if edges else []), m):
            if len(piece):
                self._finish(level, family, piece, m)

    def _pieces(self, places: list[Places], h: int) -> list[Places]:
        """What is asked for, in pieces that fit the budget, at least one."""
        where = self._wanted_nodes(Places.all_of(*places))
        limit = max(1, self.matrix.budget // (ELIMINATION_BYTES * h * h))
        return [where[first : first + limit] for first in range(0, max(1, len(where)), limit)]

    def _size(self, level: int) -> int:
        return self.sizes[level - 1] if level else self.matrix.length

    def _edges(self, level: int, h: int | None) -> list[Places]:
        """The inner halves of the first and last node of a level, or these nodes themselves."""
        L, m, last = self.matrix.length, self._size(level), sum(self.sizes[:level])
        item = torch.arange(len(self.answer.wanted), device="cpu")

        def places(origin: int, side: int, start: int, stop: int) -> Places:
            same = (torch.full_like(item, x) for x in (origin, side, start, stop))
            origins, sides, starts, stops = same
            return Places(origins, item // self.S, sides, item, starts, stops)

        first = places(1, 0, 0, m) if h is None else places(1, 1, h, m)
        if not 0 < last < L:
            return [first]
        return [first, places(2, 0, last, L if h is None else min(last + h, L))]

    def _wanted_nodes(self, where: Places) -> Places:
        wanted = where.start < where.stop
        if self.sums is not None:
            wanted &= self.sums[where.item, where.stop] > self.sums[where.item, where.start]
        return where if bool(wanted.all()) else where[wanted]

    def _send(self, *numbers: Tensor) -> Tensor:
        """To the device, `[k, B]`, without waiting for what runs there."""
        together = torch.stack(numbers)
        return together.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else together

    def _fill(
        self, level: int, family: Family | None, where: Places, side: Tensor, M: Tensor | None, following: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Lays out the halves, or nodes, at `where`; returns their parents' value, growth and least row."""
        index, item = self._send(where.index, where.item)
        known = []
        sizes = torch.bincount(where.origin, minlength=3).tolist()
        first = 0
        for origin, count in enumerate(sizes):
            rows = slice(first, first + count)
            first += count
            if not count:
                continue
            target = (None if M is None else M[rows], following[rows], self.definite)
            if origin == 0:
                assert family is not None
                children(family.kept, family.update, index[rows], side[rows], *target)
                known.append(torch.stack([x[index[rows]] for x in (family.value, family.growth, family.least)]))
            else:
                inverse = self.inverse[item[rows]]
                gram = self.matrix._edge_gram(origin == 1, self.sizes[:level])
                edge(self.matrix.T, gram, index[rows], inverse, origin == 1, *target)
                growth = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[index[rows]] * inverse.square()
                known.append(torch.stack([torch.zeros_like(growth), growth, torch.ones_like(growth)]))
        value, growth, least = torch.cat(known, 1)
        return value, growth, least

    def _halve(self, level: int, family: Family | None, where: Places, h: int) -> Family:
        M, kept = self.inverse.new_empty(len(where), h, 3 * h), self.inverse.new_empty(len(where), 3, h, h)
        (side,) = self._send(where.side)
        value, growth, least = self._fill(level, family, where, side, M, kept)
        # the sign that all pivots have in a definite elimination: of later rows positive, of earlier columns negative
        out = eliminate(M, value, (1 - 2 * side).to(torch.float64), self.definite)
        first, second = slice(0, h), slice(h, 2 * h)
        update = torch.empty_like(kept)
        for part, rows, columns in ((0, first, first), (1, first, second), (2, second, second)):
            lower_product(update[:, part], out.scaled[..., rows], out.rows[..., columns])
        return Family(kept, update, value, growth + out.growth, torch.minimum(least, out.least), where)

    def _finish(self, level: int, family: Family | None, where: Places, m: int) -> None:
        rkc = self.inverse.new_empty(len(where), 3, m, m)
        first = where.item * self.matrix.length + where.start
        place, limit, side = self._send(first, where.stop - where.start, where.side)
        known = self._fill(level, family, where, side, None, rkc)
        value, growth, least = (x.view(-1) for x in (self.answer.value, self.answer.growth, self.answer.least))
        roots = Roots(rkc, *known, place, limit)
        descend(roots, value, growth, least, self.definite, budget=self.matrix.budget)


def _wholes(where: Places) -> Places:
    """A family's nodes themselves."""
    zeros = torch.zeros_like(where.item)
    return Places(zeros, torch.arange(len(where), device="cpu"), zeros, where.item, where.start, where.stop)


def _halves(where: Places, h: int) -> Places:
    """Left and right half of each node of a family, one after the other."""
    middle = torch.minimum(where.start + h, where.stop)
    index = torch.arange(len(where), device="cpu")
    zeros, ones = torch.zeros_like(index), torch.ones_like(index)

    def pair(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([left, right], 1).flatten()

    return Places(
        pair(zeros, zeros),
        pair(index, index),
        pair(zeros, ones),
        pair(where.item, where.item),
        pair(where.start, middle),
        pair(middle, where.stop),
    )
