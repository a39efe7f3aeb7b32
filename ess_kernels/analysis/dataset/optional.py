"""pyarrow and safetensors, which come with the extra `data`, and Ray, which is the extra `ray`."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        ImportError: pyarrow is not installed.
    """
    return _installed("pyarrow", "data", "reads and writes Parquet files"), import_module("pyarrow.parquet")


def safe_open() -> Any:
    """`safetensors.safe_open`.

    Raises:
        ImportError: safetensors is not installed.
    """
    return _installed("safetensors", "data", "reads activations").safe_open


def ray() -> tuple[Any, Any]:
    """The modules `ray` and `ray.data`.

    Raises:
        ImportError: Ray is not installed, or its part for data.
    """
    _installed("ray", "ray", "runs workers on a cluster")
    return import_module("ray"), _installed("ray.data", "ray", "gives shards to workers on a cluster")


def _installed(module: str, extra: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} {purpose} and is not installed: pip install 'ess-kernels[{extra}]'") from error
