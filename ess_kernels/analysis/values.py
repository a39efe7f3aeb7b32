"""The numbers of a result that pictures and reports show: one metric of a layer, bad data as gaps, means with gaps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ess_kernels._text_table import short_tolerance

from .result import Analysis, LayerResult
from .table import MetricOfLayer, pooled
from .table import metrics_of as metrics_of_layer

ENTROPY = "entropy"


def metrics_of(analysis: Analysis) -> list[str | float]:
    """What was measured: `"entropy"` if any layer has it, then the tolerances, from the largest to the smallest."""
    layers = analysis.layers.values()
    tolerances = sorted({tolerance for layer in layers for tolerance in layer.tolerance}, reverse=True)
    return [ENTROPY] * any(layer.entropy is not None for layer in layers) + list(tolerances)


def choose_metric(analysis: Analysis, metric: str | float | None) -> str | float:
    """The metric that is meant: `"entropy"` or a tolerance; None is the first one measured, entropy if there is one.

    Raises:
        ValueError: it was not measured.
    """
    known = metrics_of(analysis)
    if metric is None and known:
        return known[0]
    for name in known:
        if metric == name or (metric != ENTROPY and name != ENTROPY and np.isclose(_number(metric), float(name), 1e-9)):
            return name
    raise ValueError(f"metric: expected one of those measured, {known}, got {metric!r}")


def _number(metric: Any) -> float:
    try:
        return float(metric)
    except (TypeError, ValueError):
        return np.nan


def metric_label(metric: str | float) -> str:
    """`"entropy-ESS"`, or for instance `"tolerance-ESS, 1e-3"`."""
    return "entropy-ESS" if metric == ENTROPY else f"tolerance-ESS, {short_tolerance(float(metric))}"


def choose_layers(analysis: Analysis, layers: Sequence[str] | str | None) -> list[LayerResult]:
    """The layers of these names, one name or several; None: all of them.

    Raises:
        ValueError: there is no layer of that name, or there are no layers at all.
    """
    if not analysis.layers:
        raise ValueError("analysis: expected at least one layer, got none")
    if layers is None:
        return list(analysis.layers.values())
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise ValueError("layers: expected at least one name, got none")
    for name in names:
        if name not in analysis.layers:
            raise ValueError(f"layers: expected names among {list(analysis.layers)}, got {name!r}")
    return [analysis.layers[name] for name in names]


def check_sample(layers: Sequence[LayerResult], sample: int) -> int:
    """The sample's number.

    Raises:
        ValueError: a layer has no such row.
    """
    rows = min(layer.cap.shape[0] for layer in layers)
    if isinstance(sample, bool) or not isinstance(sample, int) or not 0 <= sample < rows:
        raise ValueError(f"sample: expected an integer from 0 to {rows - 1}, got {sample!r}")
    return sample


def caps_of(layer: LayerResult) -> np.ndarray:
    """float64 `[B, P]`, NaN where a position is not valid or nothing can be stored."""
    cap = layer.cap.numpy().astype(np.float64)
    cap[~layer.valid.numpy() | (cap <= 0)] = np.nan
    return cap


def find_metric(layer: LayerResult, metric: str | float) -> MetricOfLayer | None:
    """A metric of a layer, as `choose_metric` gives it; None if it was not measured in this layer."""
    atol = None if metric == ENTROPY else float(metric)
    return next((found for found in metrics_of_layer(layer) if found.atol == atol), None)


def layer_means(layer: LayerResult, metric: str | float) -> tuple[float, float]:
    """Means over valid positions, heads and rows: of ESS, and of its share of the cap. NaN: bad data, or none."""
    found = find_metric(layer, metric)
    return (np.nan, np.nan) if found is None else pooled(layer, found)


def head_means(layer: LayerResult, metric: str | float, *, of_cap: bool = False) -> np.ndarray:
    """The mean of each head over valid positions and rows: float64 `[H]`. NaN: bad data, or not measured."""
    values = values_of(layer, metric, of_cap=of_cap)
    counted = ~np.isnan(caps_of(layer))
    with np.errstate(invalid="ignore"):
        return np.where(counted[:, None], values, 0).sum((0, 2)) / counted.sum()


def values_of(layer: LayerResult, metric: str | float, *, of_cap: bool = False) -> np.ndarray:
    """One metric of a layer, float64 `[B, H, P]`: NaN for bad data, outside of sequences, or if not measured.

    Args:
        layer: a layer of the analysis.
        metric: `"entropy"` or a tolerance, as `choose_metric` gives it.
        of_cap: divide by the cap.
    """
    cap = caps_of(layer)
    found = find_metric(layer, metric)
    if found is None:
        return np.full((cap.shape[0], 1, cap.shape[1]), np.nan)
    values = found.numbers().numpy()
    values = np.where(np.isnan(cap)[:, None], np.nan, values)
    return values / cap[:, None] if of_cap else values


def mean(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> Any:
    """The mean of what is not NaN, for curves of several heads; NaN where there is nothing else."""
    return _without_warning(np.nanmean, values, axis)


def lowest(values: np.ndarray, axis: int) -> Any:
    """The smallest that is not NaN; NaN where there is nothing else."""
    return _without_warning(np.nanmin, values, axis)


def highest(values: np.ndarray, axis: int) -> Any:
    """The largest that is not NaN; NaN where there is nothing else."""
    return _without_warning(np.nanmax, values, axis)


def _without_warning(reduce: Any, values: np.ndarray, axis: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "mean of empty slice": the answer NaN is what is wanted
        return reduce(values, axis)


def sorted_positions(layer: LayerResult) -> tuple[np.ndarray, np.ndarray]:
    """The layer's positions in rising order, each once, and where each stands on the layer's own position axis."""
    return np.unique(layer.positions.numpy(), return_index=True)
