"""What both callbacks share: one fixed batch, analysed now and then with the model that is being trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ess_kernels._checks import finite_float, integer
from ess_kernels.analysis.forward import evaluating
from ess_kernels.analysis.measure import METRICS, check_metrics
from ess_kernels.analysis.result import Analysis
from ess_kernels.analysis.scalars import scalars

logger = logging.getLogger(__name__)


class Probe:
    """Analyses a model on the same batch each time, and keeps what was found: what both callbacks inherit.

    Args:
        batch: the model's inputs, for instance `{"input_ids": ids, "attention_mask": mask}`; they are moved to the
            model's device.
        every: how many optimiser steps lie between two measurements.
        max_seconds: the most that one measurement may take by the estimate (`analyze(..., dry_run=True)`), which is
            made and logged at the first; more is refused.
        layers, metrics, atol, positions: as in `ess_kernels.analyze`: what is left out costs nothing.
        analyze: in place of `ess_kernels.analyze`, which is looked up when it is called.

    Attributes:
        history: `(step, Analysis)`, in order; in process zero, which alone measures.
        plan: the estimate, once there is one.

    Raises:
        ValueError: `every` below 1, `max_seconds` that is not above 0, an empty batch, a metric that there is not.
    """

    def __init__(
        self,
        batch: Mapping[str, Any],
        *,
        every: int = 500,
        max_seconds: float = 60.0,
        layers: Any = None,
        metrics: Sequence[str] = METRICS,
        atol: Sequence[float] = (1e-1, 1e-3, 1e-5),
        positions: Any = None,
        analyze: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(batch, Mapping) or not batch:
            raise ValueError(f"batch: expected a dict of the model's inputs, got {batch!r}")
        check_metrics(metrics)
        self.every = integer("every", every, minimum=1)
        self.max_seconds = finite_float("max_seconds", max_seconds)
        if self.max_seconds <= 0:
            raise ValueError(f"max_seconds: expected a number above 0, got {max_seconds}")
        self.batch = dict(batch)
        self.options = {"layers": layers, "metrics": tuple(metrics), "atol": tuple(atol), "positions": positions}
        self.analyze = analyze
        self.history: list[tuple[int, Analysis]] = []
        self.plan: Any = None

    def due(self, step: int) -> bool:
        """Whether to measure after this step; never twice after one, as where gradients are accumulated."""
        return step % self.every == 0 and not (self.history and self.history[-1][0] == step)

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Analyse the model in evaluation mode and return the scalars to log; the model's modes stay as they are.

        Raises:
            ValueError: the estimate exceeds `max_seconds`.
            RuntimeError: the model's parameters are spread over processes, of which only one is here.
        """
        model = unwrapped(model)
        _refuse_sharded(model)
        batch = {name: _to_device(value, model) for name, value in self.batch.items()}
        with evaluating(model):
            if self.plan is None:
                self._estimate(model, batch)
            found = self._analyze()(model, **batch, **self.options)
        self.history.append((step, found))
        return scalars(found)

    def _estimate(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        plan = self._analyze()(model, **batch, **self.options, dry_run=True)
        logger.info("ESS every %d steps:\n%s", self.every, plan)
        if plan.seconds > self.max_seconds:
            raise ValueError(
                f"max_seconds: measuring takes an estimated {plan.seconds:.1f} s each time, more than the "
                f"{self.max_seconds:g} s allowed; choose fewer layers or positions, a shorter batch, "
                f"metrics=('tolerance',), or a larger max_seconds\n{plan}"
            )
        self.plan = plan

    def _analyze(self) -> Callable[..., Any]:
        if self.analyze is not None:
            return self.analyze
        import ess_kernels

        return ess_kernels.analyze


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of data parallelism and of `torch.compile`, which would hide its mixers."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _refuse_sharded(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # FSDP2 and tensor parallelism; FSDP; DeepSpeed's third stage
        if type(parameter).__name__ in ("DTensor", "FlatParameter") or hasattr(parameter, "ds_id"):
            raise RuntimeError(
                f"model: its parameter {name!r} is spread over processes, and ESS is measured in one of them alone; "
                "gather the parameters and call ess_kernels.analyze yourself"
            )


def _to_device(value: Any, model: nn.Module) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    first = next(model.parameters(), None)
    return value if first is None else value.to(first.device)
