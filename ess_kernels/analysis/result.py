"""What `analyze` returns: the ESS of every mixer of a model, and why each other one was left out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ess_kernels._printable import encodable, printable
from ess_kernels._shares import mean_where, of_bound
from ess_kernels.analysis import storage, table
from ess_kernels.analysis.summary import headline, summary

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False, eq=False)
class LayerResult:
    """The ESS of one mixer of a model. Tensors lie on the CPU; B rows of the batch, H heads or channels, P positions.

    Attributes:
        name: the module's name in `model.named_modules()`, followed by `[1]`, `[2]`, ... for its second, third, ...
            call in one forward pass.
        mixer: the kind of mixer, for instance `"attention"`, `"mamba2"`, `"gated_delta_rule"`.
        route: how the mixer was seen: `"registry"`, `"global"`, `"module"`, `"torch"`, or one of these followed by
            `", one-hot"` where `T` was read off by one-hot values.
        state_size: the theoretical state size (TSS); None where the state grows with the position, as in attention.
        length: L, the number of tokens of a row.
        positions: int64 `[P]`, the positions i of `H_i = T[i:, :i]`.
        cap: int64 `[B, P]`, the largest ESS possible, `min(state_size, i, L - i)` of the row's own sequence; 0 where a
            position is not valid.
        valid: bool `[B, P]`: false in padding and where a sequence starts.
        entropy: float64 `[B, H, P]`, or None if it was not asked for. NaN marks bad data.
        tolerance: int64 `[B, H, P]` by absolute tolerance; empty if not asked for. -1 marks bad data.
        unresolved: share of the counts that no certificate vouches for, 0 to 1.
        capture_error: largest difference between `T u`, with the mixer's skip and gate, and what the mixer passed on,
            in units of the largest number passed on.
        check: `"independent"` if `T` was made from other tensors than those that the mixer multiplied with,
            `"attribution only"` where `T` is the model's own softmax output: the error then proves where it belongs,
            and no formula.
        dtype: of the mixer's values, for instance `"float32"`.
        backends: what computed each metric, for instance `{"tolerance_ess": "native"}`.
        seconds: both metrics together.
        widths: float64 `[B, H]` by absolute tolerance: the largest relative width of the certificates of a head's
            positions, within which a singular value may have been miscounted. NaN: some position has none.
        unresolved_positions: int64 `[B, H]` by absolute tolerance: how many positions no certificate vouches for.
    """

    name: str
    mixer: str
    route: str
    state_size: int | None
    length: int
    positions: Tensor
    cap: Tensor
    valid: Tensor
    entropy: Tensor | None
    tolerance: Mapping[float, Tensor]
    unresolved: float
    capture_error: float
    check: str
    dtype: str
    backends: Mapping[str, str]
    seconds: float
    widths: Mapping[float, Tensor] = field(default_factory=dict)
    unresolved_positions: Mapping[float, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        size = "a state that grows" if self.state_size is None else f"a state of {self.state_size}"
        return printable(f"<LayerResult {self.name}: {self.mixer}, {size}, {len(self.positions)} positions>")


@dataclass(frozen=True, repr=False, eq=False)
class Analysis:
    """The ESS of a model on one batch.

    Attributes:
        layers: by module name, in the order in which the mixers ran.
        skipped: by module name, why a module that mixes over time is not in `layers`.
        model: the model's class.
        tolerances: the absolute tolerances asked for.
        tokens: the text of every token, `[B][L]`, where the caller gave it; for reports.
        notes: what the reader should know, for instance that dropout was switched off.
        versions: of this package, torch, transformers where it is installed, and Python.
        seconds: everything: forward pass, verification, metrics.
    """

    layers: Mapping[str, LayerResult]
    skipped: Mapping[str, str]
    model: str
    tolerances: tuple[float, ...]
    tokens: list[list[str]] | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def records(self, per_position: bool = False) -> list[dict[str, Any]]:
        """The results as rows of a table, one a layer, metric, tolerance, sample and head, in this order.

        Columns that identify a row: `model`, `layer`, `mixer`, `route`, `state_size` (None where the state grows with
        the position), `head`, `sample` (the row of the batch), `metric` (`"entropy"` or `"tolerance"`), `atol` (None
        for entropy).

        Args:
            per_position: one row a position as well. It has `position`, `valid`, `cap` and `value`, which is NaN for
                bad data, and none of the columns below. For millions of rows `to_pandas` needs far less memory.

        Returns:
            Rows with these columns beside those above; a float is NaN where there is bad data, or no position to take
            it from:

            - `mean`, `max`, `total`: of the ESS over the valid positions of this head and sample.
            - `cap`: the mean cap of these positions.
            - `utilisation`: the mean of ESS / cap over the valid positions whose cap is not 0.
            - `utilisation_tss`: the mean of ESS / state_size; None where `state_size` is.
            - `saturated`, `collapsed`: shares of positions as in `ess_kernels.aggregate`; `collapsed` is None for
              entropy, which knows no scale.
            - `positions`: how many positions are valid.
            - `unresolved`, `capture_error`, `check`, `dtype`, `length`, `seconds`: the layer's.
        """
        return list(table.position_rows(self) if per_position else table.rows(self))

    def to_pandas(self, per_position: bool = False) -> pandas.DataFrame:
        """The rows of `records` as a data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("pandas makes data frames and is not installed: pip install pandas") from error
        if per_position:
            return table.position_frame(self, pandas)
        rows = [{name: encodable(x) if isinstance(x, str) else x for name, x in row.items()} for row in self.records()]
        return pandas.DataFrame(rows)

    def average_ess(self, metric: str = "entropy", atol: float | None = None) -> float:
        """The paper's average ESS: the mean over valid positions, heads and batch, and then over layers.

        Args:
            metric: `"entropy"` or `"tolerance"`.
            atol: which tolerance; None for entropy, and where there is only one.

        Returns:
            NaN if there is bad data. See `ess_kernels.aggregate.average_ess`.

        Raises:
            ValueError: there is no layer, or the metric or the tolerance was not measured.
        """
        return self._mean_over_layers(metric, atol, per_layer=False)

    def total_ess(self, metric: str = "entropy", atol: float | None = None) -> float:
        """The paper's total ESS: the sum over heads, the mean over valid positions and batch, and then over layers.

        Args, returns and raises: as `average_ess`. Each head counts once; see `ess_kernels.aggregate.total_ess` for
        counting each channel.
        """
        return self._mean_over_layers(metric, atol, per_layer=True)

    def utilisation(
        self, metric: str = "entropy", atol: float | None = None, against: Literal["cap", "tss"] = "cap"
    ) -> dict[str, Tensor]:
        """State utilisation at every position: the ESS divided by the cap, or by the state size as the paper does.

        Args:
            metric, atol: as in `average_ess`.
            against: `"cap"`, or `"tss"`: then layers whose state grows with the position, as attention's, are left out.

        Returns:
            float64 `[B, H, P]` by layer; NaN for bad data, at positions that are not valid, and where the bound is 0.

        Raises:
            ValueError: as in `average_ess`, and another `against`.
        """
        if against not in ("cap", "tss"):
            raise ValueError(f"against: expected 'cap' or 'tss', got {against!r}")
        found = {}
        for name, layer in self.layers.items():
            bound = layer.cap[:, None] if against == "cap" else layer.state_size
            if bound is not None:
                numbers = table.pick(layer, metric, atol).numbers()
                found[name] = of_bound(numbers, bound, layer.valid[:, None])
        return found

    def summary(self) -> str:
        """A table to read, one line a layer: means, share of the cap, capture error and flags; then what was skipped,
        with the reasons, and the notes."""
        return summary(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file, whose suffix says which kind. An existing file is replaced once all is written.

        - `.json`: schema `ess_kernels/analysis/schema.json`; NaN becomes null.
        - `.parquet`: the rows of `records(per_position=True)`, and all else in the file's metadata. Needs pyarrow.
        - `.html`: a report to look at, in one file, which `load` does not read.

        Raises:
            ValueError: another suffix.
            ImportError: a package that is needed is not installed.
            OSError: the file cannot be written.
        """
        storage.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Analysis:
        """Read what `save` wrote, with equal tensors, from a `.json` or `.parquet` file.

        A number that was infinite comes back from both as NaN, except in Parquet's tensors.

        Raises:
            ValueError: another suffix, or a file that `save` did not write.
            ImportError: a package that is needed is not installed.
            OSError: the file cannot be read.
        """
        return storage.load(path)

    def plot(self, kind: str = "heatmap", ax: Any = None, **options: Any) -> Any:
        """Draw a picture with matplotlib; kinds and options are described at `ess_kernels.analysis.plots.draw`."""
        from ess_kernels.analysis.plots import draw

        try:
            return draw(self, kind, ax=ax, **options)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            message = "matplotlib draws pictures and is not installed: pip install 'ess-kernels[plot]'"
            raise ImportError(message) from error

    def __repr__(self) -> str:
        return f"<Analysis of {headline(self)}>"

    def _repr_html_(self) -> str:  # what notebooks show
        return f"<pre>{escape(self.summary())}</pre>"

    def _mean_over_layers(self, metric: str, atol: float | None, per_layer: bool) -> float:
        if not self.layers:
            raise ValueError("layers: expected at least one layer, got none")
        means = []
        for layer in self.layers.values():
            numbers = table.pick(layer, metric, atol).numbers()
            means.append(mean_where(numbers, layer.valid[:, None]) * (numbers.shape[1] if per_layer else 1))
        return float(torch.stack(means).mean())
