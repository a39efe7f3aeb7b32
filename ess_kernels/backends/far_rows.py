"""First columns that rows of any distance see: a small matrix in place of all rows behind the tokens of a chunk."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..engine.certainty import EPS
from ..operators.structure import Tiled

# An m x n matrix and its R differ by at most a small multiple of `m n` roundings in the Frobenius norm (Higham,
# "Accuracy and Stability of Numerical Algorithms", 2nd edition, theorem 19.4): this multiple, for a unit of EPS.
ROUNDINGS = 4
# numbers of rows that are made together
TOGETHER = 2**20


class FarRows(NamedTuple):
    """What stands for the rows from each of some tokens on, in some first columns.

    Attributes:
        starts: int64 `[S]`, ascending, the tokens that the rows begin with; the last one is L, where there are none.
        R: float64 `[N, S, s, s]`, with the Gram matrix of the rows.
        lost: float64 `[N, S]`, a bound of the 2-norm of what rounding has changed.
    """

    starts: Tensor
    R: Tensor
    lost: Tensor

    def at(self, index: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Those of pairs of a head's number and a token, `[Q, s, s]` and `[Q]`."""
        place = torch.searchsorted(self.starts, starts)
        return self.R[index, place], self.lost[index, place]


def far_rows(op: Tiled, heads: Tensor, starts: Tensor, s: int, beside: int, size: int) -> FarRows:
    """From the first `s` columns of some heads, whose rows see `beside` tokens before their own as well.

    `size` rows are made at a time.
    """
    starts = torch.cat([starts, starts.new_tensor([op.length])]).unique()
    columns = _first_columns_of(op, heads, int(starts[0]), s, beside, size)
    bounds = starts.tolist()
    leaves = [_root(columns[:, a - bounds[0] : b - bounds[0]]) for a, b in pairwise(bounds)]
    R = torch.stack([*leaves, columns.new_zeros(len(heads), s, s)], 1)
    # after a step with distance d, each root stands for 2 d leaves
    distance, steps = 1, 0
    while distance < len(leaves):
        R = torch.cat([_root(torch.cat([R[:, :-distance], R[:, distance:]], -2)), R[:, -distance:]], 1)
        distance, steps = 2 * distance, steps + 1
    rows = max((b - a for a, b in pairwise(bounds)), default=0)
    lost = ROUNDINGS * EPS * s * (rows + 2 * s * steps) * torch.linalg.matrix_norm(R)
    return FarRows(starts, R, lost)


def _root(A: Tensor) -> Tensor:
    """`R` `[..., s, s]` with `R^T R = A^T A`, of `A` `[..., rows, s]`."""
    R = torch.linalg.qr(A, mode="r").R
    return pad(R, (0, 0, 0, R.shape[-1] - R.shape[-2]))


def _first_columns_of(op: Tiled, heads: Tensor, start: int, s: int, beside: int, size: int) -> Tensor:
    """Rows from `start` on, `[N, L - start, s]`."""
    found = torch.empty(len(heads), op.length - start, s, dtype=torch.float64, device=heads.device)
    first = torch.arange(s, device=heads.device)
    each = max(1, TOGETHER // (size * (s + beside + size)))
    for a in range(start, op.length, size):
        b = min(a + size, op.length)
        tokens = torch.cat([first, torch.arange(max(a - beside, s), b, device=heads.device)])
        for number in torch.arange(len(heads), device=heads.device).split(each):
            some = op.of_tokens(heads[number], tokens.expand(len(number), -1))
            rows = some.rows(some.all_heads(), some.length - (b - a), some.length)
            found[number, a - start : b - start] = rows[..., :s]
    return found
