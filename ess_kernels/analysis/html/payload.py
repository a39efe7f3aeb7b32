"""The numbers that the report's script draws, as plain values, thinned where there are too many."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..delimiters import marks_of
from ..names import short_names
from ..result import Analysis, LayerResult
from ..values import caps_of, highest, lowest, mean, metric_label, metrics_of, sorted_positions, values_of

MOST_NUMBERS = 400_000  # some 3 MB of text
FEWEST_POSITIONS = 64  # thinned further than this, a curve is no curve
LONGEST_TOKEN = 60  # characters of a token's text


@dataclass
class Payload:
    """What goes into the report.

    Attributes:
        data: plain values for `json.dumps`, no NaN in them.
        thinned: what was left out to keep the file small, in sentences.
    """

    data: dict[str, Any]
    thinned: list[str] = field(default_factory=list)


def payload_of(analysis: Analysis, delimiter: str | None = None, most_numbers: int = MOST_NUMBERS) -> Payload:
    """Collect what is drawn. Heads go first if there are too many numbers, then positions, then rows of the batch."""
    layers = list(analysis.layers.values())
    metrics = metrics_of(analysis)
    rows = max((layer.cap.shape[0] for layer in layers), default=0)
    thinned = []
    with_heads = _size(layers, len(metrics), 1, rows, heads=True) <= most_numbers
    if not with_heads:
        thinned.append("Heads are reduced to their mean, smallest and largest value.")
    longest = max((len(layer.positions) for layer in layers), default=0)
    stride = 1
    if not with_heads:
        widest = max(1, longest // FEWEST_POSITIONS)
        wanted = -(-_size(layers, len(metrics), 1, rows, heads=False) // most_numbers)
        stride = min(widest, wanted)
        if stride > 1:
            thinned.append(f"Of the positions, one in {stride} is shown.")
        size = _size(layers, len(metrics), stride, 1, heads=False)
        if size * rows > most_numbers and rows > 1:
            kept = max(1, most_numbers // size)
            thinned.append(f"Of the {rows} rows of the batch, the first {kept} are shown.")
            rows = kept
    tokens = analysis.tokens
    shared = _Shared()
    data = {
        "metrics": [metric_label(metric) for metric in metrics],
        "samples": rows,
        "layers": [
            {"short": short, **_layer(layer, metrics, stride, rows, with_heads, shared)}
            for short, layer in zip(short_names([layer.name for layer in layers]), layers)
        ],
        "positions": shared.positions,
        "caps": shared.caps,
        "tokens": None if tokens is None else [[_short(text) for text in row] for row in tokens[:rows]],
        "marks": None if delimiter is None or tokens is None else marks_of(analysis, delimiter=delimiter)[:rows],
    }
    return Payload(data, thinned)


class _Shared:
    """Lists that many layers have in common, each written once and referred to by its number."""

    def __init__(self) -> None:
        self.positions: list[list[int]] = []
        self.caps: list[list[int]] = []
        self._numbers: dict[tuple[str, tuple[int, ...]], int] = {}

    def number(self, kind: str, values: list[int]) -> int:
        key = (kind, tuple(values))
        if key not in self._numbers:
            lists = self.positions if kind == "positions" else self.caps
            self._numbers[key] = len(lists)
            lists.append(values)
        return self._numbers[key]


def _size(layers: list[LayerResult], metrics: int, stride: int, rows: int, heads: bool) -> int:
    """How many numbers the layers would come to."""
    total = 0
    for layer in layers:
        count = max([_heads(layer)] if heads else [0]) + 3
        total += metrics * min(rows, layer.cap.shape[0]) * count * -(-len(layer.positions) // stride)
    return total


def _heads(layer: LayerResult) -> int:
    found = [x for x in (layer.entropy, *layer.tolerance.values()) if x is not None]
    return found[0].shape[1] if found else 0


def _layer(
    layer: LayerResult, metrics: list[str | float], stride: int, rows: int, with_heads: bool, shared: _Shared
) -> dict[str, Any]:
    layer = _thinned(layer, stride, rows)
    values = []
    for metric in metrics:
        found = values_of(layer, metric)
        one = {"mean": mean(found, 1), "low": lowest(found, 1), "high": highest(found, 1)}
        if with_heads:
            one["heads"] = found
        values.append({name: _plain(numbers) for name, numbers in one.items()})
    return {
        "name": layer.name,
        "mixer": layer.mixer,
        "tss": layer.state_size,
        "positions": shared.number("positions", layer.positions.tolist()),
        "caps": [shared.number("caps", row) for row in np.nan_to_num(caps_of(layer)).astype(np.int64).tolist()],
        "values": values,
    }


def _thinned(layer: LayerResult, stride: int, rows: int) -> LayerResult:
    """The layer with its first rows, and one in `stride` of its positions, in rising order."""
    _, places = sorted_positions(layer)
    kept = torch.from_numpy(places[::stride])

    def thin(x: Tensor) -> Tensor:
        return x[:rows].index_select(-1, kept)

    return replace(
        layer,
        positions=layer.positions[kept],
        cap=thin(layer.cap),
        valid=thin(layer.valid),
        entropy=None if layer.entropy is None else thin(layer.entropy),
        tolerance={tolerance: thin(counts) for tolerance, counts in layer.tolerance.items()},
    )


def _plain(numbers: np.ndarray) -> Any:
    """Nested lists of numbers with four significant digits; None for NaN."""
    if numbers.ndim > 1:
        return [_plain(part) for part in numbers]
    return [rounded(x) for x in numbers.tolist()]


def rounded(number: float) -> float | int | None:
    """The number with four significant digits, an int where it is whole; None where it is not finite."""
    if not np.isfinite(number):
        return None
    short = float(f"{number:.4g}")
    return int(short) if short.is_integer() else short


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TOKEN else text[: LONGEST_TOKEN - 1] + "…"
