"""What people do with ESS once it is measured: tables, files, pictures, monitoring."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .initialisation import initialisation
from .modulation import modulation

__all__ = ["initialisation", "modulation"]

# names that need an optional package, by their module and how that package is installed; imported at first use
OPTIONAL = {
    "ESSMetric": ("ess_kernels.analysis.metric", "torchmetrics"),
    "ESSCallback": ("ess_kernels.analysis.callbacks.trainer", "transformers"),
    "ESSLightningCallback": ("ess_kernels.analysis.callbacks.lightning", "lightning"),
}


def __getattr__(name: str) -> Any:
    if name not in OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, package = OPTIONAL[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(f"{__name__}.{name}: {package} is not installed: pip install {package}") from error
