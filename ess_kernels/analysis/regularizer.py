"""Terms of a training loss that ask for less memory, or for more: smooth state-sizes, and how far `A` is from 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .._checks import finite_float, integer
from ..metrics import Positions, entropy_ess, nuclear_norm, soft_ess
from ..operators.dense import as_operator
from ..operators.separate import SeparateSequences
from ..operators.structure import Operator
from .transitions import transition_distance

__all__ = ["ESSRegularizer", "transition_distance"]

Metric = Literal["soft", "entropy", "nuclear"]
METRICS = get_args(Metric)


class ESSRegularizer:
    """A scalar to add to a loss: the mean of a smooth state-size over heads and positions, or how far it is off.

        reg = ess_kernels.ESSRegularizer("nuclear", positions=4)
        (loss + 1e-3 * reg(op)).backward()

    Without `target`, `floor` and `ceiling` the value is the mean itself: adding it trains for compressible memory. More
    state-size is no good in itself, so that training for used memory needs a limit: `floor` or `target`.

    Args:
        metric: `"soft"` (`soft_ess`), `"entropy"` (`entropy_ess`) or `"nuclear"` (`nuclear_norm`).
        atol: the tolerance of the soft count, in the units of `T`; for that metric only, and needed there.
        target: the value is the mean square of what each state-size is off this one.
        floor, ceiling: the value is the mean of what state-sizes lack to the floor, and of what they have above the
            ceiling. Either or both, without a `target`.
        positions: how many, spread evenly over each sequence, its ends left out; or a list of them, as in
            `entropy_ess`. A few are enough, and cost little.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source: published compressors of state-space models regularise the nuclear norm; arXiv 2504.19561 trains for more
    effective state-size by `transition_distance`.
    """

    def __init__(
        self,
        metric: Metric = "soft",
        atol: float | None = None,
        target: float | None = None,
        floor: float | None = None,
        ceiling: float | None = None,
        positions: int | Positions = 4,
    ):
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(map(repr, METRICS))}, got {metric!r}")
        if (atol is None) == (metric == "soft"):
            needed = "a positive number for metric='soft'" if metric == "soft" else f"None for metric={metric!r}"
            raise ValueError(f"atol: expected {needed}, got {atol}")
        self.metric: Metric = metric
        self.atol = None if atol is None else finite_float("atol", atol, positive=True)
        limits = {"target": target, "floor": floor, "ceiling": ceiling}
        self.target, self.floor, self.ceiling = (
            None if x is None else finite_float(name, x) for name, x in limits.items()
        )
        if self.target is not None and not (floor is None and ceiling is None):
            raise ValueError(f"target: expected None beside a floor or a ceiling, got {target}")
        if self.floor is not None and self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(f"floor: expected at most the ceiling {ceiling}, got {floor}")
        several = isinstance(positions, Tensor) or hasattr(positions, "__iter__")
        # a list, for it is read at every call
        self.positions: Any = _places(positions) if several else integer("positions", positions, minimum=1)

    def __call__(self, op: Operator | Tensor | Iterable[Operator]) -> Tensor:
        """The value for an operator, or its mean over a list of them, such as those of a model's layers.

        Heads and sequences count alike; padding and positions at which a packed sequence starts are left out.

        Returns:
            A float64 scalar, 0 where there is no position; NaN where a head holds NaN or infinity.

        Raises:
            TypeError, ValueError: as the metric.
        """
        if isinstance(op, (str, Mapping)):
            raise TypeError(f"op: expected an operator or a list of them, got {type(op).__name__}")
        if not isinstance(op, (Operator, Tensor)) and isinstance(op, Iterable):
            values = [self(one) for one in op]
            if not values:
                raise ValueError("op: expected an operator or a list of them, got an empty list")
            return torch.stack(values).mean()
        op = as_operator(op)
        values = self._values(op)
        found = torch.cat(values) if values else torch.zeros(0, dtype=torch.float64, device=op.device)
        return self._cost(found).sum() / max(1, len(found))

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in ("atol", "target", "floor", "ceiling")}
        shown = "".join(f", {name}={value}" for name, value in given.items() if value is not None)
        return f"ESSRegularizer({self.metric!r}{shown}, positions={self.positions})"

    def _values(self, op: Operator) -> list[Tensor]:
        """The state-sizes, 1-D, at valid positions."""
        if not isinstance(op, SeparateSequences):
            several = not isinstance(self.positions, int)
            return [self._measure(op, self.positions if several else spread(self.positions, op.length)).flatten()]
        if not isinstance(self.positions, int):
            found = self._measure(op, self.positions)
            valid = op.valid[:, [i - 1 for i in self.positions]]
            valid = valid.view(len(valid), *[1] * (found.dim() - 2), -1) if len(valid) > 1 else valid[0]
            return [found[valid.expand(found.shape)]]
        values = []
        for group in op.groups(sequence for sequence in op.sequences.every() if sequence.length > 1):
            found = self._measure(group.op, spread(self.positions, group.op.length))
            values.append(group.by_sequence(found.reshape(group.op.num_heads, -1)).flatten())
        return values

    def _measure(self, op: Operator, positions: Positions) -> Tensor:
        if self.metric == "soft":
            assert self.atol is not None
            return soft_ess(op, self.atol, positions)
        measure: Callable[..., Tensor] = entropy_ess if self.metric == "entropy" else nuclear_norm
        return measure(op, positions)

    def _cost(self, size: Tensor) -> Tensor:
        if self.target is not None:
            return (size - self.target).square()
        if self.floor is None and self.ceiling is None:
            return size
        lacking = torch.zeros_like(size) if self.floor is None else (self.floor - size).clamp_min(0)
        beyond = torch.zeros_like(size) if self.ceiling is None else (size - self.ceiling).clamp_min(0)
        return lacking + beyond


def _places(positions: Any) -> list[int]:
    """Positions as a list of numbers, each of which is checked; the largest is checked by the metric."""
    if isinstance(positions, Tensor):
        if positions.dim() != 1 or positions.is_floating_point() or positions.dtype == torch.bool:
            kind = f"{list(positions.shape)} {positions.dtype}"
            raise TypeError(f"positions: expected a number or a 1-D tensor of integers, got {kind}")
        positions = positions.tolist()
    return [integer("positions", position, minimum=1) for position in positions]


def spread(number: int, length: int) -> Sequence[int]:
    """As many different positions as there are, up to `number`, evenly between 0 and `length`, which are left out."""
    return sorted({length * (j + 1) // (number + 1) for j in range(number)} - {0})
