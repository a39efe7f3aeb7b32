"""The answer of `reduce`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_floating
from ..operators.recurrence import recurrence
from ..operators.structure import Operator


@dataclass(frozen=True, eq=False, repr=False)
class Reduced:
    """The recurrence `s_{i+1} = A_i s_i + B_i u_i`, `y_i = C_i s_i + D_i u_i` that `reduce` has found.

    The output reads the state before the token changes it, and `s_0` is empty. The state before token i has
    `state_sizes[..., i]` numbers, the first ones of n, where n is the largest state size of the batch, or 1 if that is
    0. The rest is zero: rows of `A_i` and `B_i` beyond `state_sizes[..., i + 1]`, columns of `A_i` and entries of
    `C_i` beyond `state_sizes[..., i]`. The last token leaves an empty state.

    `A_i` and `B_i` depend on tokens after i: this says how small the states could be, and is no cache for decoding.

    All tensors are on the operator's device. A head that could not be reduced, because it holds NaN or infinity, has
    NaN everywhere and state sizes of -1.

    Attributes:
        A: float64 `[*batch, L, n, n]`.
        B, C: float64 `[*batch, L, n]`.
        D: float64 `[*batch, L]`, the diagonal of `T`.
        state_sizes: int64 `[*batch, L]`; without the first, which is 0, they compare with an ESS at positions 1..L-1.
        error_bound: float64 `[*batch]`, the Frobenius norm of `T - T_r` of each head, up to rounding errors of about
            1e-15 of the norm of `T`.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    state_sizes: Tensor
    error_bound: Tensor

    def apply(self, u: Tensor) -> Tensor:
        """`y = T_r u`, token by token.

        Args:
            u: `[*batch, L, d]`, floating-point: d inputs for each head.

        Returns:
            float64 `[*batch, L, d]`.

        Raises:
            TypeError, ValueError: `u` is no floating-point tensor, or its shape does not fit.
        """
        check_floating("u", u)
        shape = tuple(self.D.shape)
        if tuple(u.shape[:-1]) != shape:
            raise ValueError(
                f"u: expected shape [*batch, L, d] = [{', '.join(map(str, shape))}, d], got {list(u.shape)}"
            )
        u = u.double()
        A, B = self._without_bad()
        outputs = torch.empty_like(u)
        state = u.new_zeros(*shape[:-1], self.B.shape[-1], u.shape[-1])
        for i in range(shape[-1]):
            now = u[..., i, None, :]
            outputs[..., i, :] = (self.C[..., i, None, :] @ state + self.D[..., i, None, None] * now)[..., 0, :]
            state = A[..., i, :, :] @ state + B[..., i, :, None] * now
        return outputs

    def dense(self) -> Tensor:
        """`T_r` itself, float64 `[*batch, L, L]`, zero above the diagonal; NaN in rows that could not be reduced."""
        A, B = self._without_bad()
        return recurrence(A, B, self.C, diagonal=False).dense() + torch.diag_embed(self.D)

    def operator(self) -> Operator:
        """The same as an operator of n states, which can be measured again: `ess_kernels.operators.recurrence`.

        It has zeros on the diagonal, where `T_r` has `D`: no `H_i` contains the diagonal. Of a packed batch it is one
        recurrence whose states are empty between the sequences.
        """
        return recurrence(self.A, self.B, self.C, diagonal=False)

    def _without_bad(self) -> tuple[Tensor, Tensor]:
        """`A` and `B` with zeros for NaN, so that a sequence without an answer leaves none of it to those behind it."""
        bad = self.state_sizes < 0
        if not bool(bad.any()):
            return self.A, self.B
        return self.A.masked_fill(bad[..., None, None], 0.0), self.B.masked_fill(bad[..., None], 0.0)

    def __repr__(self) -> str:
        *batch, length = self.D.shape
        largest = int(self.state_sizes.max()) if self.state_sizes.numel() else 0
        return f"Reduced(batch_shape={tuple(batch)}, length={length}, largest state {largest})"
