"""A part's columns, and results as rows of them: one a prompt, layer, head, metric and tolerance.

| column | type | |
|---|---|---|
| `shard`, `row` | text, int64 | the input file, and the number of the prompt in it (of activations: of the sample) |
| `id` | int64 or text | of the prompt |
| `length` | int32 | tokens; null where the prompt has none that could be told |
| `layer`, `mixer`, `route`, `dtype` | text | as in `LayerResult`; null where the whole prompt could not be analysed |
| `state_size` | int64 | null where the state grows with the position |
| `head` | int32 | |
| `metric`, `atol` | text, float64 | `entropy` (`atol` is null) or `tolerance` |
| `position` | list of int32 | the positions i of `H_i`; in padding and where a sequence starts there is none |
| `cap` | list of int32 | the largest ESS possible there |
| `value` | list of float64 | the ESS there, NaN for bad data |
| `mean`, `max`, `utilisation`, `saturated`, `collapsed` | float64 | over these positions, as in `Analysis.records` |
| `width` | float64 | of `tolerance`: the largest relative width of a certificate |
| `unresolved` | int32 | of `tolerance`: positions whose count no certificate vouches for |
| `capture_error`, `check` | float64, text | as in `LayerResult` |
| `problem` | text | null: all is well. Otherwise what is wrong with the prompt, the layer or the head |

Nothing in a row depends on when and where it was made, so that two runs write the same parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ess_kernels._printable import encodable
from ess_kernels.analysis.result import LayerResult
from ess_kernels.analysis.table import MetricOfLayer, metrics_of, rows_of

from . import optional

BAD_DATA = "bad data: something that this head reads is not finite, or overflows"
WORDS = ("shard", "layer", "mixer", "route", "dtype", "metric", "check", "problem")  # the same in many rows
OF_PROMPT = ("shard", "row", "id", "length")
OF_ROW = ("layer", "mixer", "route", "dtype", "state_size", "head", "metric", "atol", "capture_error", "check")
STATISTICS = ("mean", "max", "utilisation", "saturated", "collapsed")
LISTS = ("position", "cap", "value")


def schema(id_kind: str, notes: Mapping[bytes, bytes]) -> Any:
    """The Arrow schema of a part.

    Args:
        id_kind: `"integer"` or `"text"`.
        notes: the file's metadata.
    """
    arrow, _ = optional.pyarrow()
    word = arrow.dictionary(arrow.int32(), arrow.string())
    fields = [
        ("shard", word),
        ("row", arrow.int64()),
        ("id", arrow.int64() if id_kind == "integer" else arrow.string()),
        ("length", arrow.int32()),
        ("layer", word),
        ("mixer", word),
        ("route", word),
        ("dtype", word),
        ("state_size", arrow.int64()),
        ("head", arrow.int32()),
        ("metric", word),
        ("atol", arrow.float64()),
        ("position", arrow.list_(arrow.int32())),
        ("cap", arrow.list_(arrow.int32())),
        ("value", arrow.list_(arrow.float64())),
        *((name, arrow.float64()) for name in STATISTICS),
        ("width", arrow.float64()),
        ("unresolved", arrow.int32()),
        ("capture_error", arrow.float64()),
        ("check", word),
        ("problem", word),
    ]
    return arrow.schema(fields, metadata=dict(notes))


def problem_table(schema: Any, problem: str, layer: str | None, **of_prompt: Any) -> Any:
    """A table of one row that says why a prompt, or a layer of it, has no numbers."""
    columns = {"layer": layer, "problem": problem, **of_prompt}
    return _table(schema, {name: [value] for name, value in columns.items()}, 1)


def layer_tables(schema: Any, layer: LayerResult, **of_prompt: Any) -> list[Any]:
    """A table for each metric of a layer.

    Args:
        schema: of the part.
        layer: what was found.
        **of_prompt: `shard`, `row` (of the first sample), `id` and `length`.
    """
    return [_metric_table(schema, layer, measured, of_prompt) for measured in metrics_of(layer)]


def _metric_table(schema: Any, layer: LayerResult, measured: MetricOfLayer, of_prompt: Mapping[str, Any]) -> Any:
    rows = list(rows_of("", layer, measured))
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in (*OF_ROW, *STATISTICS)}
    columns |= {name: [value] * len(rows) for name, value in of_prompt.items()}
    columns["row"] = [of_prompt["row"] + row["sample"] for row in rows]
    columns |= _lists(layer, measured)
    if measured.atol is not None:
        columns["width"] = layer.widths[measured.atol].reshape(-1).tolist()
        columns["unresolved"] = layer.unresolved_positions[measured.atol].reshape(-1).tolist()
    bad = measured.numbers().isnan().any(-1).reshape(-1).tolist()
    columns["problem"] = [BAD_DATA if is_bad else None for is_bad in bad]
    return _table(schema, columns, len(rows))


def _lists(layer: LayerResult, measured: MetricOfLayer) -> dict[str, Any]:
    """`position`, `cap` and `value` of every row, at its valid positions."""
    arrow, _ = optional.pyarrow()
    numbers = measured.numbers()
    valid = layer.valid[:, None].expand(numbers.shape)
    counts = valid.sum(-1).reshape(-1).numpy()
    offsets = arrow.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32))

    def column(values: Tensor, kind: Any) -> Any:
        chosen = values.expand(numbers.shape)[valid].numpy()
        return arrow.ListArray.from_arrays(offsets, arrow.array(chosen.astype(kind), from_pandas=False))

    return {
        "position": column(layer.positions, np.int32),
        "cap": column(layer.cap[:, None], np.int32),
        "value": column(numbers, np.float64),
    }


def _table(schema: Any, columns: Mapping[str, Any], rows: int) -> Any:
    """A table of these columns; what is not given is null."""
    arrow, _ = optional.pyarrow()
    arrays = []
    for field in schema:
        values = columns.get(field.name, [None] * rows)
        if isinstance(values, list):
            if field.name in WORDS or arrow.types.is_string(field.type):
                values = [None if value is None else encodable(str(value)) for value in values]
            values = arrow.array(values, field.type.value_type if field.name in WORDS else field.type)
            if field.name in WORDS:
                values = values.dictionary_encode().cast(field.type)
        arrays.append(values)
    return arrow.Table.from_arrays(arrays, schema=schema)


def number_of_values(table: Any) -> int:
    """How many values a table's lists hold: what its size is in proportion to."""
    return sum(len(chunk.values) for chunk in table["value"].chunks) + len(table) * math.ceil(len(table.columns) / 4)
