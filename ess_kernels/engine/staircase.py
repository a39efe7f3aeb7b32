"""The staircase: one elimination serves every position of a block, by bisection.

A node holds the symmetric matrix `[[R, K], [K^T, C]]` on its own `m` rows and columns, after everything that all its
positions share (later rows, earlier columns) has been eliminated. Position `s` of the node is the principal submatrix
of rows `s..m-1` and columns `0..s-1`. The left half of the positions shares the later rows, the right half the earlier
columns: each half eliminates its own and keeps the rest.

In units of the shift (`tau` for counts, `sqrt(t)` for log-determinants) the empty node has `R = -I` (counts) or
`R = +I` (log-determinants), `K = T / shift`, `C = -I`. A position's number of positive pivots is then `#{sigma > tau}`,
and the sum of its log pivots is `log det(I + H H^T / t)`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from .elimination import eliminate, eliminate_definite, growth_of_first, subtract_symmetric

# below this size a node is so small that the batch becomes the innermost axis
SMALL = 8
# a node of no more positions is never too large for a budget
NEVER_LARGE = 128


@dataclass
class Nodes:
    """A batch of nodes of one size `m`.

    Attributes:
        R, K, C: `[B, m, m]`, float64. What holds ones and zeros only, R or C of a half of the root, may be int8.
        value: `[B]` float64, what the eliminated pivots have contributed.
        growth: `[B]`, the largest update so far, in units of the shift.
        least: `[B]`, the least row so far, in the same units (see `Elimination`).
        item: `[B]` int64, which row of the answer the node belongs to (a head and a shift).
        start, stop: `[B]` int64, the positions `start..stop-1`; `stop - start < m` where a node was padded.
    """

    R: Tensor
    K: Tensor
    C: Tensor
    value: Tensor
    growth: Tensor
    least: Tensor
    item: Tensor
    start: Tensor
    stop: Tensor

    @property
    def size(self) -> int:
        return self.R.shape[-1]

    def __len__(self) -> int:
        return self.value.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Nodes:
        return Nodes(*(getattr(self, f.name)[index] for f in fields(self)))


class Eliminated(NamedTuple):
    """What an elimination says about positions: float64 tensors of one shape.

    Attributes:
        value: the number of singular values above the tolerance, or a log-determinant.
        growth: for counts the largest update, in units of the shift.
        least: for counts the least row, in the same units (see `Elimination`).
    """

    value: Tensor
    growth: Tensor
    least: Tensor


@dataclass
class Answer:
    """The arrays that the staircase in PyTorch fills, and the positions to which it prunes its tree.

    `value`, `growth` and `least` `[items, L]` are as in `Eliminated`. `wanted`, bool `[items, L]`, says which positions
    are asked for, `everything` whether all are, and `sums` `[items, L + 1]` counts them up to each position.
    """

    wanted: Tensor
    value: Tensor
    growth: Tensor
    least: Tensor
    everything: bool
    sums: Tensor

    @classmethod
    def of(cls, wanted: Tensor) -> Answer:
        zeros = torch.zeros(wanted.shape, dtype=torch.float64, device=wanted.device)
        sums = torch.nn.functional.pad(wanted.cumsum(-1, dtype=torch.int32), (1, 0))
        least = torch.full_like(zeros, torch.inf)
        return cls(wanted, zeros, zeros.clone(), least, bool(wanted[:, 1:].all()), sums)

    @property
    def eliminated(self) -> Eliminated:
        return Eliminated(self.value, self.growth, self.least)

    def wants(self, item: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """bool `[B]`: whether any of the positions `start..stop-1` of the item is asked for, from running sums."""
        return self.sums[item, stop] > self.sums[item, start]


def descend(nodes: Nodes, answer: Answer, definite: bool, budget: int) -> None:
    """Carries `nodes` down to single positions and writes their values into `answer`.

    Args:
        nodes: any batch of nodes of one size.
        answer: filled in place.
        definite: log-determinants (`True`) or counts.
        budget: bytes of workspace; a batch that needs more is cut, and of a node that needs more by itself one half
            goes down after the other.
    """
    each = bytes_of_node(nodes.size)
    limit = max(1, budget // each)
    if len(nodes) > limit:
        for first in range(0, len(nodes), limit):
            descend(nodes[first : first + limit], answer, definite, budget)
    elif each > budget and nodes.size > NEVER_LARGE:
        for left, right in ((True, False), (False, True)):
            half = _halve(nodes, answer, definite, left, right)
            if len(half):
                descend(half, answer, definite, budget)
    else:
        while nodes.size > SMALL:
            nodes = _halve(nodes, answer, definite)
        _finish(nodes, answer, definite)


def bytes_of_node(size: int) -> int:
    """What a level holds of a node: itself, its halves with their factors and scaled factors, about 9 m^2 numbers."""
    return 72 * size**2


def _worth(pivots: Tensor, definite: bool, dim: int) -> Tensor:
    return pivots.abs().log().sum(dim) if definite else (pivots > 0).sum(dim).to(pivots.dtype)


def _padded(nodes: Nodes, definite: bool) -> Nodes:
    """One zero token more: `K` gets a zero row and column, `R` and `C` their empty diagonal."""
    R, K, C = (torch.nn.functional.pad(x, (0, 1, 0, 1)) for x in (nodes.R, nodes.K, nodes.C))
    R[..., -1, -1] = 1.0 if definite else -1.0
    C[..., -1, -1] = -1.0
    return Nodes(R, K, C, nodes.value, nodes.growth, nodes.least, nodes.item, nodes.start, nodes.stop)


def _children(item: Tensor, start: Tensor, stop: Tensor, h: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the left halves, then of the right halves."""
    middle = torch.minimum(start + h, stop)
    return item.repeat(2), torch.cat([start, middle]), torch.cat([middle, stop])


def _halve(nodes: Nodes, answer: Answer, definite: bool, lefts: bool = True, rights: bool = True) -> Nodes:
    """One level of the bisection by batched matrix products: the left halves and the right halves, or one kind only."""
    if nodes.size % 2:
        nodes = _padded(nodes, definite)
    h = nodes.size // 2
    R, K, C = nodes.R, nodes.K, nodes.C
    item, start, stop = _children(nodes.item, nodes.start, nodes.stop, h)
    keep = None
    if not (answer.everything and lefts and rights and bool((start < stop).all())):
        keep = answer.wants(item, start, stop)
        keep[: len(nodes)] &= lefts
        keep[len(nodes) :] &= rights
        keep = None if bool(keep.all()) else keep

    def both(left: Tensor, right: Tensor) -> Tensor:
        if keep is None:
            return torch.cat([left, right])
        return torch.cat([left[keep[: len(nodes)]], right[keep[len(nodes) :]]])

    M = torch.cat(
        [both(R[:, h:, h:], C[:, :h, :h]), both(R[:, h:, :h], K[:, h:, :h].mT), both(K[:, h:, :h], C[:, :h, h:])], -1
    )
    if definite:
        # later rows have positive, earlier columns negative pivots
        out = eliminate_definite(M, both(torch.ones_like(nodes.value), -torch.ones_like(nodes.value)))
    else:
        out = eliminate(M)
    del M
    W, scaled = out.rows, out.scaled

    rows, cols = slice(0, h), slice(h, 2 * h)
    value, growth, least = (both(x, x) for x in (nodes.value, nodes.growth, nodes.least))
    where = (item, start, stop) if keep is None else (item[keep], start[keep], stop[keep])
    columns = subtract_symmetric(both(C[:, :h, :h], C[:, h:, h:]).to(K.dtype), scaled[..., cols], W[..., cols])
    if not definite:
        out.updates[:, 2 * h] = growth_of_first(columns[:, 0, 0], out.updates[:, 2 * h])
    return Nodes(
        subtract_symmetric(both(R[:, :h, :h], R[:, h:, h:]).to(K.dtype), scaled[..., rows], W[..., rows]),
        both(K[:, :h, :h], K[:, h:, h:]).baddbmm_(scaled[..., rows].mT, W[..., cols], alpha=-1),
        columns,
        value + _worth(out.pivots, definite, -1),
        growth + out.growth,
        torch.minimum(least, out.least),
        *where,
    )


def _finish(nodes: Nodes, answer: Answer, definite: bool) -> None:
    """The last levels with the batch innermost, down to one position a node."""
    R, K, C = (x.permute(1, 2, 0).contiguous().to(nodes.K.dtype) for x in (nodes.R, nodes.K, nodes.C))
    value, growth, least = nodes.value, nodes.growth, nodes.least
    item, start, stop = nodes.item, nodes.start, nodes.stop
    m = nodes.size
    while m > 1:
        if m % 2:
            R, K, C = (torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1)) for x in (R, K, C))
            R[-1, -1] = 1.0 if definite else -1.0
            C[-1, -1] = -1.0
            m += 1
        h = m // 2
        pair = torch.cat
        A = torch.cat(
            [
                pair([R[h:, h:], C[:h, :h]], -1),
                pair([R[h:, :h], K[h:, :h].transpose(0, 1)], -1),
                pair([K[h:, :h], C[:h, h:]], -1),
            ],
            1,
        )
        R = pair([R[:h, :h], R[h:, h:]], -1)
        K = pair([K[:h, :h], K[h:, h:]], -1)
        C = pair([C[:h, :h], C[h:, h:]], -1)
        value, growth, least = value.repeat(2), growth.repeat(2), least.repeat(2)
        update = torch.zeros_like(A[0, 1:])
        for k in range(h):
            row = A[k, k + 1 :]
            scaled = row / A[k, k]
            if k + 1 < h:
                A[k + 1 :, k + 1 :].addcmul_(scaled[: h - k - 1, None], row[None], value=-1)
            u, v = row[h - k - 1 : 2 * h - k - 1], row[2 * h - k - 1 :]
            su, sv = scaled[h - k - 1 : 2 * h - k - 1], scaled[2 * h - k - 1 :]
            R.addcmul_(su[:, None], u[None], value=-1)
            K.addcmul_(su[:, None], v[None], value=-1)
            C.addcmul_(sv[:, None], v[None], value=-1)
            if not definite:
                update[k:] += (row * scaled).abs()
                least = torch.minimum(least, A[k, k:].abs().amax(0))
        pivots = A[:, :h].diagonal().mT
        value = value + _worth(pivots, definite, 0)
        if not definite:
            update[2 * h - 1] = growth_of_first(C[0, 0], update[2 * h - 1])
            growth = growth + update.amax(0)
        item, start, stop = _children(item, start, stop, h)
        m = h
    value = value + _worth(R[0], definite, 0)
    keep = answer.wants(item, start, stop)
    at = (item[keep], start[keep])
    answer.value[at] = value[keep]
    answer.growth[at] = growth[keep]
    answer.least[at] = torch.minimum(least, R[0, 0].abs())[keep]
