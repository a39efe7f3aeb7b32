"""What a run asks of every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ess_kernels.analysis.analyze import TOLERANCES
from ess_kernels.analysis.measure import METRICS

MAX_TOKENS = 2048


@dataclass(frozen=True)
class Settings:
    """All that a part depends on, beside its shard, the model and the versions of packages.

    Attributes:
        id_column, text_column: columns of the Parquet files.
        max_tokens: a prompt with more is not analysed, and its row says so.
        max_length: a prompt is cut to its first tokens; None: it is not.
        atol, positions, layers, metrics, backend: as for `ess_kernels.analyze`. Positions that a prompt does not have
            are left out.
        model: what identifies the model, and how it was loaded; empty for activations.
    """

    id_column: str = "id"
    text_column: str = "text"
    max_tokens: int = MAX_TOKENS
    max_length: int | None = None
    atol: tuple[float, ...] = TOLERANCES
    positions: tuple[int, ...] | None = None
    layers: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = METRICS
    backend: str = "auto"
    model: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
