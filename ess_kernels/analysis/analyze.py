"""From a model to the ESS of all of its mixers, in one call."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TextIO, TypeAlias, overload

import torch
from torch import Tensor, nn

from ess_kernels._checks import check_positions, tolerance_lists
from ess_kernels._progress import progress
from ess_kernels._version import __version__
from ess_kernels.capture import Mixing, capturing, unwrapped

from .completeness import batch_axes, expected_mixers, find_mixing, nothing_captured, unseen
from .forward import evaluating, forward_arguments, padding_of, size_of
from .measure import METRICS, check_metrics
from .plan import Plan
from .result import Analysis
from .selection import is_selected, selected
from .visit import Question, Visit

TOLERANCES = (1e-1, 1e-3, 1e-5)  # those of the paper's figures
# of a model, its arguments, B and L: which modules mix over time, and notes
Trial: TypeAlias = Callable[[nn.Module, Mapping[str, Any], int, int], tuple[Mixing, list[str]]]
TRAINING = "The model was in training mode: it ran in eval mode, so that dropout was off."


@overload
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
    dry_run: Literal[False] = False,
    tokens: list[list[str]] | None = None,
    **inputs: Any,
) -> Analysis: ...
@overload
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
    dry_run: Literal[True],
    tokens: list[list[str]] | None = None,
    **inputs: Any,
) -> Plan: ...
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
) -> Analysis | Plan:
    """Measure the ESS of every mixer of a model on one batch.

    The model runs in eval mode, without gradients and without a cache, and is left as it was: once on a few tokens, to
    find the modules that mix over time, and once on all. Each mixer's operator is rebuilt from what the model computes,
    checked against what the mixer passed on, measured and forgotten: memory is that of one layer. A mixer that cannot
    be rebuilt, or whose operator does not give what was passed on, is in `skipped` with the reason; and so is every
    module that mixes over time and that nothing has seen.

    Args:
        model: a torch module, of transformers for instance; wrapped models are unwrapped where that is needed.
        input_ids: int64 `[B, L]`.
        attention_mask: `[B, L]`, 1 for tokens and 0 for padding, left or right. Padding has no positions.
        atol: absolute tolerances; a number or a sequence.
        positions: integers in `1..L-1`; None: all.
        layers: names of modules as in `model.named_modules()`, `*` for anything; None: all.
        metrics: `"entropy"`, `"tolerance"` or both.
        backend: as in `ess_kernels.tolerance_ess`.
        dry_run: run the model and check its mixers, but measure none of them: say how long that would take, by one
            random head of each size.
        tokens: the text of every token, `[B][L]`, for reports.
        **inputs: further inputs of the model, such as `position_ids` or `inputs_embeds`.

    Returns:
        an `Analysis`, or a `Plan` with `dry_run`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        RuntimeError: no mixer at all was captured, with the likely cause.
        whatever the model raises.
    """
    given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
    return analyze_batch(
        model,
        given,
        atol=atol,
        positions=positions,
        layers=layers,
        metrics=metrics,
        backend=backend,
        dry_run=dry_run,
        tokens=tokens,
    )


def analyze_batch(
    model: nn.Module,
    given: Mapping[str, Any],
    *,
    atol: float | Sequence[float],
    positions: Any,
    layers: str | Sequence[str] | None,
    metrics: Collection[str],
    backend: str,
    dry_run: bool = False,
    tokens: list[list[str]] | None = None,
    try_modules: Trial = find_mixing,
    stream: TextIO | None = None,
) -> Analysis | Plan:
    """`analyze`, with the model's inputs in one mapping.

    Args:
        try_modules: finds the modules that mix over time; a caller with many batches may remember what was found.
        stream: where the progress bar is drawn; None: on stderr.
    """
    check_metrics(metrics)
    tolerances = tolerances_of(atol) if "tolerance" in metrics else ()
    batch, length = size_of(given)
    _check_tokens(tokens, batch, length)
    wanted, mask = check_positions(positions, length), padding_of(given, batch, length)
    begin = time.perf_counter()
    with unwrapped(model) as inner, evaluating(inner) as was_training:
        question = Question(selected(layers, inner), tolerances, wanted, metrics, backend)
        arguments = forward_arguments(inner, given)
        mixing, notes = try_modules(inner, arguments, batch, length)
        order = batch_axes(inner, arguments, batch, length)
        names = {name for name, _ in inner.named_modules()}
        with progress(expected_mixers(mixing, question.patterns), "measuring", stream) as bar:
            visit = Visit(question, mixing, names, dry_run, bar)
            shape = (batch, length)
            with capturing(inner, visit, attention_mask=mask, shape=shape, batch_first=order) as seen:
                inner(**arguments)
        refused = {
            f"{name} (another call)" if name in visit.measured else name: reason
            for name, reason in (seen.refused | visit.refused).items()
            if is_selected(name, question.patterns)
        }
        skipped = refused | unseen(mixing, [*visit.measured, *(seen.refused | visit.refused)], question.patterns)
        if not visit.measured:
            raise RuntimeError(nothing_captured(inner, skipped, question.patterns))
    notes = [TRAINING] * was_training + notes + visit.notes
    if dry_run:
        return Plan(visit.planned, skipped, tuple(notes))
    return Analysis(
        layers=visit.layers,
        skipped=skipped,
        model=type(inner).__name__,
        tolerances=tolerances,
        tokens=tokens,
        notes=tuple(notes),
        versions=versions(),
        seconds=time.perf_counter() - begin,
    )


def tolerances_of(atol: Any) -> tuple[float, ...]:
    """Absolute tolerances as a tuple; `ValueError` unless there is one, and all are finite."""
    absolute, _, _ = tolerance_lists(atol, None)
    if not absolute or not all(math.isfinite(tau) for tau in absolute):
        raise ValueError(f"atol: expected at least one finite number, got {atol!r}")
    return tuple(float(tau) for tau in absolute)


def _check_tokens(tokens: Any, batch: int, length: int) -> None:
    if tokens is None:
        return
    if not isinstance(tokens, (list, tuple)) or [len(row) for row in tokens] != [length] * batch:
        raise ValueError(f"tokens: expected {batch} lists of {length} texts, one for each token")


def versions() -> dict[str, str]:
    """Of what has a part in the numbers."""
    found = {"ess_kernels": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for package in ("transformers", "flash-linear-attention", "mamba-ssm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
