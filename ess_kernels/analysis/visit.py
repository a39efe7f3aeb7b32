"""What is done with each mixer of a model as it is called: checked, measured and forgotten."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ess_kernels._progress import Progress
from ess_kernels.capture import MixerCall, Mixing, Refused, Verified, verify

from .completeness import doubt
from .measure import fields_of, measure
from .plan import Estimator, PlannedLayer
from .result import LayerResult
from .selection import is_selected

SEVERAL_CALLS = (
    "one of several calls in its module, each with an operator of its own; how they are put together is not seen"
)


@dataclass(frozen=True)
class Question:
    """What is asked of every mixer.

    Attributes:
        patterns: names of modules, `*` for anything; None: all.
        tolerances: absolute ones.
        positions: int64 `[P]`.
        metrics: `"entropy"`, `"tolerance"` or both.
        backend: as in `ess_kernels.tolerance_ess`.
    """

    patterns: list[str] | None
    tolerances: tuple[float, ...]
    positions: Tensor
    metrics: Collection[str]
    backend: str


class Visit:
    """Receives the calls of mixers, and keeps numbers alone: memory is that of one layer.

    Attributes:
        layers: what was measured, by name.
        planned: in a dry run, what would be.
        refused: by name, why a mixer was not measured.
        remarks: names of mixers by what there is to say of them.
    """

    def __init__(self, question: Question, mixing: Mixing, names: Collection[str], dry_run: bool, bar: Progress[Any]):
        """`names` are those of all modules of the model."""
        self.question, self.mixing, self.names, self.bar = question, mixing, names, bar
        self.estimate = Estimator(question.tolerances, question.metrics, question.backend) if dry_run else None
        self.layers: dict[str, LayerResult] = {}
        self.planned: dict[str, PlannedLayer] = {}
        self.refused: dict[str, str] = {}
        self.remarks: dict[str, list[str]] = {}
        self._calls: dict[str, int] = {}

    @property
    def measured(self) -> list[str]:
        return [*self.layers, *self.planned]

    @property
    def notes(self) -> list[str]:
        return [f"{', '.join(names)}: {remark}" for remark, names in self.remarks.items()]

    def __call__(self, call: MixerCall) -> None:
        if not is_selected(call.name, self.question.patterns):
            return
        number = self._calls.get(call.name, 0)
        self._calls[call.name] = number + 1
        name = f"{call.name}[{number}]" if number else call.name
        while number and name in self.names:  # a module is called so
            name += "[again]"
        self.bar.advance(0, name)
        try:
            if reason := doubt(call.name, call.time_by_size, self.mixing):
                raise Refused(reason)
            found = verify(call)
        except Refused as reason:
            self.refused[name] = str(reason)
            return
        if number and call.route == "torch":
            self.remarks.setdefault(SEVERAL_CALLS, []).append(name)
        if found.remark:
            self.remarks.setdefault(found.remark, []).append(name)
        if self.estimate is None:
            self.layers[name] = self._measured(name, call, found)
        else:
            self.planned[name] = self._planned(name, call, found, self.estimate)
        self.bar.advance(1)

    def _measured(self, name: str, call: MixerCall, found: Verified) -> LayerResult:
        op, question = found.operator, self.question
        measured = measure(
            op,
            atol=question.tolerances,
            positions=question.positions,
            metrics=question.metrics,
            backend=question.backend,
        )
        return LayerResult(
            name=name,
            mixer=call.mixer,
            route=found.route,
            state_size=op.state_size,
            length=op.length,
            capture_error=found.capture_error,
            check=found.check,
            dtype=str(call.output.dtype).removeprefix("torch."),
            **fields_of(measured),
        )

    def _planned(self, name: str, call: MixerCall, found: Verified, estimate: Estimator) -> PlannedLayer:
        op = found.operator
        return PlannedLayer(
            name=name,
            mixer=call.mixer,
            route=found.route,
            state_size=op.state_size,
            length=op.length,
            heads=op.num_heads,
            capture_error=found.capture_error,
            seconds=estimate(op),
        )
