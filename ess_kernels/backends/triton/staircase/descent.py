"""The staircase inside blocks, by bisection: nodes of 64, 32, 16 or 8 positions down to single positions.

The kernels' twin is `ess_kernels.engine.staircase`: a node is `[[R, K], [K^T, C]]` in units of its shift, position `s`
of it the principal submatrix of rows `s..m-1` and columns `0..s-1`. Here the tree is full: every position of a node is
done, wanted or not, for all nodes of a batch in the same few launches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime import on
from . import leaf, splits

SIZES = (8, 16, 32, 64)
# nodes of this size and smaller have a thread each, larger ones a program each
LEAF = 8


@dataclass
class Roots:
    """A batch of J nodes of one size `m` (8, 16, 32 or 64) to be carried down to single positions.

    Of `rkc` are read `R` and `C` above the lower left quarter (they are symmetric) and `K` below the upper right one.

    Attributes:
        rkc: `[J, 3, m, m]` float64 contiguous, `R`, `K` and `C` of each node in units of its shift.
        value: `[J]` float64, what the pivots eliminated so far have contributed: their number or sum of logarithms.
        growth: `[J]` float64, the largest sum of absolute updates of a diagonal entry so far (counts only).
        least: `[J]` float64, the least row magnitude so far (counts only).
        place: `[J]` int64, where in the flat answer the node's position 0 is.
        limit: `[J]` int64, how many of the node's positions exist, 1 to m.
    """

    rkc: Tensor
    value: Tensor
    growth: Tensor
    least: Tensor
    place: Tensor
    limit: Tensor

    @property
    def size(self) -> int:
        return self.rkc.shape[-1]

    def __len__(self) -> int:
        return self.rkc.shape[0]

    def __getitem__(self, index: slice) -> Roots:
        return Roots(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def descend(roots: Roots, value: Tensor, growth: Tensor, least: Tensor, definite: bool, budget: int = 1 << 28) -> None:
    """Writes value, growth and least row of every existing position of the roots.

    Growth is that of the engine or a little more, since it is added up over smaller panels; it is infinite where a
    position depends on a NaN. The host reads nothing back, so that it never waits for the device.

    Args:
        roots: the nodes.
        value: float64 `[N]`, a view of a contiguous answer, filled at `place + s` for `s < limit`.
        growth, least: the same for counts; not touched if `definite`.
        definite: log-determinants (`True`) or counts.
        budget: bytes of workspace; a batch that needs more is cut.

    Raises:
        ValueError: if the nodes' size is none of 8, 16, 32, 64, if a place or limit is not int64, or another tensor
            not contiguous float64.
    """
    m = roots.size
    if m not in SIZES or roots.rkc.shape[1:] != (3, m, m):
        raise ValueError(f"nodes are [J, 3, m, m] with m one of {SIZES}, these are {tuple(roots.rkc.shape)}")
    if roots.place.dtype != torch.int64 or roots.limit.dtype != torch.int64:
        raise ValueError("places and limits are int64")
    for tensor in (roots.rkc, value) if definite else (roots.rkc, roots.growth, roots.least, value, growth, least):
        if tensor.dtype != torch.float64 or not tensor.is_contiguous():
            raise ValueError("nodes and answers are contiguous float64 tensors")
    # besides the roots, nodes of two smaller sizes are in memory while a level is done
    most = len(roots) if m == LEAF else max(1, budget // (18 * m * m))
    with on(roots.rkc.device):
        for first in range(0, len(roots), max(1, most)):
            _descend(roots[first : first + most], (value, growth, least), definite)


def _descend(roots: Roots, answer: tuple[Tensor, Tensor, Tensor], definite: bool) -> None:
    rkc, state = roots.rkc, (roots.value, roots.growth, roots.least)
    levels = 0
    while (m := rkc.shape[-1]) > LEAF:
        h, halves = m // 2, 2 * len(rkc)
        child = rkc.new_empty(halves, 3, h, h)
        child_value = roots.value.new_empty(halves)
        # growth and least row of definite nodes are neither read nor written
        others = [child_value if definite else torch.empty_like(child_value) for _ in range(2)]
        child_state = (child_value, others[0], others[1])
        (leaf.split16 if m == 16 else splits.split)(rkc, state, child, child_state, definite)
        rkc, state, levels = child, child_state, levels + 1
    leaf.finish8(rkc, state, roots.place, roots.limit, levels, answer, definite)
