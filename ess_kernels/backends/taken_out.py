"""The operator that answers for a chunk: tokens taken out of a longer one, whose numbers were looked at before."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.structure import Tiled


class TakenOut(Tiled):
    """Some tokens of heads that are finite, and after them what stands for all later rows, if there is anything.

    Attributes:
        near: the operator of the tokens.
        R: `[N, s, s]`, rows after the tokens' own, in the first s columns; or None.
        lost: `[N]`, a bound of the 2-norm of what rounding has done to them; or None.
    """

    def __init__(self, near: Tiled, R: Tensor | None = None, lost: Tensor | None = None):
        more = 0 if R is None else R.shape[-1]
        super().__init__(near.length + more, (near.num_heads,), None, near.inputs)
        self.near, self.R, self.lost = near, R, lost

    def finite(self, heads: Tensor) -> Tensor:
        return torch.ones_like(heads, dtype=torch.bool)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        return self.with_far_rows(self.near.rows(heads, 0, self.near.length), heads)[:, start:stop, :stop]

    def with_far_rows(self, near: Tensor, heads: Tensor) -> Tensor:
        """All of `T`, from that of the tokens taken out."""
        if self.R is None:
            return near
        s = self.R.shape[-1]
        T = near.new_zeros(len(heads), self.length, self.length)
        T[:, :-s, :-s] = near
        T[:, -s:, :s] = self.R[heads]
        return T
