"""Sums and maxima over the tokens of a sequence, from its first token to each: all that operators accumulate over time.

Every function takes the axis along which the time runs. A constructor that uses them, or runs states over the time, is
marked with `accumulates`: its operator is none of a slice of a longer sequence, unless it is told of earlier tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

import torch
from torch import Tensor

from .structure import Operator

P = ParamSpec("P")


@dataclass(frozen=True)
class Accumulated:
    """What a constructor has accumulated over the time; attribute `accumulated` of its operator.

    Attributes:
        family: the name of the constructor.
        total: makes the sum over all tokens; None where no sum would do.
        resumed: the operator of the same tokens after others with such a total.
    """

    family: str
    total: Callable[[], Tensor] | None = None
    resumed: Callable[[Tensor], Operator] | None = None


def accumulates(constructor: Callable[P, Operator]) -> Callable[P, Operator]:
    """Marks the operators of a constructor whose numbers depend on all earlier tokens."""

    @functools.wraps(constructor)
    def construct(*args: P.args, **kwargs: P.kwargs) -> Operator:
        op = constructor(*args, **kwargs)
        op.accumulated = Accumulated(constructor.__name__)
        return op

    return construct


def cumsum(x: Tensor, dim: int) -> Tensor:
    """`x_0 + ... + x_t`."""
    return x.cumsum(dim)


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """`log(exp(x_0) + ... + exp(x_t))`."""
    return x.logcumsumexp(dim)


def decayed_sum(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    """`s_t = decay_t s_{t-1} + x_t` with `s_{-1} = 0`, in `log2 T` steps; decays are multiplied, never divided out."""
    step = 1
    while step < x.shape[dim]:
        x = x + decay * _earlier(x, step, dim, 0.0)
        decay = decay * _earlier(decay, step, dim, 1.0)
        step *= 2
    return x


def decayed_maximum(x: Tensor, log_decay: Tensor, dim: int) -> Tensor:
    """`m_t = max(m_{t-1} + log_decay_t, x_t)` with `m_{-1} = -inf`, in `log2 T` steps.

    It is the logarithm of the largest term of `decayed_sum` for `exp(x)` and `exp(log_decay)`.
    """
    step = 1
    while step < x.shape[dim]:
        x = torch.maximum(x, _earlier(x, step, dim, -torch.inf) + log_decay)
        log_decay = log_decay + _earlier(log_decay, step, dim, 0.0)
        step *= 2
    return x


def previous(x: Tensor, dim: int, first: float) -> Tensor:
    """What the token before had; `first` is for the first token."""
    return _earlier(x, 1, dim, first)


def _earlier(x: Tensor, steps: int, dim: int, fill: float) -> Tensor:
    """`x` of the token `steps` before, `fill` where there is none; `steps` is at most the length."""
    length = x.shape[dim]
    steps = min(steps, length)
    start = torch.full_like(x.narrow(dim, 0, steps), fill)
    return torch.cat([start, x.narrow(dim, 0, length - steps)], dim)


def softmax_over_time(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Writes `w` and log-gates `g` with `w_j exp(g_{j+1} + ... + g_t) = exp(logits_j) / sum_{r <= t} exp(logits_r)`.

    A state with them holds the average of what was written, weighted by the softmax of the logits so far. The first
    gate meets an empty state and is 0.
    """
    total = logcumsumexp(logits, dim)
    before = torch.cat([total.narrow(dim, 0, min(1, total.shape[dim])), total], dim).narrow(dim, 0, total.shape[dim])
    # rounding must not make a state grow
    return (logits - total).exp(), (before - total).clamp_max(0)
