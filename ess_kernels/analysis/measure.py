"""Both metrics of one operator, in the form in which results keep them: on the CPU, with caps and valid positions."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from ess_kernels import backends
from ess_kernels._checks import check_positions
from ess_kernels.metrics import entropy_ess, tolerance_ess
from ess_kernels.operators.dense import as_operator
from ess_kernels.operators.structure import Operator

Metric = Literal["entropy", "tolerance"]
METRICS: tuple[Metric, ...] = ("entropy", "tolerance")


@dataclass(frozen=True)
class Measured:
    """The ESS of one operator of shape `[B, H]`. Tensors lie on the CPU.

    Attributes:
        positions: int64 `[P]`.
        cap: int64 `[B, P]`, 0 where a position is not valid.
        valid: bool `[B, P]`.
        entropy: float64 `[B, H, P]`, or None if it was not asked for.
        tolerance: int64 `[B, H, P]` by absolute tolerance; empty if not asked for.
        unresolved: share of the counts that no certificate vouches for; 0 without counts.
        widths: float64 `[B, H]` by tolerance: the largest relative width of the certificates of a head's positions.
        unresolved_positions: int64 `[B, H]` by tolerance: how many of them no certificate vouches for.
        backends: what computed each metric.
        seconds: both metrics together.
    """

    positions: Tensor
    cap: Tensor
    valid: Tensor
    entropy: Tensor | None
    tolerance: Mapping[float, Tensor]
    unresolved: float
    widths: Mapping[float, Tensor]
    unresolved_positions: Mapping[float, Tensor]
    backends: Mapping[str, str]
    seconds: float


def fields_of(measured: Measured) -> dict[str, Any]:
    """The fields that a `LayerResult` takes over."""
    return {field.name: getattr(measured, field.name) for field in fields(measured)}


def measure(
    op: Operator | Tensor,
    *,
    atol: Sequence[float] = (1e-1, 1e-3, 1e-5),
    positions: Any = None,
    metrics: Collection[str] = METRICS,
    backend: str = "auto",
) -> Measured:
    """Measure an operator at all positions, or at those given.

    Args:
        op: an operator whose batch shape is `[B, H]`, or a dense `T [B, H, L, L]`. Operators with fewer batch axes are
            read as `B = 1`, and as `H = 1`; with more, all axes but the last are one batch.
        atol: absolute tolerances; not read unless `metrics` has `"tolerance"`.
        positions: integers in `1..L-1`; None: all of them.
        metrics: `"entropy"`, `"tolerance"` or both.
        backend: as in `ess_kernels.entropy_ess`.

    Raises:
        ValueError: a metric that there is not, or what the metrics refuse.
    """
    op = as_operator(op)
    check_metrics(metrics)
    wanted = check_positions(positions, op.length).to(op.device)
    begin = time.perf_counter()
    entropy, used = None, {}
    if "entropy" in metrics:
        used["entropy_ess"] = backends.choose(backend, "entropy_ess", op).name
        entropy = _batch_by_head(entropy_ess(op, positions=wanted, backend=backend))
    tolerance: dict[float, Tensor] = {}
    widths: dict[float, Tensor] = {}
    unresolved_positions: dict[float, Tensor] = {}
    unresolved = 0.0
    if "tolerance" in metrics and len(atol):
        used["tolerance_ess"] = backends.choose(backend, "tolerance_ess", op).name
        counts, certificate = tolerance_ess(op, atol=list(atol), positions=wanted, backend=backend, certificate=True)
        tolerance = {float(tau): _batch_by_head(of_tau) for tau, of_tau in zip(atol, counts)}
        for tau, width, open_ones in zip(atol, certificate.width, certificate.unresolved):
            widths[float(tau)] = _largest(_batch_by_head(width))
            unresolved_positions[float(tau)] = _batch_by_head(open_ones).sum(-1)
        unresolved = float(certificate.unresolved.double().mean()) if counts.numel() else 0.0
    seconds = time.perf_counter() - begin
    _, valid = op.within(wanted)
    return Measured(
        positions=wanted.cpu(),
        cap=_by_row(op.rank_cap(wanted), op),
        valid=_by_row(valid, op),
        entropy=entropy,
        tolerance=tolerance,
        unresolved=unresolved,
        widths=widths,
        unresolved_positions=unresolved_positions,
        backends=used,
        seconds=seconds,
    )


def check_metrics(metrics: Collection[str]) -> None:
    """`ValueError` unless there is at least one metric, and each is `"entropy"` or `"tolerance"`."""
    if isinstance(metrics, str) or not metrics or any(metric not in METRICS for metric in metrics):
        raise ValueError(f"metrics: expected some of {METRICS}, got {metrics!r}")


def _batch_by_head(ess: Tensor) -> Tensor:
    """`[*batch, P]` as `[B, H, P]` on the CPU."""
    heads = ess.shape[-2] if ess.dim() > 1 else 1
    rows = ess.shape[:-2].numel()
    return ess.detach().reshape(rows, heads, ess.shape[-1]).cpu()


def _largest(width: Tensor) -> Tensor:
    """Along the positions; NaN if one of them is, and 0 without any."""
    return width.amax(-1) if width.shape[-1] else width.new_zeros(width.shape[:-1])


def _by_row(of_position: Tensor, op: Operator) -> Tensor:
    """What is known at each position, `[P]` or `[B, 1, P]`, as `[B, P]` on the CPU; B is all axes but the last."""
    count = of_position.shape[-1]
    rows = of_position.detach().cpu().expand(*op.batch_shape[:-1], 1, count)
    return rows.reshape(torch.Size(op.batch_shape[:-1]).numel(), count).clone()
