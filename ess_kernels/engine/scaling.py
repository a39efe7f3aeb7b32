"""Exact scaling by powers of two, so that squares of very large or very small inputs neither overflow nor vanish."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..operators.structure import Tokens

# with a unit above this one, an entry of the operator itself may be beyond float64
LARGE_UNIT = 2.0**900


def largest(x: Tensor) -> Tensor:
    """The largest magnitude of each `x[n]`, `[N]`; NaN or infinity where there is one."""
    flat = x.flatten(1)
    # several times faster than the maximum norm of torch.linalg, and NaN passes through as well
    return torch.maximum(flat.amax(1), -flat.amin(1)) if flat.shape[1] else x.new_zeros(x.shape[0])


def power_of_two(x: Tensor, magnitude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`x` `[N, ...]` with the largest magnitude of each `x[n]` brought into [1/2, 1), and the unit taken out, `[N]`.

    Both factors are exact: `result * unit == x` (but for numbers that were subnormal), and within a factor of four of
    that range at the very ends of float64. All-zero entries keep unit 1. The result may be `x` itself.
    """
    magnitude = largest(x) if magnitude is None else magnitude
    exponent = torch.frexp(magnitude).exponent.to(torch.int64).clamp(-1022, 1022)
    if not bool(exponent.any()):
        return x, torch.ones_like(magnitude)
    return x * exp2(-exponent).view(-1, *[1] * (x.dim() - 1)), exp2(exponent)


def scaled_tokens(tokens: Tokens) -> tuple[Tokens, Tensor, Tensor]:
    """Tokens with reads and writes scaled by powers of two, the unit taken out, and which heads are finite, `[N]`.

    Heads that are not finite become zero operators.
    """
    magnitudes = torch.stack([largest(x) for x in tokens.tensors])
    finite = magnitudes.isfinite().all(0)
    if not bool(finite.all()):
        tokens, magnitudes = keep_heads(tokens, finite), torch.where(finite, magnitudes, 0.0)
    read, read_unit = power_of_two(tokens.read, magnitudes[0])
    write, write_unit = power_of_two(tokens.write, magnitudes[1])
    lookup = tokens.lookup
    if lookup is not None and tokens.update is None:
        # the update, minus the write, is scaled with it, and the product of update and lookup must stay what it is
        lookup = lookup * write_unit[:, None, None]
    return replace(tokens, read=read, write=write, lookup=lookup), read_unit * write_unit, finite


def keep_heads(tokens: Tokens, keep: Tensor) -> Tokens:
    """The same with zero operators in place of the heads that are not kept, bool `[N]`."""
    return tokens.map(lambda x: torch.where(keep.view(-1, *[1] * (x.dim() - 1)), x, 0.0))


def exp2(exponent: Tensor) -> Tensor:
    """`2.0 ** exponent` exactly, for int64 exponents of normal numbers."""
    return ((exponent + 1023) << 52).view(torch.float64)
