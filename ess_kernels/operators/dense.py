"""A matrix that is already there."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_floating, integer
from .blocked import Blocked
from .finiteness import strictly_lower_finite
from .separate import takes_sequences
from .sparsity import Sparsity, sparsity_of
from .spread import Spread
from .structure import Operator, Tiled
from .tile_sources import TileSource


class MatrixTiles(TileSource):
    """Tiles of the caller's own matrix, read where it lies."""

    def __init__(self, op: Dense, heads: Tensor):
        super().__init__(op, heads)
        self.op = op

    def tile(self, rows: slice, columns: slice) -> Tensor:
        tile = self.op.take(self.op.T[..., rows, columns], self.heads).double()
        return tile.tril(rows.start - columns.start)


class Dense(Tiled):
    """A given matrix; see `dense`.

    Attributes:
        T: the caller's tensor.
        blocks: rows and columns of a token. Only what lies below the diagonal blocks is in an `H_i` then, so that
            `rows` has zeros in them.
    """

    TENSORS = ("T",)
    NUMBERS = ("blocks",)

    def __init__(self, T: Tensor, blocks: int = 1):
        super().__init__(T.shape[-1], T.shape[:-2], None, (T,))
        self.T = T
        self.blocks = blocks

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        rows = self.take(self.T[..., start:stop, :stop], heads).double()
        return rows.tril(start) if self.blocks == 1 else torch.where(self._blocks_apart(start, stop) > 0, rows, 0.0)

    def own_tiles(self, heads: Tensor) -> MatrixTiles | None:
        return MatrixTiles(self, heads) if self.blocks == 1 else None

    def stored(self, head: Tensor) -> Tensor | None:
        if self.blocks != 1 or self.T.dtype != torch.float64 or self.T.stride(-1) != 1:
            return None
        T = self.T[tuple(int(index) for index in self.unravel(head))].detach()
        return T if T.stride(0) >= self.length else None

    def dense_heads(self, heads: Tensor) -> Tensor:
        if self.blocks == 1:
            return super().dense_heads(heads)
        return torch.where(self._blocks_apart(0, self.length) >= 0, self.take(self.T, heads).double(), 0.0)

    def strictly_lower(self, T: Tensor) -> Tensor:
        if self.blocks == 1:
            return super().strictly_lower(T)
        return torch.where(self._blocks_apart(0, self.length) > 0, T, 0.0)

    def _blocks_apart(self, start: int, stop: int) -> Tensor:
        """By how many blocks columns `0..stop-1` come before rows `start..stop-1`."""
        block = torch.arange(stop, device=self.device) // self.blocks
        return block[start:, None] - block

    def sparsity(self, heads: Tensor) -> Sparsity:
        """From the numbers below the diagonal; a T without zeros in its last row is not looked at further."""
        return sparsity_of(lambda start, stop: self._seen(heads, start, stop), len(heads), self.length, self.device)

    def _seen(self, heads: Tensor, start: int, stop: int) -> Tensor:
        """Where rows `start..stop-1` are not zero below the diagonal, and the blocks on it: bool `[N, rows, stop]`."""
        seen = self.take(self.T[..., start:stop, :stop], heads) != 0
        return seen.tril(start - 1) if self.blocks == 1 else seen & (self._blocks_apart(start, stop) > 0)

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> Dense:
        index = (*(x[:, None, None] for x in self.unravel(heads)), tokens[:, :, None], tokens[:, None])
        T = self.T[index]
        if self.blocks > 1:
            block = tokens // self.blocks
            T = torch.where(block[:, :, None] > block[:, None], T, 0.0)
        return Dense(T)

    @torch.no_grad()
    def finite(self, heads: Tensor) -> Tensor:
        # a finite sum has finite terms, above the diagonal as well; most heads need no closer look
        finite = self.take(self.T.sum((-2, -1), dtype=torch.float64), heads).isfinite()
        rest = (~finite).nonzero()[:, 0]
        if len(rest):
            finite[rest] = strictly_lower_finite(self, heads[rest])
        return finite


@takes_sequences(T="[*batch, L, L]")
def dense(
    T: Tensor, *, block: int = 1, cu_seqlens: Tensor | None = None, attention_mask: Tensor | None = None
) -> Operator:
    """A ready-made mixer matrix `T_ij = T[..., i, j]`, or one of blocks.

    What lies above the diagonal is ignored, whatever it is, and so is the diagonal in every ESS.

    Args:
        T: `[..., L, L]`, float16, bfloat16, float32 or float64. The leading dimensions are the batch.
        block: the number d of rows and columns of a token, for mixers that also mix channels: `T` is `[..., L d, L d]`,
            `T_ij` one of its blocks, and `H_i = T[d i:, :d i]` at the positions 1..L-1.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError: `T` is no floating-point tensor, or `block` no integer.
        ValueError: `T` is not square, or its sides are no multiples of `block`.

    Source: the operator `T` of "Quantifying Memory Utilization with Effective State-Size" (arXiv 2504.19561).
    """
    check_floating("T", T)
    if T.dim() < 2 or T.shape[-1] != T.shape[-2]:
        raise ValueError(f"T: expected shape [..., L, L], got {list(T.shape)}")
    block = integer("block", block, minimum=1)
    if T.shape[-1] % block:
        raise ValueError(f"block: expected a divisor of T's side {T.shape[-1]}, got {block}")
    return Dense(T) if block == 1 else Blocked(Dense(T, block), block)


def as_operator(op_or_T: Operator | Tensor, *, spread: bool = False) -> Operator:
    """The operator itself, or `dense(T)` for a tensor; one that is spread over processes only if `spread`."""
    if isinstance(op_or_T, Spread) and not spread:
        raise TypeError(
            f"op: expected an operator that this process holds as a whole, got {type(op_or_T).__name__}, which "
            "tolerance_ess, entropy_ess, soft_ess, nuclear_norm and singular_values take"
        )
    if isinstance(op_or_T, Operator):
        return op_or_T
    if not isinstance(op_or_T, Tensor):
        raise TypeError(f"op: expected an operator or a tensor [..., L, L], got {type(op_or_T).__name__}")
    return as_operator(dense(op_or_T), spread=spread)
