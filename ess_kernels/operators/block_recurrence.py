"""State spaces with several inputs and outputs (MIMO), for which every `T_ij` is a block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import check_bool, check_floating, check_positive_size, check_same_device, check_shape, refuse_complex
from .blocked import Blocked
from .recurrence import layout_of_transitions
from .separate import takes_sequences
from .structure import Operator, StateSpace, Tokens


class BlockStateSpace(StateSpace):
    """The sub-tokens of `block_recurrence`: p + m - 1 for each token.

    The first p read the state before the transition; the p-th has it, and from then on m write. The others have zeros
    for reads or writes, and transitions that change nothing.

    Attributes:
        A, B, C: the caller's tensors.
        diagonal: whether `A` holds the diagonals of diagonal matrices.
        constant: whether `A`, `B` and `C` have no axis for the time.
        length: of the sub-tokens.
    """

    TENSORS = ("A", "B", "C")
    NUMBERS = ("diagonal", "length", "constant")

    def __init__(self, A: Tensor, B: Tensor, C: Tensor, *, diagonal: bool, length: int, constant: bool = False):
        batch_shape = B.shape[: -2 if constant else -3]
        super().__init__(length, batch_shape, B.shape[-2], (A, B, C), reads_before=True, diagonal=diagonal)
        self.A, self.B, self.C = A, B, C
        self.constant = constant

    def tokens(self, heads: Tensor) -> Tokens:
        tokens = self._sub_tokens(heads)
        if not self.constant:
            return tokens
        times = self.length // tokens.read.shape[1]
        return tokens.map(lambda x: x.repeat(1, times, *[1] * (x.dim() - 2)))

    def one_period(self, heads: Tensor) -> Tokens | None:
        return self._sub_tokens(heads) if self.constant else None

    def _sub_tokens(self, heads: Tensor) -> Tokens:
        """Those of all tokens, or of one where all are the same."""
        A, B, C = (self.take(x, heads).double() for x in (self.A, self.B, self.C))
        if self.constant:
            A, B, C = A[:, None], B[:, None], C[:, None]
        p, m = C.shape[-2], B.shape[-1]
        read, write = pad(C, (0, 0, 0, m - 1)), pad(B.mT, (0, 0, p - 1, 0))
        same = torch.ones_like(A) if self.diagonal else torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        same = same.expand_as(A)
        transition = torch.stack([*[same] * (p - 1), A, *[same] * (m - 1)], 2)
        read, write, transition = (x.flatten(1, 2) for x in (read, write, transition))
        return Tokens(read, write, transition, self.reads_before)


@takes_sequences(A=layout_of_transitions, B="[*batch, L, n, m]", C="[*batch, L, p, n]")
def block_recurrence(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    diagonal: bool,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """A linear recurrence with m inputs and p outputs a token: `T_ij = C_i A_{i-1} ... A_{j+1} B_j` for `i > j`, p x m.

    It is `x_{t+1} = A_t x_t + B_t u_t`, `y_t = C_t x_t`, as in `recurrence`: the output reads the state before its
    update, and the blocks on the diagonal are zero. `H_i = T[p i:, :m i]` has at most `min(n, m i, p (L - i))` singular
    values. Where the output reads the state after its update (S5, MIMO Mamba-3), pass `C_t A_t` for `C`.

    For the engine a token is p + m - 1 tokens with one input and one output.

    Args:
        A: transitions (not their logarithms), `[*batch, L, n]` if `diagonal`, else `[*batch, L, n, n]`.
        B: `[*batch, L, n, m]`.
        C: `[*batch, L, p, n]`. All float16, bfloat16, float32 or float64.
        diagonal: whether `A` holds the diagonals of diagonal matrices.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: the multi-channel recurrence of the paper (arXiv 2504.19561), whose `H_i` is cut at multiples of the block.
    """
    check_bool("diagonal", diagonal)
    refuse_complex("block recurrences are real", A=A, B=B, C=C)
    check_floating("B", B)
    if B.dim() < 3:
        raise ValueError(f"B: expected shape [*batch, L, n, m], got {list(B.shape)}")
    *batch, length, state_size, inputs = B.shape
    check_positive_size("B", "n", state_size)
    check_positive_size("B", "m", inputs)
    check_floating("C", C)
    outputs = C.shape[-2] if C.dim() == B.dim() else 1
    check_shape("C", C, (*batch, length, outputs, state_size), "[*batch, L, p, n]")
    check_positive_size("C", "p", outputs)
    if diagonal:
        check_shape("A", A, (*batch, length, state_size), "[*batch, L, n]")
    else:
        check_shape("A", A, (*batch, length, state_size, state_size), "[*batch, L, n, n]")
    check_same_device(A=A, B=B, C=C)
    return blocked(A, B, C, diagonal=diagonal, length=length)


def blocked(A: Tensor, B: Tensor, C: Tensor, *, diagonal: bool, length: int, constant: bool = False) -> Blocked:
    """The operator of `length` tokens of which each has the outputs and inputs of `C [..., p, n]`, `B [..., n, m]`."""
    outputs, inputs = C.shape[-2], B.shape[-1]
    sub_tokens = outputs + inputs - 1
    inner = BlockStateSpace(A, B, C, diagonal=diagonal, length=length * sub_tokens, constant=constant)
    return Blocked(inner, sub_tokens, (0, outputs), (outputs - 1, sub_tokens))
