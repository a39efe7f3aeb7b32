"""State spaces with complex diagonal transitions, as real ones of twice as many states.

Let `s_t = A_t s_{t-1} + B_t u_t`, `y_t = Re(C_t . s_t)`, with `A_t = r_t e^{i theta_t}` diagonal, and write
`s_t = e^{i Theta_t} x_t` where `Theta_t` sums the angles up to t. Then `x_t = r_t x_{t-1} + e^{-i Theta_t} B_t u_t`:
the transitions of x are the moduli r, which are real. The real part of x and the imaginary part, its sign changed, are
two states with the same transition: they read `Re c` and `Im c` of `c = C_t e^{i Theta_t}` and write `Re b` and `-Im b`
of `b = e^{-i Theta_t} B_t`. Only numbers of modulus one are divided out, so that no decay over- or underflows.

The angle of a transition near zero is well defined, but its derivative grows like `1 / |A|` and rounding errors with
it; where `A` is zero there is none, while `T` still has one. A head with such transitions is differentiated as a
recurrence whose transitions are `2 n x 2 n` matrices, in which `A` stands as it is (`matrices_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .finiteness import finite_or_nan
from .structure import StateSpace, Tokens

# beyond these magnitudes a square over- or underflows; numbers are brought nearer by powers of two, which round nothing
LARGE, SMALL = 2.0**500, 2.0**-400
# below this modulus a transition is not differentiated by its phase: gradients would lose more than 16 of their 53 bits
SMOOTH = 2.0**-16


class Pair(NamedTuple):
    """Complex numbers as real tensors, whose arithmetic gives the same bits wherever an entry lies.

    That of complex tensors does not: torch rounds their last entries otherwise than the others, and a head would not be
    the same beside other heads. Sums go into the memory of their first term: fresh memory costs more than the sum.
    """

    real: Tensor
    imag: Tensor

    @classmethod
    def of(cls, x: Tensor, select: Callable[[Tensor], Tensor] = torch.clone) -> Pair:
        """Of a tensor, complex or real, or of what is selected from it; in memory of its own."""
        if x.is_complex():
            return cls(select(x.real).double(), select(x.imag).double())
        selected = select(x).double()
        return cls(selected, torch.zeros_like(selected))

    def complex(self) -> Tensor:
        return torch.complex(self.real, self.imag)

    def each(self, change: Callable[[Tensor], Tensor]) -> Pair:
        return Pair(change(self.real), change(self.imag))

    def times(self, other: Pair) -> Pair:
        return Pair(
            (self.real * other.real).sub_(self.imag * other.imag),
            (self.real * other.imag).add_(self.imag * other.real),
        )

    def conjugate_times(self, other: Pair) -> Pair:
        """The conjugate of this, times `other`."""
        return Pair(
            (self.real * other.real).add_(self.imag * other.imag),
            (self.real * other.imag).sub_(self.imag * other.real),
        )

    def squares(self) -> Tensor:
        return (self.real * self.real).add_(self.imag * self.imag)

    def modulus_and_phase(self) -> tuple[Tensor, Pair]:
        """`|A|` and `A / |A|`, which is 1 where A is zero: nothing passes there, whatever the phase."""
        squares = self.squares()
        if bool(((squares < LARGE) & (squares > SMALL)).all()):
            modulus = squares.sqrt()
            return modulus, self.each(lambda x: x / modulus)
        size = torch.maximum(self.real.abs(), self.imag.abs()).detach()
        zero = size == 0
        unit = torch.ones_like(size)
        unit = unit.masked_fill(size > LARGE**0.5, 2.0**-600).masked_fill(size < SMALL**0.5, 2.0**600)
        scaled = Pair(torch.where(zero, 1.0, self.real * unit), self.imag * unit)
        modulus = scaled.squares().sqrt()
        return torch.where(zero, 0.0, modulus / unit), scaled.each(lambda x: x / modulus)

    def near_one(self) -> Pair:
        """Numbers whose moduli have drifted from one by rounding, brought back: a step of Newton's method."""
        factor = self.squares().mul_(-0.5).add_(1.5)
        return self.each(lambda x: x * factor)


def real_tokens(read: Pair, write: Pair, modulus: Tensor, phase: Pair, reads_before: bool) -> Tokens:
    """The tokens of `2 n` real states for n complex ones with transitions `modulus * phase`.

    Phases are multiplied one token after the other: their angles, summed up, would lose digits to whole turns.

    Args:
        read, write, phase: float64 `[N, L, n]`, phases of modulus one.
        modulus: float64 `[N, L, n]`.
        reads_before: whether row i reads the state before its own transition.
    """
    written = seen = Pair.of(phase.complex().cumprod(1)).near_one()
    if reads_before:
        earlier = written.each(lambda x: x[:, :-1])
        one = Pair(torch.ones_like(modulus[:, :1]), torch.zeros_like(modulus[:, :1]))
        seen = Pair(*(torch.cat(x, 1) for x in zip(one, earlier, strict=True)))
    return Tokens(
        read=torch.cat(read.times(seen), -1),
        write=torch.cat(write.conjugate_times(written), -1),
        transition=torch.cat([modulus, modulus], -1),
        reads_before=reads_before,
    )


def matrices_of(A: Pair) -> Tensor:
    """Matrices `[..., 2 n, 2 n]` that do to `(Re x, -Im x)` what complex numbers `[..., n]` do to x."""
    real, imag = torch.diag_embed(A.real), torch.diag_embed(A.imag)
    return torch.cat([torch.cat([real, imag], -1), torch.cat([-imag, real], -1)], -2)


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

    def _of_heads(self, heads: Tensor) -> tuple[Pair, Pair, Pair]:
        """`A`, `B` and `C` of some heads, as they came."""
        A, B, C = (Pair.of(x, lambda part: self.take(part, heads)) for x in (self.A, self.B, self.C))
        return A, B, C

    def without_gradient(self, heads: Tensor) -> Tensor | None:
        if not (self.A.requires_grad and torch.is_grad_enabled()):
            return None
        with torch.no_grad():
            A = Pair.of(self.A, lambda part: self.take(part, heads))
            return (torch.maximum(A.real.abs(), A.imag.abs()) < SMOOTH).flatten(1).any(1)

    def matrix_tokens(self, heads: Tensor) -> Tokens:
        A, B, C = self._of_heads(heads)
        read, write, transition = torch.cat(C, -1), torch.cat([B.real, -B.imag], -1), matrices_of(A)
        if self.constant:
            read, write = self._at_all_tokens(read), self._at_all_tokens(write)
            transition = transition[:, None].expand(-1, self.length, -1, -1)
        return Tokens(read, write, transition, self.reads_before)

    def tokens(self, heads: Tensor) -> Tokens:
        A, B, C = self._of_heads(heads)
        modulus, phase = A.modulus_and_phase()
        if self.constant:
            modulus = self._at_all_tokens(modulus)
            phase, B, C = (x.each(self._at_all_tokens) for x in (phase, B, C))
        return real_tokens(C, B, modulus, phase, self.reads_before)

    def squares_apart(self, heads: Tensor) -> Tensor:
        """`sum_n |A_n - 1|^2` `[N, L]`, float64."""
        A = Pair.of(self.A, lambda part: self.take(part, heads))
        squares = Pair(A.real - 1, A.imag).squares().sum(-1)
        return squares[:, None].expand(-1, self.length) if self.constant else squares

    def _at_all_tokens(self, x: Tensor) -> Tensor:
        return x[:, None].expand(-1, self.length, -1)


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
        delta, log_decay, angle = self._steps(heads)
        return real_tokens(
            read=self._by_token(self.C, batch, channel).each(lambda x: 2 * x),
            write=self._by_token(self.B, batch, channel).each(lambda x: x * delta),
            modulus=log_decay.exp(),
            phase=Pair(angle.cos(), angle.sin()),
            reads_before=self.reads_before,
        )

    def matrix_tokens(self, heads: Tensor) -> Tokens:
        batch, channel = self.unravel(heads)
        delta, log_decay, angle = self._steps(heads)
        modulus = log_decay.exp()
        B, C = (self._by_token(x, batch, channel) for x in (self.B, self.C))
        return Tokens(
            read=2 * torch.cat(C, -1),
            write=torch.cat([B.real * delta, -B.imag * delta], -1),
            transition=matrices_of(Pair(modulus * angle.cos(), modulus * angle.sin())),
            reads_before=self.reads_before,
        )

    def squares_apart(self, heads: Tensor) -> Tensor:
        """`sum_n |exp(A_n delta) - 1|^2` `[N, L]`, float64."""
        _, log_decay, angle = self._steps(heads)
        # the square of the difference of the moduli, and that of the chord
        return (log_decay.expm1().square() + 4 * log_decay.exp() * (angle / 2).sin().square()).sum(-1)

    def _steps(self, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes `[N, L, 1]`, and logarithms of the moduli and angles of the transitions `[N, L, n]`."""
        batch, channel = self.unravel(heads)
        delta = self.delta[batch, channel].double()[..., None]
        A = Pair.of(self.A, lambda part: part[channel, None])
        # an infinite A or step would pass for the valid decay exp(-inf) = 0
        return delta, finite_or_nan(finite_or_nan(A.real) * delta), A.imag * delta

    def _by_token(self, x: Tensor, batch: Tensor, channel: Tensor) -> Pair:
        """`B` or `C` of some channels, `[N, L, n]`."""
        if x.dim() == 2:
            return Pair.of(x, lambda part: part[channel, None].expand(-1, self.length, -1))
        group = channel // max(self.batch_shape[1] // max(x.shape[1], 1), 1)
        return Pair.of(x, lambda part: part[batch, group].mT)


def as_complex(x: Tensor) -> Tensor:
    """Complex numbers from a last axis that holds real and imaginary parts by turns, complex64 at least."""
    pairs = x.unflatten(-1, (-1, 2)).to(torch.promote_types(x.dtype, torch.float32))
    return torch.complex(pairs[..., 0], pairs[..., 1])
