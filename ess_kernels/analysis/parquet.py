"""An analysis as a Parquet file: the table of positions, and everything else in the file's metadata. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ess_kernels._printable import encodable
from ess_kernels.analysis import plain
from ess_kernels.analysis.table import Block, position_blocks

if TYPE_CHECKING:
    from ess_kernels.analysis.result import Analysis, LayerResult

METADATA = b"ess_kernels"
NO_PYARROW = "pyarrow writes and reads .parquet files and is not installed: pip install pyarrow"


def write(analysis: Analysis, path: Path) -> None:
    """Write the file; one row group a layer and metric, so that memory is one metric's.

    Raises:
        ImportError: pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    metadata = {METADATA: json.dumps(plain.without_tensors(analysis), allow_nan=False).encode()}
    schema = _schema(arrow).with_metadata(metadata)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in position_blocks(analysis):
            if len(block.value):
                writer.write_table(_table(arrow, schema, analysis.model, block))


def _schema(arrow: Any) -> Any:
    word = arrow.dictionary(arrow.int32(), arrow.string())
    return arrow.schema(
        [
            ("model", word),
            ("layer", word),
            ("mixer", word),
            ("route", word),
            ("state_size", arrow.int64()),
            ("head", arrow.int32()),
            ("sample", arrow.int32()),
            ("metric", word),
            ("atol", arrow.float64()),
            ("position", arrow.int64()),
            ("valid", arrow.bool_()),
            ("cap", arrow.int64()),
            ("value", arrow.float64()),
        ]
    )


def _table(arrow: Any, schema: Any, model: str, block: Block) -> Any:
    layer, measured, rows = block.layer, block.measured, len(block.value)

    def same(text: str) -> Any:
        return arrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [encodable(text)])

    columns = [
        same(model),
        same(layer.name),
        same(layer.mixer),
        same(layer.route),
        arrow.array([layer.state_size] * rows, arrow.int64()),
        arrow.array(block.head.astype(np.int32)),
        arrow.array(block.sample.astype(np.int32)),
        same(measured.metric),
        arrow.array([measured.atol] * rows, arrow.float64()),
        arrow.array(block.position),
        arrow.array(block.valid),
        arrow.array(block.cap),
        arrow.array(block.value),
    ]
    return arrow.Table.from_arrays(columns, schema=schema)


def read(path: Path) -> Analysis:
    """The analysis that `write` wrote.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: not such a file, or one whose rows are in another order than they were written in.
    """
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        metadata = json.loads((file.schema_arrow.metadata or {})[METADATA])
        table = file.read(columns=["sample", "head", "position", "valid", "cap", "value"])
    except (arrow.ArrowInvalid, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a .parquet file of Analysis.save, got another file: {error}") from error
    rows = _Rows({name: table[name].to_numpy() for name in table.column_names})
    analysis = plain.build(metadata, str(path), lambda layer: _layer(layer, rows))
    if rows.begin != table.num_rows:
        raise ValueError(f"{path}: expected {rows.begin} rows, got {table.num_rows}")
    return analysis


class _Rows:
    """The rows of the table, taken off block by block."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = columns
        self.begin = 0

    def take(self, batch: int, heads: int, positions: Tensor) -> dict[str, Tensor]:
        """The next block's `valid`, `cap` and `value`, `[B, H, P]` each."""
        shape = (batch, heads, len(positions))
        end = self.begin + int(np.prod(shape))
        block = {name: torch.from_numpy(column[self.begin : end].copy()) for name, column in self.columns.items()}
        self.begin = end
        found = {name: column.reshape(shape) for name, column in block.items()}
        expected = {
            "sample": torch.arange(batch)[:, None, None],
            "head": torch.arange(heads)[:, None],
            "position": positions,
        }
        for name, column in expected.items():
            if not (found[name] == column).all():
                raise ValueError(f"column {name!r} is not in the order in which it was written")
        return found


def _layer(about: Mapping[str, Any], rows: _Rows) -> LayerResult:
    batch, heads = int(about["batch"]), int(about["heads"])
    positions = plain.integers(about["positions"]).reshape(-1)
    entropy, tolerance, found = None, {}, None
    if about["measured"]["entropy"]:
        found = rows.take(batch, heads, positions)
        entropy = found["value"]
    for atol in about["measured"]["tolerance"]:
        found = rows.take(batch, heads, positions)
        tolerance[float(atol)] = found["value"].nan_to_num(nan=-1).long()
    if found is None or not heads:
        raise ValueError(f"layer {about['name']!r} has no rows, so its caps are not known")
    return plain.make_layer(
        about,
        positions=positions,
        cap=found["cap"][:, 0],
        valid=found["valid"][:, 0],
        entropy=entropy,
        tolerance=tolerance,
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(NO_PYARROW) from error
    return pyarrow, pyarrow.parquet
