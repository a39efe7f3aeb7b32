"""From a model to the ESS of all of its mixers, in one call."""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from ess_kernels._checks import check_positions, tolerance_lists
from ess_kernels._progress import Progress, progress
from ess_kernels._version import __version__
from ess_kernels.capture import (
    MixerCall,
    Refused,
    Verified,
    capturing,
    unwrap,
    verify,
)

from .completeness import expected_mixers, find_mixing, nothing_captured, unseen
from .forward import evaluating, forward_arguments, size_of
from .measure import METRICS, check_metrics, measure
from .plan import Estimator, Plan, PlannedLayer
from .result import Analysis, LayerResult
from .selection import is_selected, selected

TOLERANCES = (1e-1, 1e-3, 1e-5)  # those of the paper's figures


def analyze(
    model: nn.Module,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    atol: float | Sequence[float] = TOLERANCES,
    positions: Any = None,
    layers: str | Sequence[str] | None = None,
    metrics: Collection[str] = METRICS,
    backend: str = "auto",
    dry_run: bool = False,
    tokens: list[list[str]] | None = None,
    **inputs: Any,
) -> Any:
    """Measure the ESS of every mixer of a model on one batch.

    The model runs once, in eval mode, without gradients and without a cache, and is left as it was. Each mixer's
    operator is rebuilt from what the model computes, checked against what the mixer passed on, measured and forgotten:
    memory is that of one layer. A mixer that cannot be rebuilt, or whose operator does not give what was passed on, is
    in `skipped` with the reason; and so is every module that mixes over time and that nothing has seen.

    Args:
        model: a torch module, of transformers for instance; wrapped models are unwrapped where that is needed.
        input_ids: int64 `[B, L]`.
        attention_mask: `[B, L]`, 1 for tokens and 0 for padding, left or right. Padding has no positions.
        atol: absolute tolerances; a number or a sequence.
        positions: integers in `1..L-1`; None: all.
        layers: names of modules as in `model.named_modules()`, `*` for anything; None: all.
        metrics: `"entropy"`, `"tolerance"` or both.
        backend: as in `ess_kernels.tolerance_ess`.
        dry_run: run the model and check the mixers, and measure only a few positions of each, to say what all would
            take; returns a `Plan`.
        tokens: the text of every token, for reports.
        **inputs: further inputs of the model, such as `position_ids` or `inputs_embeds`.

    Returns:
        an `Analysis`, or a `Plan` with `dry_run`.

    Raises:
        TypeError, ValueError: an argument is wrong.
        RuntimeError: no mixer at all was captured, with the likely cause.
        whatever the model raises.
    """
    begin = time.perf_counter()
    model = unwrap(model)
    check_metrics(metrics)
    tolerances = _tolerances(atol) if "tolerance" in metrics else ()
    given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
    batch, length = size_of(given)
    wanted = check_positions(positions, length)
    mask = _padding(attention_mask, batch, length)
    arguments = forward_arguments(model, given)
    with evaluating(model) as was_training:
        notes = [
            "The model was in training mode: it was switched to eval mode, so that dropout was off."
        ] * was_training
        mixing, note = find_mixing(model, arguments, batch, length)
        notes += note
        names = selected(layers, model)
        with progress(expected_mixers(mixing, names), "measuring") as bar:
            visit = _Visit(names, tolerances, wanted, metrics, backend, dry_run, bar)
            with capturing(model, visit, attention_mask=mask, shape=(batch, length)) as seen:
                model(**arguments)
    measured = {*visit.layers, *visit.planned}
    refused = seen.refused | visit.refused
    skipped = {
        f"{name} (another call)" if name in measured else name: reason
        for name, reason in refused.items()
        if is_selected(name, names)
    }
    skipped |= unseen(mixing, [*measured, *refused], names)
    notes += [f"{', '.join(names)}: {remark}" for remark, names in visit.remarks.items()]
    if not measured:
        raise RuntimeError(nothing_captured(model, skipped))
    if dry_run:
        return Plan(visit.planned, skipped, tuple(notes))
    return Analysis(
        layers=visit.layers,
        skipped=skipped,
        model=type(model).__name__,
        tolerances=tolerances,
        tokens=tokens,
        notes=tuple(notes),
        versions=versions(),
        seconds=time.perf_counter() - begin,
    )


class _Visit:
    """Measures each mixer as it is called, and keeps the numbers alone."""

    def __init__(
        self,
        names: list[str] | None,
        tolerances: tuple[float, ...],
        positions: Tensor,
        metrics: Collection[str],
        backend: str,
        dry_run: bool,
        bar: Progress[Any],
    ):
        self.names, self.tolerances, self.positions, self.metrics = names, tolerances, positions, metrics
        self.backend, self.bar = backend, bar
        self.estimate = Estimator(tolerances, metrics, backend) if dry_run else None
        self.layers: dict[str, LayerResult] = {}
        self.planned: dict[str, PlannedLayer] = {}
        self.refused: dict[str, str] = {}
        self.calls: dict[str, int] = {}
        self.remarks: dict[str, list[str]] = {}  # names of mixers by what there is to say of them

    def __call__(self, call: MixerCall) -> None:
        if not is_selected(call.name, self.names):
            return
        number = self.calls.get(call.name, 0)
        self.calls[call.name] = number + 1
        name = f"{call.name}[{number}]" if number else call.name
        self.bar.advance(0, name)
        try:
            found = verify(call)
        except Refused as reason:
            self.refused.setdefault(name, str(reason))
            return
        if found.remark:
            self.remarks.setdefault(found.remark, []).append(name)
        op = found.operator
        if self.estimate is not None:
            self.planned[name] = PlannedLayer(
                name,
                call.mixer,
                found.route,
                op.state_size,
                op.length,
                op.num_heads,
                found.capture_error,
                self.estimate(op),
            )
        else:
            self.layers[name] = self._measured(name, call, found)
        self.bar.advance(1)

    def _measured(self, name: str, call: MixerCall, found: Verified) -> LayerResult:
        op = found.operator
        measured = measure(
            op, atol=self.tolerances, positions=self.positions, metrics=self.metrics, backend=self.backend
        )
        return LayerResult(
            name=name,
            mixer=call.mixer,
            route=found.route,
            state_size=op.state_size,
            length=op.length,
            positions=measured.positions,
            cap=measured.cap,
            valid=measured.valid,
            entropy=measured.entropy,
            tolerance=measured.tolerance,
            unresolved=measured.unresolved,
            capture_error=found.capture_error,
            check=found.check,
            dtype=str(call.output.dtype).removeprefix("torch."),
            backends=measured.backends,
            seconds=measured.seconds,
        )


def _tolerances(atol: Any) -> tuple[float, ...]:
    absolute, _, _ = tolerance_lists(atol, None)
    return tuple(float(tau) for tau in absolute)


def _padding(attention_mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """The mask if it leaves out a token, else None.

    Raises:
        ValueError: the mask has another shape, or a row without tokens or with a gap.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or tuple(attention_mask.shape) != (batch, length):
        shape = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise ValueError(f"attention_mask: expected shape [B, L] = {[batch, length]}, got {shape}")
    return None if bool(attention_mask.bool().all()) else attention_mask.bool()


def versions() -> dict[str, str]:
    """Of what has a part in the numbers."""
    found = {"ess_kernels": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("transformers", "flash-linear-attention", "mamba-ssm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
