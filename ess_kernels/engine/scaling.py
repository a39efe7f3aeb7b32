"""Exact scaling by powers of two, so that squares of very large or very small inputs neither overflow nor vanish."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.structure import Tokens


def power_of_two(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[N, ...]` with the largest magnitude of each `x[n]` brought into [1/2, 1), and the unit taken out, `[N]`.

    Both factors are exact: `result * unit == x` (but for numbers that were subnormal). All-zero entries keep unit 1.
    """
    flat = x.flatten(1)
    largest = torch.linalg.vector_norm(flat, torch.inf, dim=1) if flat.shape[1] else x.new_zeros(x.shape[0])
    exponent = torch.frexp(largest).exponent.to(torch.int64).clamp(-1000, 1000)
    if not bool(exponent.any()):
        return x, torch.ones_like(largest)
    return x * _exp2(-exponent).view(-1, *[1] * (x.dim() - 1)), _exp2(exponent)


def scaled_tokens(tokens: Tokens) -> tuple[Tokens, Tensor, Tensor]:
    """Tokens with reads and writes scaled by powers of two, the unit taken out `[N]`, and which heads are finite `[N]`.

    Heads that are not finite become zero operators.
    """
    good = tokens.finite()
    read, read_unit = power_of_two(torch.where(good[:, None, None], tokens.read, 0.0))
    write, write_unit = power_of_two(torch.where(good[:, None, None], tokens.write, 0.0))
    shape = (-1, *[1] * (tokens.transition.dim() - 1))
    transition = torch.where(good.view(shape), tokens.transition, 0.0)
    return Tokens(read, write, transition, tokens.reads_before), read_unit * write_unit, good


def _exp2(exponent: Tensor) -> Tensor:
    """`2.0 ** exponent` exactly, for int64 exponents of normal numbers."""
    return ((exponent + 1023) << 52).view(torch.float64)
