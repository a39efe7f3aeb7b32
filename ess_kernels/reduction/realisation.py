"""Recurrences whose state size changes from token to token, and how several of them become one set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Realisation:
    """`s_{i+1} = A_i s_i + B_i u_i`, `y_i = C_i s_i`, for `N` heads whose states differ in size; float64.

    Where a head's state is smaller than the tensors have room for, the rest is zeros.

    Attributes:
        steps: `[A_i B_i]` for each token, `[N, w_{i+1}, w_i + 1]`; the last column is `B_i`.
        reads: `C_i` for each token, `[N, w_i]`.
        sizes: the state size before each token, int64 `[N, L]`.
        error: the Frobenius norm of what these heads differ in from those that they were made from, `[N]`.
        overflowed: heads on the way to which a number overflowed, bool `[N]`: nothing is known about them.
    """

    steps: list[Tensor]
    reads: list[Tensor]
    sizes: Tensor
    error: Tensor
    overflowed: Tensor


@dataclass(frozen=True)
class Padded:
    """The same with all states of one size n: `A` `[N, L, n, n]`, `B` and `C` `[N, L, n]`, `D` and `sizes` `[N, L]`."""

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    sizes: Tensor
    error: Tensor

    @staticmethod
    def without_states(D: Tensor, n: int) -> Padded:
        """What multiplies the inputs directly, `D` `[N, L]`, beside states that are all empty, with room for n."""
        heads, length = D.shape
        A, (B, C) = D.new_zeros(heads, length, n, n), D.new_zeros(2, heads, length, n)
        return Padded(A, B, C, D, torch.zeros(heads, length, dtype=torch.int64), D.new_zeros(heads))

    def heads(self, first: int, stop: int) -> Padded:
        """Heads `first..stop-1`."""
        every = (self.A, self.B, self.C, self.D, self.sizes, self.error)
        return Padded(*(x[first:stop] for x in every))

    def with_room(self, n: int) -> Padded:
        """The same with more room for states."""
        more = n - self.A.shape[-1]
        A, B, C = pad(self.A, (0, more, 0, more)), pad(self.B, (0, more)), pad(self.C, (0, more))
        result = Padded(A, B, C, self.D, self.sizes, self.error)
        result.mark((self.sizes < 0).any(1))
        return result

    def mark(self, bad: Tensor) -> None:
        """NaN, and sizes of -1, for bad heads, bool `[N]`."""
        for x in (self.A, self.B, self.C, self.D, self.error):
            x[bad] = torch.nan
        self.sizes[bad] = -1


def padded(parts: Sequence[Realisation], D: Tensor) -> Padded:
    """Realisations of heads that follow each other as one set of tensors, whose n is the largest of their state sizes.

    But n is at least 1, so that there is a recurrence even where every state is empty.
    """
    n = max([1, *[int(part.sizes.max()) for part in parts if part.sizes.numel()]])
    result = Padded.without_states(D, n)
    first = 0
    for part in parts:
        mine = slice(first, first + len(part.sizes))
        for i, (step, read) in enumerate(zip(part.steps, part.reads)):
            rows, columns = min(step.shape[1], n), min(step.shape[2] - 1, n)
            result.A[mine, i, :rows, :columns] = step[:, :rows, :columns]
            result.B[mine, i, :rows] = step[:, :rows, -1]
            result.C[mine, i, :columns] = read[:, :columns]
        result.sizes[mine], result.error[mine] = part.sizes, part.error
        first = mine.stop
    return result


def put_together(pieces: Sequence[tuple[Padded, Tensor, Tensor]], heads: int, length: int) -> Padded:
    """Pieces of sequences in a batch of `heads` heads and `length` tokens; zeros where there is none.

    Each piece comes with the heads `[N]` that it belongs to and the tokens `[1, L_s]` that it covers. The error of a
    head is that of all its sequences, which have no entry of `T` in common.
    """
    n = max([1, *[piece.A.shape[-1] for piece, _, _ in pieces]])
    zeros = torch.zeros(heads, length, dtype=torch.float64)
    result = Padded.without_states(zeros, n)
    for piece, head, token in pieces:
        piece, where = piece.with_room(n), (head[:, None], token)
        result.A[where], result.B[where], result.C[where] = piece.A, piece.B, piece.C
        result.D[where], result.sizes[where] = piece.D, piece.sizes
        for number, error in zip(head.tolist(), piece.error):
            result.error[number] = torch.hypot(result.error[number], error)
    return result
