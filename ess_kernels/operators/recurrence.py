"""A linear recurrence in the convention of control theory: the output reads the state before it is updated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._checks import (
    check_bool,
    check_floating,
    check_positive_size,
    check_same_device,
    check_shape,
    integer,
    is_complex,
    refuse_complex,
)
from .complex_states import ComplexRecurrence
from .separate import Arguments, Layout, takes_sequences
from .structure import Operator, StateSpace, Tokens


class LinearRecurrence(StateSpace):
    """`x_{t+1} = A_t x_t + B_t u_t`, `y_t = C_t x_t`; see `recurrence`.

    Attributes:
        A, B, C: the caller's tensors.
        diagonal: whether `A` holds the diagonals of diagonal matrices.
        constant: whether `A`, `B` and `C` have no axis for the time.

    Without `reads_before` the output reads the state after its update: `y_t = C_t x_{t+1}`.
    """

    TENSORS = ("A", "B", "C")
    NUMBERS = ("diagonal", "length", "constant", "reads_before")

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        diagonal: bool,
        length: int,
        constant: bool,
        reads_before: bool = True,
        inputs: Sequence[Tensor] | None = None,
    ):
        batch_shape = B.shape[: -1 if constant else -2]
        inputs = (A, B, C) if inputs is None else inputs
        super().__init__(length, batch_shape, B.shape[-1], inputs, reads_before=reads_before, diagonal=diagonal)
        self.A, self.B, self.C = A, B, C
        self.constant = constant

    def tokens(self, heads: Tensor) -> Tokens:
        read, write, transition = (self.by_token(x, heads) for x in (self.C, self.B, self.A))
        return Tokens(read, write, transition, self.reads_before)

    def one_period(self, heads: Tensor) -> Tokens | None:
        if not self.constant:
            return None
        read, write, transition = (self.take(x, heads).double()[:, None] for x in (self.C, self.B, self.A))
        return Tokens(read, write, transition, self.reads_before)

    def by_token(self, x: Tensor, heads: Tensor) -> Tensor:
        """`A`, `B` or `C` of some heads, float64 `[N, L, ...]`."""
        mine = self.take(x, heads).double()
        return mine[:, None].expand(-1, self.length, *mine.shape[1:]) if self.constant else mine


def _layout(arguments: Arguments) -> Layout:
    """Of `B` and `C`."""
    return "[*batch, L, n]" if arguments.get("length") is None else ()


def layout_of_transitions(arguments: Arguments) -> Layout:
    return "[*batch, L, n, n]" if not arguments["diagonal"] and arguments.get("length") is None else _layout(arguments)


@takes_sequences(A=layout_of_transitions, B=_layout, C=_layout)
def recurrence(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    diagonal: bool,
    length: int | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """A linear recurrence of control theory: `T_ij = C_i A_{i-1} ... A_{j+1} B_j` for `i > j`.

    It is `x_{t+1} = A_t x_t + B_t u_t`, `y_t = C_t x_t`. The output reads the state before its update, so `T` has no
    diagonal (a feed-through term is no part of it).

    If `diagonal`, each of the three may be complex: then `y_t = Re(C_t x_t)`, and the state has `2 n` real numbers. Of
    a state that has one of each conjugate pair (S4D, S5) pass `2 C`.

    Args:
        A: transitions (not their logarithms), `[*batch, L, n]` if `diagonal`, else `[*batch, L, n, n]`.
        B, C: `[*batch, L, n]`. All float16, bfloat16, float32 or float64; complex64 or complex128, see above.
        diagonal: whether `A` holds the diagonals of diagonal matrices.
        length: if given, `A`, `B` and `C` are constant: none of them has the axis `L`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: the linear recurrence of the paper (arXiv 2504.19561).
    """
    check_bool("diagonal", diagonal)
    if not diagonal:
        refuse_complex("complex ones need diagonal=True", A=A, B=B, C=C)
    check_floating("B", B, or_complex=diagonal)
    tail = "L, n" if length is None else "n"
    axes = 1 if length is not None else 2
    if B.dim() < axes:
        raise ValueError(f"B: expected shape [*batch, {tail}], got {list(B.shape)}")
    state_size = B.shape[-1]
    check_positive_size("B", "n", state_size)
    check_shape("C", C, B.shape, f"[*batch, {tail}]", or_complex=diagonal)
    if diagonal:
        check_shape("A", A, B.shape, f"[*batch, {tail}]", or_complex=True)
    else:
        check_shape("A", A, (*B.shape, state_size), f"[*batch, {tail}, n]")
    check_same_device(A=A, B=B, C=C)
    steps = B.shape[-2] if length is None else integer("length", length, minimum=0)
    if any(map(is_complex, (A, B, C))):
        return ComplexRecurrence(A, B, C, length=steps, constant=length is not None)
    return LinearRecurrence(A, B, C, diagonal=diagonal, length=steps, constant=length is not None)
