"""Products of `H_i` and `H_i^T` with thin matrices, at several positions of several heads at once.

`H_i X` is the operator applied to what of X comes before i, looked at from i on; `H_i^T X` is the same the other way
round. So one pass over the operator serves all positions: their thin matrices lie side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..operators.attention import Attention
from ..operators.structure import Operator, StateSpace, Tiled

# tokens of a recurrence that are multiplied as one block
BLOCK = 64
# rows of a matrix that are made at a time, at most
BAND = 1024


class ThinProducts(ABC):
    """`N` heads of an operator of length `L`."""

    @abstractmethod
    def __call__(self, positions: Tensor, X: Tensor, transposed: bool) -> Tensor:
        """`H_i X`, or `H_i^T X` if transposed.

        Args:
            positions: int64 `[P]`, ascending.
            X: float64 `[N, P, L, r]` in token coordinates: tokens `< i` are read (`>= i` if transposed), the others
                ignored.

        Returns:
            float64 `[N, P, L, r]`, zero for tokens `< i` (`>= i` if transposed).
        """


def thin_products(op: Operator, heads: Tensor, budget: int) -> ThinProducts:
    """The products of some heads in PyTorch, within about `budget` bytes beside X and the result."""
    if isinstance(op, Tiled):
        return Bands(op, heads, budget)
    assert isinstance(op, StateSpace)
    blocks = Blockwise(op, heads)
    # Products of growing transitions overflow; T itself may not, so its rows are used then.
    return blocks if blocks.all_finite else Bands(op, heads, budget)


def bytes_per_head(op: Operator) -> int:
    """What the products of one head hold beside X and the result: X, Y, Z and Phi of its blocks; queries and keys."""
    if not isinstance(op, StateSpace):
        return 16 * op.length * op.q.shape[-1] if isinstance(op, Attention) else 0
    n = op.state_size
    of_block = n if op.diagonal else n * n
    return 8 * op.length * (2 * n + BLOCK + of_block // BLOCK)


def bytes_to_make(op: Operator) -> int:
    """What one head takes while that is made: its tokens, whole and cut into blocks, products of gates, and halves of
    Y; with other transitions also these, twice, and a block's state, with columns for itself and for the tokens."""
    if not isinstance(op, StateSpace):
        return bytes_per_head(op)
    n = op.state_size
    each = 12 * n + 2 * BLOCK
    if not op.diagonal:
        each += 2 * n * n + n * (n + BLOCK) // BLOCK
    return 8 * op.length * each


class Stored(ThinProducts):
    """Matrices `T` `[N, L, L]` that are at hand: one product a position, with no more of them than it needs."""

    def __init__(self, T: Tensor):
        self.T = T

    def __call__(self, positions: Tensor, X: Tensor, transposed: bool) -> Tensor:
        Y = torch.zeros_like(X)
        for p, i in enumerate(positions.tolist()):
            H = self.T[:, i:, :i]
            if transposed:
                Y[:, p, :i] = H.mT @ X[:, p, i:]
            else:
                Y[:, p, i:] = H @ X[:, p, :i]
        return Y


class Bands(ThinProducts):
    """Any operator by bands of its rows, or by the whole matrix where that fits the budget."""

    def __init__(self, op: Operator, heads: Tensor, budget: int):
        self.op, self.heads, L = op, heads, op.length
        # making rows takes a few copies of them
        each = 40 * max(1, len(heads)) * max(1, L)
        whole = not isinstance(op, Tiled) or L * each <= budget
        self.T = op.dense_heads(heads) if whole else None
        self.band = L if whole else max(1, min(BAND, budget // each))

    def _rows(self, start: int, stop: int) -> Tensor:
        if self.T is not None:
            return self.T[:, start:stop, :stop]
        assert isinstance(self.op, Tiled)
        return self.op.rows(self.heads, start, stop)

    def __call__(self, positions: Tensor, X: Tensor, transposed: bool) -> Tensor:
        L, r = X.shape[2:]
        after = (torch.arange(L, device=X.device) >= positions[:, None])[..., None]
        X = torch.where(after == transposed, X, 0.0)
        Y = torch.zeros_like(X)
        wanted = positions.tolist()
        for start in range(wanted[0], L, self.band):
            stop = min(start + self.band, L)
            # the positions that have rows in this band, and the columns before the last of them
            m = sum(i < stop for i in wanted)
            T = self._rows(start, stop)[..., : wanted[m - 1]]
            columns = T.shape[-1]
            if transposed:
                x = X[:, :m, start:stop].transpose(1, 2).flatten(2)
                Y[:, :m, :columns] += (T.mT @ x).unflatten(2, (m, r)).transpose(1, 2)
            else:
                x = X[:, :m, :columns].transpose(1, 2).flatten(2)
                Y[:, :m, start:stop] = (T @ x).unflatten(2, (m, r)).transpose(1, 2)
        return torch.where(after != transposed, Y, 0.0)


class Blockwise(ThinProducts):
    """A recurrence block by block: the state runs over the blocks, forwards or backwards, `O(L n r)` a position."""

    def __init__(self, op: StateSpace, heads: Tensor):
        self.length = op.length
        self.parts = op.block_parts(heads, BLOCK)
        parts = self.parts
        self.all_finite = all(bool(x.isfinite().all()) for x in (parts.X, parts.Y, parts.Z, parts.Phi))

    def __call__(self, positions: Tensor, X: Tensor, transposed: bool) -> Tensor:
        L, (P, r) = self.length, (X.shape[1], X.shape[3])
        after = (torch.arange(L, device=X.device) >= positions[:, None])[..., None]
        X = torch.where(after == transposed, X, 0.0)
        parts, blocks = self.parts, self.parts.Y.shape[1]
        x = torch.nn.functional.pad(X, (0, 0, 0, blocks * BLOCK - L))
        x = x.unflatten(2, (blocks, BLOCK)).permute(0, 2, 3, 1, 4).flatten(3)
        # what enters the state, what the state is seen through, what a block does by itself
        enters, seen, own = (parts.X, parts.Z, parts.Y.mT) if transposed else (parts.Z, parts.X, parts.Y)
        states = self._states(enters.mT @ x, transposed)
        y = torch.baddbmm((own @ x).flatten(0, 1), seen.flatten(0, 1), states.flatten(0, 1))
        y = y.unflatten(1, (BLOCK, 1)).view(-1, blocks, BLOCK, P, r).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return torch.where(after != transposed, y[:, :, :L], 0.0)

    def _states(self, entering: Tensor, backwards: bool) -> Tensor:
        """The state before each block (after it, if backwards), `[N, blocks, n, columns]`, like what enters in it."""
        Phi, blocks = self.parts.Phi, entering.shape[1]
        diagonal = Phi.dim() == 3
        states = torch.empty_like(entering)
        state = torch.zeros_like(entering[:, 0])
        for b in reversed(range(blocks)) if backwards else range(blocks):
            states[:, b] = state
            step = Phi[:, b]
            if diagonal:
                state = torch.addcmul(entering[:, b], step[..., None], state)
            else:
                state = torch.baddbmm(entering[:, b], step.mT if backwards else step, state)
        return states
