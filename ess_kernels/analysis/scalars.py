"""The names of scalars that are logged: `<layer>/entropy_mean`, `<layer>/tolerance_1e-03_mean`, ..."""

from __future__ import annotations

from ess_kernels._text_table import tolerance_digits
from ess_kernels.analysis.result import Analysis
from ess_kernels.analysis.table import metrics_of, pooled


def scalar_name(metric: str, atol: float | None = None) -> str:
    """`"entropy"`, or the tolerance with two digits in its exponent: `"tolerance_1e-03"`, `"tolerance_0.0025"`."""
    return metric if atol is None else f"{metric}_{tolerance_digits(atol)}"


def scalars(analysis: Analysis, prefix: str = "ess") -> dict[str, float]:
    """What monitoring logs of an analysis: for each layer and metric the mean, and the mean share of the cap.

    Means are over all heads and valid positions of the batch; NaN where a head has bad data.
    """
    found = {}
    for layer in analysis.layers.values():
        for measured in metrics_of(layer):
            name = f"{prefix}/{layer.name}/{scalar_name(measured.metric, measured.atol)}"
            mean, of_cap = pooled(layer, measured)
            found[f"{name}_mean"] = mean
            found[f"{name}_of_cap"] = of_cap
        found[f"{prefix}/{layer.name}/unresolved"] = layer.unresolved
    return found
