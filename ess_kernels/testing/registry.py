"""The list of operators that are hard for some part of the engine, and what the definition says of them.

`cases.py`, `diagonal_cases.py` and `delta_cases.py` fill it. A case's random numbers depend on nothing but its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ..operators import Operator
from ..operators.structure import Tokens

INF = float("inf")

Kind = Literal["diagonal", "rank one", "full", "tiled"]


@dataclass(frozen=True)
class Case:
    """How an operator is built, and what can be said about it without building it.

    Attributes:
        builder: makes the operator; called with the random numbers of its name.
        length: `op.length`.
        state_size: `op.state_size`.
        kind: a `StateSpace` whose transitions are diagonal, diagonal plus a rank-one term or full matrices, or `Tiled`.
        growing: whether a diagonal transition of some head has an entry beyond 1.
    """

    builder: Callable[[], Operator]
    length: int
    state_size: int | None
    kind: Kind
    growing: bool


CASES: dict[str, Case] = {}


def build(name: str) -> Operator:
    """The operator of that name; its random numbers depend on nothing but the name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        return CASES[name].builder()


def names(*prefixes: str, kind: Kind | None = None, longer_than: int = 0) -> list[str]:
    """The cases that start with one of these prefixes (any, if none is given), of this kind and longer than that."""
    return [
        name
        for name, about in CASES.items()
        if (not prefixes or name.startswith(prefixes)) and kind in (None, about.kind) and about.length > longer_than
    ]


def case(name: str, length: int, state_size: int | None = None, kind: Kind | None = None, growing: bool = False):
    """Adds what it decorates to `CASES`. A finite state has diagonal transitions unless another kind is named."""

    def register(builder: Callable[[], Operator]) -> Callable[[], Operator]:
        assert name not in CASES, name
        CASES[name] = Case(
            builder, length, state_size, kind or ("tiled" if state_size is None else "diagonal"), growing
        )
        return builder

    return register


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def powers(low: float, high: float, steps: int) -> Tensor:
    """`10**low .. 10**high`, evenly in the exponent."""
    return torch.logspace(low, high, steps, dtype=torch.float64)


@dataclass(frozen=True)
class Truth:
    """Singular values `[N, L-1, S]` of every `H_i` by the definition, zero padded, and the positions' caps `[L-1]`.

    Beyond a finite state's size the decomposition finds rounding errors; these are zeros here.
    """

    values: Tensor
    cap: Tensor

    @property
    def largest(self) -> Tensor:
        """`s_1(H_i)`, `[N, L-1]`."""
        return self.values[..., 0]


def spectra(op: Operator) -> Truth:
    """The definition, with T brought near 1 by a power of two first: LAPACK is not asked to do that well."""
    T = op.dense_heads(op.all_heads()).tril(-1)
    L = op.length
    unit = torch.exp2(T.abs().amax((1, 2), keepdim=True).clamp_min(1e-300).log2().floor()) if T.numel() else T.sum()
    T = T / unit
    values = T.new_zeros(len(T), max(L - 1, 0), max(L // 2, 1))
    for i in range(1, L):
        s = torch.linalg.svdvals(T[:, i:, :i])
        values[:, i - 1, : s.shape[-1]] = s
    cap = torch.tensor([min(i, L - i, L if op.state_size is None else op.state_size) for i in range(1, L)])
    beyond = torch.arange(values.shape[-1]) >= cap[:, None]
    return Truth((values * unit).masked_fill(beyond, 0.0) if values.numel() else values, cap)


def matrix_of(tokens: Tokens) -> Tensor:
    """`T` `[N, L, L]` of a recurrence token by token, without the diagonal."""
    heads, length, _ = tokens.read.shape
    T = torch.zeros(heads, length, length, dtype=torch.float64)
    A = tokens.matrices()
    for j in range(length):
        state = tokens.write[:, j, :, None]
        for i in range(j + 1, length):
            if not tokens.reads_before:
                state = A[:, i] @ state
            T[:, i, j] = (tokens.read[:, i, None] @ state)[:, 0, 0]
            if tokens.reads_before:
                state = A[:, i] @ state
    return T


@cache
def truth(name: str) -> Truth:
    return spectra(build(name))
