"""What `analyze(..., dry_run=True)` returns: the mixers that would be measured, and how long that would take."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from ess_kernels import operators
from ess_kernels._text_table import text_table
from ess_kernels.operators.structure import Operator, StateSpace

from .measure import measure

# one head of this length is measured in place of a longer one; a recurrence's time grows like L, other mixers' like L^3
LONGEST_TRIAL = 1024


@dataclass(frozen=True)
class PlannedLayer:
    """A mixer that would be measured.

    Attributes:
        name, mixer, route, state_size, length, capture_error: as in `LayerResult`.
        heads: the number of operators, `B H`.
        seconds: the estimate for its metrics.
    """

    name: str
    mixer: str
    route: str
    state_size: int | None
    length: int
    heads: int
    capture_error: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What an analysis would measure.

    Attributes:
        layers: by module name.
        skipped: by module name, the reason.
        notes: as in `Analysis`.
    """

    layers: Mapping[str, PlannedLayer]
    skipped: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The estimate for all metrics, beside the forward pass and the checks that the dry run made as well."""
        return sum(layer.seconds for layer in self.layers.values())

    def __str__(self) -> str:
        rows = [
            [
                layer.name,
                layer.mixer,
                str(layer.heads),
                str(layer.length),
                "i" if layer.state_size is None else str(layer.state_size),
                f"{layer.capture_error:.0e}",
                f"{layer.seconds:.2g} s",
            ]
            for layer in self.layers.values()
        ]
        head = ["layer", "mixer", "heads", "tokens", "TSS", "error", "estimate"]
        table = text_table(head, rows, left=("layer", "mixer"))
        skipped = [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        total = f"{len(self.layers)} mixers, about {self.seconds:.2g} s of metrics on this machine"
        return "\n".join([*table, *skipped, *self.notes, total])


@dataclass
class Estimator:
    """Estimates from one random head of the same size, measured once for each size.

    Attributes:
        tolerances, metrics, backend: as for `analyze`.
        seconds: found so far, by size.
    """

    tolerances: tuple[float, ...]
    metrics: Collection[str]
    backend: str
    seconds: dict[tuple[int, int | None], float] = field(default_factory=dict)

    def __call__(self, op: Operator) -> float:
        """Seconds that all positions of all heads of an operator take."""
        state = op.state_size if isinstance(op, StateSpace) else None
        key = (op.length, state)
        if key not in self.seconds:
            self.seconds[key] = self._one_head(op, state)
        return self.seconds[key] * op.num_heads

    def _one_head(self, op: Operator, state: int | None) -> float:
        length = min(op.length, LONGEST_TRIAL)
        generator = torch.Generator().manual_seed(0)
        # threads share heads: two of them show what many together take
        q, k = torch.randn(2, 1, length, 2, state or 64, generator=generator).to(op.device)
        if state is None:
            trial: Operator = operators.attention(q.transpose(1, 2), k.transpose(1, 2))
        else:
            trial = operators.gla(q, k, torch.nn.functional.logsigmoid(q) / 16)
        measure(trial, atol=self.tolerances, positions=[1], metrics=self.metrics, backend=self.backend)  # warms up
        begin = time.perf_counter()
        measure(trial, atol=self.tolerances, metrics=self.metrics, backend=self.backend)
        took = (time.perf_counter() - begin) / 2
        return took * (op.length / length) ** (3 if state is None else 1)
