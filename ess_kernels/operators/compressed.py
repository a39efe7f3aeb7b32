"""A dense operator that has become block parts, and by how much it may differ from the original."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.blocks import Blocks
from .structure import Tiled


class Compressed(Tiled):
    """What `ess_kernels.compress` makes: an operator `T~` near another one, `T`, of few states at every edge.

    Every metric takes it as it takes other operators, and answers for `T~`. It has no theoretical state size: inside of
    a block the rank may be larger than at either of its edges. A head of `T` that holds NaN or infinity has no answers
    here either.

    Kernels take heads of at most 256 states at every edge: compiled ones in blocks of 8, 16, 32 or 64 tokens, Triton's
    in blocks of 64, or of 16 for 16 states or fewer and 32 for 17 to 64. Other heads are answered in PyTorch.

    Attributes:
        block_length: tokens a block; edges lie every so many tokens.
        ranks: int64 `[*batch, edges]`, the number of states at each edge.
        spectral_error, frobenius_error, nuclear_error: float64 `[*batch]`, proven bounds of the 2-norm, the Frobenius
            norm and the nuclear norm of `T - T~`, and so of `H_i - H~_i` at every position. NaN for bad heads.
        parts: block parts of each head, in units of its own.
        unit: float64 `[N]`, these units.
        good: bool `[N]`, the heads that have an answer.
    """

    def __init__(
        self,
        length: int,
        batch_shape: Sequence[int],
        block_length: int,
        parts: Sequence[Blocks],
        ranks: Tensor,
        unit: Tensor,
        good: Tensor,
        errors: Tensor,
    ):
        """`ranks` `[N, edges]`; `errors` `[3, N]`: spectral, Frobenius, nuclear. The rest is as in the attributes."""
        super().__init__(length, batch_shape, None, (unit,))
        self.block_length, self.parts = block_length, tuple(parts)
        self.unit, self.good = unit, good
        self.ranks = ranks.reshape(*self.batch_shape, ranks.shape[1])
        self.spectral_error, self.frobenius_error, self.nuclear_error = errors.reshape(3, *self.batch_shape)

    def ranks_of(self, head: int) -> Tensor:
        """int64 `[B]`: the number of states at the left edge of each block, none at the first."""
        ranks = self.ranks.reshape(self.num_heads, -1)[head]
        return torch.nn.functional.pad(ranks, (1, 0))

    def finite(self, heads: Tensor) -> Tensor:
        return self.good[heads]

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        if not len(heads):
            return torch.zeros(0, stop - start, stop, dtype=torch.float64, device=self.device)
        return torch.stack([self._rows_of(int(head), start, stop) for head in heads])

    def _rows_of(self, head: int, start: int, stop: int) -> Tensor:
        """Block by block: `reach` has the states at a block's left edge, one column for every earlier token."""
        parts, c = self.parts[head], self.block_length
        rows = torch.zeros(stop - start, stop, dtype=torch.float64, device=self.device)
        reach = parts.X.new_zeros(parts.X.shape[-1], 0)
        for b, a in enumerate(range(0, stop, c)):
            first, last = max(start, a), min(stop, a + c)
            if first < last:
                into, own = rows[first - start : last - start], slice(first - a, last - a)
                into[:, :a] = parts.X[b, own] @ reach
                into[:, a : min(a + c, stop)] = parts.Y[b, own, : min(c, stop - a)]
            reach = torch.cat([parts.Phi[b] @ reach, parts.Z[b].T], 1)
        return rows * self.unit[head]
