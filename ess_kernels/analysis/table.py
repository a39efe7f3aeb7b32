"""Results as rows of a table: one row a layer, head, sample, metric and tolerance, or one row a position as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ess_kernels._shares import as_numbers, collapsed_share, mean_where, of_bound, saturated_share

if TYPE_CHECKING:
    from ess_kernels.analysis.measure import Measured
    from ess_kernels.analysis.result import Analysis, LayerResult

# what identifies a row; `position`, `valid`, `cap` and `value` follow in the table of positions
KEYS = ("model", "layer", "mixer", "route", "state_size", "head", "sample", "metric", "atol")


@dataclass(frozen=True)
class MetricOfLayer:
    """One metric of one layer, at one tolerance.

    Attributes:
        metric: `"entropy"` or `"tolerance"`.
        atol: the tolerance; None for entropy.
        ess: `[B, H, P]` as the layer has it.
    """

    metric: str
    atol: float | None
    ess: Tensor

    def numbers(self) -> Tensor:
        """float64 `[B, H, P]`, NaN for bad data."""
        return as_numbers(self.metric, self.ess, 3)


def metrics_of(layer: LayerResult | Measured) -> list[MetricOfLayer]:
    """The layer's metrics in the order of the table: entropy first, then each tolerance."""
    found = [] if layer.entropy is None else [MetricOfLayer("entropy", None, layer.entropy)]
    return found + [MetricOfLayer("tolerance", atol, counts) for atol, counts in layer.tolerance.items()]


def pick(layer: LayerResult, metric: str, atol: float | None) -> MetricOfLayer:
    """One metric of a layer.

    Args:
        metric: `"entropy"` or `"tolerance"`.
        atol: one of the layer's tolerances; None for entropy, or where there is only one.

    Raises:
        ValueError: another metric or tolerance, or one that was not measured.
    """
    if metric not in ("entropy", "tolerance"):
        raise ValueError(f"metric: expected 'entropy' or 'tolerance', got {metric!r}")
    if metric == "entropy" and atol is not None:
        raise ValueError(f"atol: expected None beside metric='entropy', got {atol!r}")
    there = [found for found in metrics_of(layer) if found.metric == metric]
    if not there:
        raise ValueError(f"metric: {metric!r} was not measured in {layer.name}")
    chosen = [found for found in there if found.atol == atol or (atol is None and len(there) == 1)]
    if not chosen:
        raise ValueError(f"atol: expected one of {[found.atol for found in there]} in {layer.name}, got {atol!r}")
    return chosen[0]


def rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """One row a layer, metric, tolerance, sample and head; the columns are described at `Analysis.records`."""
    for layer in analysis.layers.values():
        for measured in metrics_of(layer):
            yield from rows_of(analysis.model, layer, measured)


def rows_of(model: str, layer: LayerResult, measured: MetricOfLayer) -> Iterator[dict[str, Any]]:
    """The rows of one metric of one layer: samples, then heads."""
    numbers = measured.numbers()
    batch, heads, _ = numbers.shape
    valid, cap = layer.valid[:, None], layer.cap[:, None]
    count = layer.valid.sum(-1)
    total = torch.where(valid, numbers, 0).sum(-1)
    columns = {
        "mean": total / count[:, None],
        "max": _largest(numbers, valid),
        "total": total,
        "cap": _share_of(cap.double(), valid, count).expand(batch, heads),
        "utilisation": mean_of_bound(numbers, cap, valid & (cap > 0)),
        "utilisation_tss": None if layer.state_size is None else mean_of_bound(numbers, layer.state_size, valid),
        "saturated": saturated_share(numbers, cap),
        "collapsed": collapsed_share(numbers, cap) if measured.metric == "tolerance" else None,
    }
    values = {name: None if column is None else column.tolist() for name, column in columns.items()}
    for sample in range(batch):
        for head in range(heads):
            row: dict[str, Any] = _keys(model, layer, measured, head, sample)
            row.update({name: None if column is None else column[sample][head] for name, column in values.items()})
            row["positions"] = int(count[sample])
            row["unresolved"] = layer.unresolved
            row["capture_error"] = layer.capture_error
            row["check"] = layer.check
            row["dtype"] = layer.dtype
            row["length"] = layer.length
            row["seconds"] = layer.seconds
            yield row


def _keys(model: str, layer: LayerResult, measured: MetricOfLayer, head: int, sample: int) -> dict[str, Any]:
    values = (
        model,
        layer.name,
        layer.mixer,
        layer.route,
        layer.state_size,
        head,
        sample,
        measured.metric,
        measured.atol,
    )
    return dict(zip(KEYS, values))


def _largest(numbers: Tensor, valid: Tensor) -> Tensor:
    """The largest number at valid positions: `[B, H]`, NaN if one of them is, or if there is none."""
    if not numbers.shape[-1]:
        return torch.full(numbers.shape[:-1], torch.nan, dtype=torch.float64)
    largest = torch.where(valid, numbers, -torch.inf).amax(-1)
    return torch.where(valid.any(-1), largest, torch.nan)


def _share_of(numbers: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    return torch.where(valid, numbers, 0).sum(-1) / count[:, None]


def mean_of_bound(numbers: Tensor, bound: Tensor | int, valid: Tensor) -> Tensor:
    """The mean over valid positions of numbers `[B, H, P]` divided by a bound: `[B, H]`, NaN without a position."""
    shares = of_bound(numbers, bound, valid)
    return torch.where(valid, shares, 0).sum(-1) / valid.sum(-1)


@dataclass(frozen=True)
class Block:
    """The rows of the table of positions that belong to one metric of one layer: samples, then heads, then positions.

    Attributes:
        layer, measured: what was measured.
        sample, head, position, cap: int64 `[B * H * P]`.
        valid: bool of the same shape.
        value: float64 of the same shape, NaN for bad data.
    """

    layer: LayerResult
    measured: MetricOfLayer
    sample: np.ndarray
    head: np.ndarray
    position: np.ndarray
    valid: np.ndarray
    cap: np.ndarray
    value: np.ndarray


def position_blocks(analysis: Analysis) -> Iterator[Block]:
    """The table of positions, one metric of one layer after the other."""
    for layer in analysis.layers.values():
        for measured in metrics_of(layer):
            numbers = measured.numbers()
            shape = numbers.shape

            def flat(x: Tensor, axis: str, shape: Sequence[int] = shape) -> np.ndarray:
                """What varies along the axes named, of `"bhp"`, at every row of the block."""
                index = tuple(slice(None) if name in axis else None for name in "bhp")
                return x[index].expand(*shape).reshape(-1).numpy()

            yield Block(
                layer=layer,
                measured=measured,
                sample=flat(torch.arange(shape[0]), "b"),
                head=flat(torch.arange(shape[1]), "h"),
                position=flat(layer.positions, "p"),
                valid=flat(layer.valid, "bp"),
                cap=flat(layer.cap, "bp"),
                value=numbers.reshape(-1).numpy(),
            )


def position_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """The table of positions, row by row."""
    for block in position_blocks(analysis):
        columns = (block.sample, block.head, block.position, block.valid, block.cap, block.value)
        for sample, head, position, valid, cap, value in zip(*(column.tolist() for column in columns)):
            keys = _keys(analysis.model, block.layer, block.measured, head, sample)
            yield {**keys, "position": position, "valid": valid, "cap": cap, "value": value}


def pooled(layer: LayerResult, measured: MetricOfLayer) -> tuple[float, float]:
    """A metric's mean over heads and valid positions of the batch, and that of its share of the cap; NaN: bad data."""
    numbers, valid, cap = measured.numbers(), layer.valid[:, None], layer.cap[:, None]
    capped = valid & (cap > 0)
    return float(mean_where(numbers, valid)), float(mean_where(of_bound(numbers, cap, capped), capped))


def position_frame(analysis: Analysis, pandas: Any) -> Any:
    """The table of positions as a pandas data frame, words as categories."""
    blocks = list(position_blocks(analysis))
    sizes = [len(block.value) for block in blocks]

    def words(of_block: list[str]) -> Any:
        kinds = list(dict.fromkeys(of_block))
        codes = np.repeat(np.array([kinds.index(word) for word in of_block], dtype=np.int32), sizes)
        return pandas.Categorical.from_codes(codes, categories=pandas.Index(kinds, dtype="str"))

    def numbers(of_block: list[Any], dtype: str) -> Any:
        missing = [pandas.NA if number is None else number for number in of_block]
        return pandas.array(missing, dtype=dtype).repeat(sizes)

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(block, name) for block in blocks]) if blocks else np.zeros(0)

    return pandas.DataFrame(
        {
            "model": words([analysis.model] * len(blocks)),
            "layer": words([block.layer.name for block in blocks]),
            "mixer": words([block.layer.mixer for block in blocks]),
            "route": words([block.layer.route for block in blocks]),
            "state_size": numbers([block.layer.state_size for block in blocks], "Int64"),
            "head": column("head"),
            "sample": column("sample"),
            "metric": words([block.measured.metric for block in blocks]),
            "atol": numbers([block.measured.atol for block in blocks], "Float64"),
            **{name: column(name) for name in ("position", "valid", "cap", "value")},
        }
    )
