"""What is right, and how sure that is: singular values of every `H_i` with an error bar.

Two routes, both from the matrix in more digits than float64 has (`exact.py`). LAPACK's singular values are quick and
good to a few ulp of the largest; they settle nearly everything. Where a backend disagrees with them, a
bidiagonalisation and a Sturm sequence in the machine's longest float count again, with an error bar a thousand times
smaller. What that bar still contains is left undecided, and nobody is blamed for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...caching import cached_property
from .case import Case
from .exact import LONG, LONG_EPS, UNDERFLOW, exact
from .pairs import Pair, to_longdouble

EPS = float(np.finfo(np.float64).eps)
# errors of LAPACK's singular values and of ours, in ulp of the largest, times the root of the size: seen are 1 to 3
LAPACK_ULP = 8.0
LONG_ULP = 16.0
# beyond this the terms of T may overflow on the way, and a head may be refused
HUGE = 2.0**500


class Truth:
    """Singular values of `H_i` at some positions of a case.

    Attributes:
        positions: int64 `[P]`.
        values: float64 `[H, P, S]`, descending, zero padded, zero beyond the state size; in units of `unit`.
        error: `[H, P]`, how far each of them may be off; infinite where `T` overflows.
        unit: the power of two that `T` was divided by.
        size: `[H, P]`, Frobenius norm of the magnitudes of `H_i` (see `Exact`), in units of `unit`.
        reach: `[H, P]`, see `Exact`; `size` where there is no state.
        underflows: bool `[H, P]`, whether entries of `H_i` may be given as zero and are not.
        cap: `[P]`, the largest count there can be.
    """

    def __init__(self, case: Case, positions: Sequence[int]):
        T, magnitude, loss, reach, underflows = exact(case)
        state_size = case.state_size
        self.heads, self.length = T.high.shape[:2]
        length = self.length
        top = np.where(np.isfinite(magnitude), magnitude, 0.0).max(initial=0.0)
        self.unit = float(2.0 ** np.floor(np.log2(top))) if top > 0 else 1.0
        self.overflows = ~(magnitude.max((1, 2), initial=0.0) < HUGE)
        finite = ~self.overflows[:, None, None]
        self._T = T.map(lambda x: np.where(finite, x, 0.0) / self.unit)
        magnitude = np.where(finite, magnitude, 0.0) / self.unit
        self.positions = torch.as_tensor(positions, dtype=torch.int64)
        n = length if state_size is None else state_size
        self.cap = torch.tensor([min(n, i, length - i) for i in positions])
        self.values = torch.zeros(self.heads, len(positions), max(length // 2, 1), dtype=torch.float64)
        self.size = torch.zeros(self.heads, len(positions), dtype=torch.float64)
        self.error = torch.zeros(self.heads, len(positions), dtype=torch.float64)
        high = torch.from_numpy(self._T.high)
        for at, i in enumerate(positions):
            s = torch.linalg.svdvals(high[:, i:, :i])
            self.values[:, at, : s.shape[-1]] = s
            self.size[:, at] = torch.from_numpy(np.sqrt((magnitude[:, i:, :i] ** 2).sum((1, 2))))
        self.reach = self.size
        if reach is not None:
            self.reach = torch.from_numpy(reach / self.unit)[:, self.positions]
        beyond = torch.arange(self.values.shape[-1]) >= self.cap[:, None]
        self.values.masked_fill_(beyond, 0.0)
        self._entries_lost = loss * self.size
        self.underflows = torch.zeros(self.size.shape, dtype=torch.bool)
        if underflows is not None:
            for at, i in enumerate(positions):
                gone = torch.from_numpy(underflows[:, i:, :i].sum((1, 2)))
                self.underflows[:, at] = gone > 0
                self._entries_lost[:, at] += UNDERFLOW / self.unit * gone.double().sqrt()
        self.error = LAPACK_ULP * EPS * length**0.5 * self.values[..., 0] + self._entries_lost
        self.error[torch.from_numpy(self.overflows)] = torch.inf

    @cached_property
    def largest(self) -> Tensor:
        """`s_1` `[H, P]`, in units of `unit`."""
        return self.values[..., 0]

    def above(self, threshold: Tensor, slack: Tensor) -> Tensor:
        """How many values may exceed `threshold`, `[M, H, P]`, if each may be `slack` larger than it was found."""
        few = self.values + slack[..., None] > threshold[..., None]
        return (few & (torch.arange(self.values.shape[-1]) < self.cap[:, None])).sum(-1)

    def block(self, head: int, position: int) -> Pair:
        """`H_i` of one head, in units of `unit`."""
        return self._T[head, position:, :position]

    def precisely(self, head: int, at: int, low: float, high: float) -> tuple[int, int]:
        """Bounds of the counts of one head at `positions[at]`, in the longest float.

        Two thresholds in units of `unit`, `low <= high`. The first count is a lower bound of how many values exceed
        `high`, the second an upper bound of how many exceed `low`.
        """
        H = to_longdouble(self.block(head, int(self.positions[at])))
        error = LONG_ULP * LONG_EPS * max(H.shape) ** 0.5 * float(self.largest[head, at])
        error += float(self._entries_lost[head, at])
        sure, possible = count_above(H, [high + error, low - error])
        cap = int(self.cap[at])
        return min(sure, cap), min(possible, cap) if low - error >= 0 else cap


def count_above(H: np.ndarray, thresholds: Sequence[float]) -> list[int]:
    """How many singular values of a matrix exceed each threshold, in the precision of its dtype.

    Householder's bidiagonalisation (Golub and Kahan 1965), then Sturm sequences of the tridiagonal matrix with zero
    diagonal and the bidiagonal's entries beside it, whose eigenvalues are the singular values and their negatives.
    """
    A = np.array(H if H.shape[0] >= H.shape[1] else H.T)
    beside = []
    for j in range(A.shape[1]):
        beside.append(_reflect(A[j:, j:]))
        if j + 1 < A.shape[1]:
            beside.append(_reflect(A[j:, j + 1 :].T))
    return [_sturm(beside, threshold) for threshold in thresholds]


def _reflect(A: np.ndarray) -> np.floating:
    """Turns the first column of a view into a multiple of the first unit vector, in place; returns the multiple."""
    column = A[:, 0].copy()
    norm = np.sqrt((column * column).sum())
    if norm == 0:
        return norm
    alpha = -norm if column[0] > 0 else norm
    column[0] -= alpha
    A -= np.outer(column, (2 / (column * column).sum()) * (column @ A))
    return alpha


def _sturm(beside: Sequence[np.floating], threshold: float) -> int:
    """How many eigenvalues of the tridiagonal matrix with zero diagonal exceed a threshold: its positive pivots."""
    if threshold < 0:
        return len(beside) // 2 + 1
    t, tiny = LONG(threshold), np.finfo(LONG).tiny
    pivot, count = -t, 0
    for b in beside:
        if pivot == 0:
            pivot = -tiny
        pivot = -t - b * b / pivot
        count += bool(pivot > 0)
    return count
