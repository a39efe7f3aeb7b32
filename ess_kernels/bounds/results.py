"""What bounds are given as, and how those of some heads are put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BAD = "it holds NaN or infinity"
UNASKED = "no positions or no tolerances were asked for"


def unanswered(finite: Tensor) -> list[str]:
    """Why heads have no answer where nothing has found one: bool `[N]` says which are finite."""
    return [UNASKED if x else BAD for x in finite.tolist()]


def check_method(method: str, known: tuple[str, ...]) -> None:
    """`ValueError` unless the method is one of those."""
    if method not in known:
        raise ValueError(f"method: expected one of {', '.join(map(repr, known))}, got {method!r}")


class BoundedESS(NamedTuple):
    """Tolerance-ESS between two bounds.

    Attributes:
        lower, upper: int64, `lower <= ESS <= upper`; -1 both where the operator holds NaN or infinity.
        method: what answered each head, along the flattened batch shape: `"exact"`, `"windowed"`, `"compressed"`,
            `"randomized"` or `"strided"`.
        why: a line for each head: what was chosen, what was found, or why there is no answer.
    """

    lower: Tensor
    upper: Tensor
    method: tuple[str, ...]
    why: tuple[str, ...]


class BoundedEntropy(NamedTuple):
    """Entropy-ESS between two bounds.

    Attributes:
        lower, upper: float64, `lower <= ESS <= upper`; NaN both where the operator holds NaN or infinity.
        method, why: as in `BoundedESS`.
    """

    lower: Tensor
    upper: Tensor
    method: tuple[str, ...]
    why: tuple[str, ...]


@dataclass
class Found:
    """Bounds at distinct positions of some heads: `[N, M, P]` for counts, `[N, P]` for entropies, and a line a head."""

    lower: Tensor
    upper: Tensor
    why: list[str]

    def within(self, other: Found) -> Found:
        """Both are right: the narrower bound on either side."""
        return Found(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper), self.why)

    @property
    def open(self) -> Tensor:
        """bool, where the bounds differ."""
        return self.lower < self.upper

    @property
    def closed(self) -> str:
        """How many are the same, in words."""
        share = 100 * float((~self.open).double().mean()) if self.open.numel() else 100.0
        return f"{share:.4g} % of positions closed"

    def put(self, methods: list[str], heads: Tensor, found: Found, *names: str) -> None:
        """Takes over what was found for some heads, and the name of the method for each of them, or one for all."""
        self.lower[heads], self.upper[heads] = found.lower, found.upper
        names = names * len(heads) if len(names) == 1 else names
        for head, line, name in zip(heads.tolist(), found.why, names, strict=True):
            self.why[head], methods[head] = line, name
