"""State spaces with complex diagonal transitions, as real ones of twice as many states.

Let `s_t = A_t s_{t-1} + B_t u_t`, `y_t = Re(C_t . s_t)`, with `A_t = r_t e^{i theta_t}` diagonal, and write
`s_t = e^{i Theta_t} x_t` where `Theta_t` sums the angles up to t. Then `x_t = r_t x_{t-1} + e^{-i Theta_t} B_t u_t`:
the transitions of x are the moduli r, which are real. Real and imaginary part of x are two states with the same
transition, which read `Re c` and `-Im c` of `c = C_t e^{i Theta_t}` and write `Re b` and `Im b` of
`b = e^{-i Theta_t} B_t`. Only numbers of modulus one are divided out, so that no decay over- or underflows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .finiteness import finite_or_nan
from .structure import StateSpace, Tokens


def times(x: Tensor, y: Tensor) -> Tensor:
    """The product of complex tensors, the same bits wherever an entry lies.

    torch's own product of complex numbers rounds the last entries of a tensor otherwise than the others, so that a head
    would not be the same beside other heads.
    """
    return torch.complex(x.real * y.real - x.imag * y.imag, x.real * y.imag + x.imag * y.real)


def modulus_and_phase(A: Tensor) -> tuple[Tensor, Tensor]:
    """`|A|` and `A / |A|`, which is 1 where A is zero: nothing passes there, whatever the phase.

    Nothing over- or underflows on the way; and the same bits wherever an entry lies, unlike torch's own.
    """
    unit = torch.maximum(A.real.abs(), A.imag.abs()).detach()
    zero = unit == 0
    unit = torch.where(zero, 1.0, unit)
    x, y = torch.where(zero, 1.0, A.real / unit), A.imag / unit
    length = (x * x + y * y).sqrt()
    return torch.where(zero, 0.0, unit * length), torch.complex(x / length, y / length)


def real_tokens(read: Tensor, write: Tensor, modulus: Tensor, phase: Tensor, reads_before: bool) -> Tokens:
    """The tokens of `2 n` real states for n complex ones with transitions `modulus * phase`.

    Phases are multiplied one token after the other: their angles, summed up, would lose digits to whole turns.

    Args:
        read, write, phase: complex128 `[N, L, n]`, phases of modulus one.
        modulus: float64 `[N, L, n]`.
        reads_before: whether row i reads the state before its own transition.
    """
    written = seen = modulus_and_phase(phase.cumprod(1))[1]
    if reads_before:
        seen = torch.cat([torch.ones_like(written[:, :1]), written[:, :-1]], 1)
    read, write = times(read, seen), times(write, torch.complex(written.real, -written.imag))
    return Tokens(
        read=torch.cat([read.real, -read.imag], -1),
        write=torch.cat([write.real, write.imag], -1),
        transition=torch.cat([modulus, modulus], -1),
        reads_before=reads_before,
    )


class ComplexRecurrence(StateSpace):
    """`x_{t+1} = A_t x_t + B_t u_t`, `y_t = Re(C_t x_t)`; see `recurrence`.

    Attributes:
        A, B, C: `[*batch, L, n]`, or `[*batch, n]` where constant; complex, or real like complex ones.
        constant: whether they have no axis for the time.

    Without `reads_before` the output reads the state after its update: `y_t = Re(C_t x_{t+1})`.
    """

    TENSORS = ("A", "B", "C")
    NUMBERS = ("length", "constant", "reads_before")

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        length: int,
        constant: bool,
        reads_before: bool = True,
        inputs: Sequence[Tensor] | None = None,
    ):
        batch_shape = B.shape[: -1 if constant else -2]
        inputs = (A, B, C) if inputs is None else inputs
        super().__init__(length, batch_shape, 2 * B.shape[-1], inputs, reads_before=reads_before)
        # torch 2.13 loses the sign of `x.conj().imag` in a custom op, at the first call of a compiled graph
        self.A, self.B, self.C = (x.resolve_conj() for x in (A, B, C))
        self.constant = constant

    def tokens(self, heads: Tensor) -> Tokens:
        A, B, C = (self._of_heads(x, heads) for x in (self.A, self.B, self.C))
        modulus, phase = modulus_and_phase(A)
        if self.constant:
            shape = (len(heads), self.length, A.shape[-1])
            C, B, modulus, phase = (x[:, None].expand(shape) for x in (C, B, modulus, phase))
        return real_tokens(C, B, modulus, phase, self.reads_before)

    def _of_heads(self, x: Tensor, heads: Tensor) -> Tensor:
        return self.take(x, heads).to(torch.complex128)


class ComplexSelectiveStateSpace(StateSpace):
    """`T_ij = 2 Re sum_n C_in exp(A_n (delta_{j+1} + ... + delta_i)) delta_j B_jn` for every (batch, channel).

    Attributes:
        delta: step sizes `[B, D, L]`, after bias and softplus.
        A: complex `[D, N]`.
        B, C: complex, `[D, N]` where constant, or `[B, G, N, L]`; channel `d` reads group `d // (D // G)`.
    """

    TENSORS = ("delta", "A", "B", "C")

    def __init__(self, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, inputs: Sequence[Tensor] | None = None):
        inputs = (delta, A, B, C) if inputs is None else inputs
        super().__init__(delta.shape[2], delta.shape[:2], 2 * A.shape[1], inputs)
        self.delta = delta
        self.A, self.B, self.C = (x.resolve_conj() for x in (A, B, C))  # as in `ComplexRecurrence`

    def tokens(self, heads: Tensor) -> Tokens:
        batch, channel = self.unravel(heads)
        delta = self.delta[batch, channel].double()[..., None]
        A = self.A[channel].to(torch.complex128)[:, None]
        # an infinite A or step would pass for the valid decay exp(-inf) = 0
        log_decay, angle = finite_or_nan(finite_or_nan(A.real) * delta), A.imag * delta
        return real_tokens(
            read=2 * self._by_token(self.C, batch, channel),
            write=self._by_token(self.B, batch, channel) * delta,
            modulus=log_decay.exp(),
            phase=torch.polar(torch.ones_like(angle), angle),
            reads_before=self.reads_before,
        )

    def _by_token(self, x: Tensor, batch: Tensor, channel: Tensor) -> Tensor:
        """`B` or `C` of some channels, `[N, L, n]`."""
        if x.dim() == 2:
            return x[channel].to(torch.complex128)[:, None].expand(-1, self.length, -1)
        group = channel // max(self.batch_shape[1] // max(x.shape[1], 1), 1)
        return x[batch, group].to(torch.complex128).mT


def as_complex(x: Tensor) -> Tensor:
    """Complex numbers from a last axis that holds real and imaginary parts by turns, complex64 at least."""
    pairs = x.unflatten(-1, (-1, 2)).to(torch.promote_types(x.dtype, torch.float32))
    return torch.complex(pairs[..., 0], pairs[..., 1])
