"""State modulation: how far ESS falls at a delimiter, such as a period or an end token between two subjects.

Source: section 5.3 of the paper (arXiv 2504.19561), which joins unrelated sentences by different separators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .alignment import windows_inside
from .result import Analysis, LayerResult
from .values import choose_layers, choose_metric, mean, values_of

# blanks, and the letters by which vocabularies write the blank before a word
BLANKS = " \t\n\r\v\f\u0120\u2581"


@dataclass(frozen=True)
class Dips:
    """ESS around delimiters, by separator.

    Attributes:
        metric: `"entropy"` or a tolerance.
        of_cap: whether ESS was divided by its cap first.
        offsets: int64 `[W]`, positions counted from the mark: `-window .. window`.
        count: by separator, how many delimiters were found and have their whole window inside of their sequence.
        depth: by separator and layer, the depth of the dip, as `delimiter_dips` defines it; NaN where it is not known.
        aligned: by separator and layer, float64 `[W]`, the mean ESS at each offset over heads and delimiters.
    """

    metric: str | float
    of_cap: bool
    offsets: np.ndarray
    count: Mapping[str, int]
    depth: Mapping[str, Mapping[str, float]]
    aligned: Mapping[str, Mapping[str, np.ndarray]]


def find_delimiters(tokens: Sequence[str], delimiter: str) -> list[int]:
    """The marks of a delimiter: positions i whose `H_i` has the delimiter's last token as its last input.

    A delimiter is one token or several in a row. Blanks around it are not compared, unless the delimiter is blank, such
    as a line break.

    Args:
        tokens: the texts of the tokens of one row.
        delimiter: the text to find.

    Returns:
        For each place where it is found, the number of tokens up to its end.

    Raises:
        ValueError: `delimiter` is empty.
    """
    if not delimiter:
        raise ValueError("delimiter: expected a text, got an empty one")
    blanks = BLANKS if delimiter.strip(BLANKS) else ""
    wanted = delimiter.strip(BLANKS) or delimiter
    found = []
    for first in range(len(tokens)):
        text = ""
        if not tokens[first].strip(blanks or None) and blanks:
            continue
        for last in range(first, len(tokens)):
            text += tokens[last]
            bare = text.strip(blanks) if blanks else text
            if bare == wanted:
                found.append(last + 1)
            if len(bare) >= len(wanted):
                break
    return found


def marks_of(
    analysis: Analysis, *, delimiter: str | None = None, marks: Sequence[int] | None = None
) -> list[list[int]]:
    """The marks of every row: those given, the same in all rows, or those of a delimiter in `analysis.tokens`.

    Raises:
        ValueError: both or neither are given, or the analysis has no tokens to look for a delimiter in.
    """
    if (delimiter is None) == (marks is None):
        raise ValueError(f"delimiter: expected either delimiter or marks, got {delimiter!r} and {marks!r}")
    if marks is not None:
        rows = max((layer.cap.shape[0] for layer in analysis.layers.values()), default=0)
        return [[int(mark) for mark in marks]] * rows
    if analysis.tokens is None:
        raise ValueError("delimiter: expected an analysis with tokens to find it in; give tokens= to analyze, or marks")
    assert delimiter is not None
    return [find_delimiters(row, delimiter) for row in analysis.tokens]


def delimiter_dips(
    analyses: Analysis | Mapping[str, Analysis],
    delimiter: str | None = None,
    *,
    marks: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    metric: str | float | None = None,
    layers: Sequence[str] | str | None = None,
    window: int = 8,
    after: int = 1,
    of_cap: bool = False,
) -> Dips:
    """How far ESS falls at delimiters, layer by layer.

    The mark m of a delimiter is the position whose `H_m` has the delimiter's last token as its last input. With `E_i`
    the mean over heads of the ESS at position i of that row,

        before = mean of E_i over m - window <= i < m
        at     = mean of E_i over m <= i < m + after
        depth  = (before - at) / before

    and the depth of a layer is the mean over all delimiters of all rows: 0 is no dip, 1 a state that is emptied,
    a negative depth a rise. Bad data and positions that were not measured are left out of each mean. Left out is also
    a delimiter whose window `m - window .. m + window` is not all inside of its sequence, so that every offset is a
    mean over the same delimiters.

    Near the ends of a text the cap alone makes ESS rise and fall (everywhere, for attention). `of_cap=True` divides
    each `E_i` by its cap first.

    Args:
        analyses: one analysis; or analyses by separator, of the same sentences joined by each of them.
        delimiter: the text to find in the tokens of one analysis. Of analyses by separator, each separator is its own.
        marks: the marks themselves, the same in each row, or by separator. Not together with `delimiter`.
        metric: `"entropy"` or a tolerance; None: the first one measured.
        layers: names; None: all.
        window: how many positions on either side.
        after: how many positions from the mark on are the dip, 1 to `window`.
        of_cap: see above.

    Raises:
        ValueError: an argument is out of range, or a delimiter is found nowhere.
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window: expected a positive integer, got {window!r}")
    if isinstance(after, bool) or not isinstance(after, int) or not 1 <= after <= window:
        raise ValueError(f"after: expected an integer from 1 to window={window}, got {after!r}")
    if isinstance(analyses, Analysis):
        name = "marks" if delimiter is None else delimiter
        found = {name: (analyses, marks_of(analyses, delimiter=delimiter, marks=_plain(marks)))}
    else:
        found = {name: (each, _marks_by_name(each, name, delimiter, marks)) for name, each in analyses.items()}
    if not found:
        raise ValueError("analyses: expected at least one analysis, got none")
    offsets = np.arange(-window, window + 1)
    chosen = choose_metric(next(iter(found.values()))[0], metric)
    count: dict[str, int] = {}
    depth: dict[str, dict[str, float]] = {}
    aligned: dict[str, dict[str, np.ndarray]] = {}
    for name, (analysis, rows) in found.items():
        if not any(rows):
            raise ValueError(f"delimiter: expected a text that is among the tokens, got {name!r}")
        choose_metric(analysis, chosen)
        depth[name], aligned[name] = {}, {}
        for layer in choose_layers(analysis, layers):
            around = _around(layer, rows, chosen, offsets, of_cap)
            count.setdefault(name, len(around))
            before, at = mean(around[:, :window], 1), mean(around[:, window : window + after], 1)
            with np.errstate(divide="ignore", invalid="ignore"):
                depths = (before - at) / before
            depth[name][layer.name] = float(mean(np.where(np.isfinite(depths), depths, np.nan)))
            aligned[name][layer.name] = mean(around, 0)
    return Dips(chosen, of_cap, offsets, count, depth, aligned)


def _plain(marks: Sequence[int] | Mapping[str, Sequence[int]] | None) -> Sequence[int] | None:
    if isinstance(marks, Mapping):
        raise ValueError("marks: expected positions beside one analysis, got a mapping")
    return marks


def _marks_by_name(
    analysis: Analysis,
    name: str,
    delimiter: str | None,
    marks: Sequence[int] | Mapping[str, Sequence[int]] | None,
) -> list[list[int]]:
    if delimiter is not None:
        raise ValueError(f"delimiter: expected None beside analyses by separator, got {delimiter!r}")
    if marks is None:
        return marks_of(analysis, delimiter=name)
    if isinstance(marks, Mapping) and name not in marks:
        raise ValueError(f"marks: expected marks for each separator, got none for {name!r}")
    return marks_of(analysis, marks=marks[name] if isinstance(marks, Mapping) else marks)


def _around(
    layer: LayerResult, rows: list[list[int]], metric: str | float, offsets: np.ndarray, of_cap: bool
) -> np.ndarray:
    """float64 `[delimiters, W]`: the ESS around each delimiter, mean over heads, NaN where nothing was measured.

    Only of delimiters whose window is all inside of their sequence.
    """
    curves = mean(values_of(layer, metric, of_cap=of_cap), 1)
    positions = layer.positions.numpy()
    at_position = np.full((curves.shape[0], layer.length + 1), np.nan)
    at_position[:, positions] = curves
    outside = np.zeros((curves.shape[0], layer.length + 1), dtype=bool)
    outside[:, positions] = ~layer.valid.numpy()
    return windows_inside(at_position, outside, rows, offsets)
