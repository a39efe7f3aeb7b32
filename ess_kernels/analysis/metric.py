"""ESS as a metric of torchmetrics: measured batch by batch, and joined over processes. Needs torchmetrics.

The states have a fixed size, one row a layer and one column a metric, however many batches there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ess_kernels.analysis.measure import METRICS, Measured, check_metrics, measure
from ess_kernels.analysis.result import LayerResult
from ess_kernels.analysis.scalars import scalar_name
from ess_kernels.analysis.table import MetricOfLayer, metrics_of
from ess_kernels.operators.structure import Operator

Subject = Operator | Tensor | LayerResult | Measured


class ESSMetric(Metric):
    """Mean, standard deviation and maximum of the ESS of operators, over all batches, heads and valid positions.

    Args:
        names: of the layers, which are the same in every batch and every process.
        atol: absolute tolerances.
        metrics: `"entropy"`, `"tolerance"` or both.
        positions: those to measure, integers in `1..L-1`; None: all of them.
        backend: as in `ess_kernels.entropy_ess`.
        kwargs: those of `torchmetrics.Metric`, for instance `process_group`.

    Raises:
        ValueError: no name or one twice, a metric that there is not, or no tolerance for `"tolerance"`.

    Example:
        >>> metric = ESSMetric(names=("layer 0", "layer 1"))
        >>> metric.update([op_0, op_1])
        >>> metric.compute()["layer 0/entropy_mean"]
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    total: Tensor
    squares: Tensor
    largest: Tensor
    count: Tensor
    unresolved: Tensor
    counted: Tensor

    def __init__(
        self,
        names: Sequence[str] = ("ess",),
        *,
        atol: Sequence[float] = (1e-1, 1e-3, 1e-5),
        metrics: Sequence[str] = METRICS,
        positions: Any = None,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise ValueError(f"names: expected a sequence of different names, got {names!r}")
        check_metrics(metrics)
        if "tolerance" in metrics and not len(atol):
            raise ValueError("atol: expected at least one tolerance for metrics='tolerance', got none")
        self.names = tuple(names)
        self.metrics = tuple(metrics)
        self.atol = tuple(map(float, atol)) if "tolerance" in metrics else ()
        self.positions = positions
        self.backend = backend
        self.columns: list[tuple[str, float | None]] = [("entropy", None)] if "entropy" in metrics else []
        self.columns += [("tolerance", atol) for atol in self.atol]
        shape = (len(self.names), len(self.columns))
        zeros = torch.zeros(shape, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("largest", zeros - 1, dist_reduce_fx="max")  # no ESS is below 0
        self.add_state("count", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        # of the counts, how many there are, and how many of them no certificate vouches for
        self.add_state("unresolved", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counted", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ops: Subject | Sequence[Subject] | Mapping[str, Subject]) -> None:
        """Measure operators and add what was found.

        Args:
            ops: one operator, if there is one name; a list of them in the order of the names; or operators by name,
                also only some of the names. A dense `T [..., L, L]` is an operator as well, and in place of one a layer
                of an analysis, already measured with these metrics and tolerances, will do: `update(analysis.layers)`.

        Raises:
            ValueError: other names, or another number of operators than names; nothing is added then.
        """
        rows = [(row, self._numbers(name, op)) for row, name, op in self._by_row(ops)]
        for row, (measured, numbers) in rows:
            valid = measured.valid[:, None].expand(numbers[0].shape)
            found = torch.stack([of_column[valid] for of_column in numbers]).to(self.total.device)
            self.total[row] += found.sum(-1)
            self.squares[row] += found.square().sum(-1)
            if found.shape[-1]:
                self.largest[row] = torch.maximum(self.largest[row], found.amax(-1))
            self.count[row] += found.shape[-1]
            counts = sum(of_tolerance.numel() for of_tolerance in measured.tolerance.values())
            self.unresolved[row] += measured.unresolved * counts
            self.counted[row] += counts

    def _by_row(self, ops: Any) -> list[tuple[int, str, Subject]]:
        if isinstance(ops, Mapping):
            others = [name for name in ops if name not in self.names]
            if others:
                raise ValueError(f"ops: expected names among {self.names}, got {others}")
            return [(self.names.index(name), name, op) for name, op in ops.items()]
        listed = list(ops) if isinstance(ops, (list, tuple)) else [ops]
        if len(listed) != len(self.names):
            raise ValueError(f"ops: expected {len(self.names)} operators, one a name, got {len(listed)}")
        return [(row, name, op) for row, (name, op) in enumerate(zip(self.names, listed))]

    def _numbers(self, name: str, op: Subject) -> tuple[LayerResult | Measured, list[Tensor]]:
        """What was measured, and float64 `[B, H, P]` for each column, NaN for bad data."""
        if isinstance(op, (LayerResult, Measured)):
            measured: LayerResult | Measured = op
        else:
            measured = measure(op, atol=self.atol, positions=self.positions, metrics=self.metrics, backend=self.backend)
        found: dict[tuple[str, float | None], MetricOfLayer] = {
            (each.metric, each.atol): each for each in metrics_of(measured)
        }
        missing = [scalar_name(*column) for column in self.columns if column not in found]
        if missing:
            raise ValueError(f"ops: expected {missing} of {name!r}, which was measured without")
        return measured, [found[column].numbers() for column in self.columns]

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars `<name>/entropy_mean`, `_std` and `_max`, `<name>/tolerance_1e-03_mean`, ...

        `<name>/unresolved` is the share of the counts that no certificate vouches for. A scalar is NaN if any number
        marked bad data, and where a name has had no operator; before the first update torchmetrics warns as well.
        """
        count = self.count[:, None].double()
        mean = self.total / count
        spread = (self.squares / count - mean.square()).clamp(min=0).sqrt()
        largest = torch.where(count > 0, self.largest, torch.nan)
        found = {}
        for row, name in enumerate(self.names):
            for column, of_column in enumerate(self.columns):
                for kind, values in (("mean", mean), ("std", spread), ("max", largest)):
                    found[f"{name}/{scalar_name(*of_column)}_{kind}"] = values[row, column]
            if self.atol:
                found[f"{name}/unresolved"] = self.unresolved[row] / self.counted[row]
        return found
