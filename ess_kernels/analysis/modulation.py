"""State modulation: what ESS does around events, such as line ends, beside what it does around random positions.

Source: section 5.3 of the paper (arXiv 2504.19561). `delimiter_dips` compares ESS at a delimiter with that before it;
this compares it with the neighbourhood on both sides, for any events, and says whether chance could do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._checks import integer
from .alignment import windows_inside


@dataclass(frozen=True)
class Modulation:
    """ESS around events, relative to the mean over the neighbourhood of each event.

    Attributes:
        offsets: int64 `[2 reach + 1]`, positions counted from the event: `-reach .. reach`.
        events: how many events had a whole neighbourhood and were averaged.
        aligned: float64 `[2 reach + 1]`: the mean over events of ESS divided by its local mean, minus 1. -0.1 means
            that ESS is 10 % below its local mean at this offset.
        depth: how far the lowest offset is below the local mean, `-min(aligned)`.
        lowest: the offset where that is.
        z: float64 `[2 reach + 1]`: `aligned`, minus its mean around random positions, divided by its standard deviation
            there. It is about the offset that it stands at; whoever looks for the largest of them has looked
            `2 reach + 1` times.
        depth_z: the same for `depth`, where random positions have chosen their lowest offset as well. Positive: deeper
            than chance.
    """

    offsets: np.ndarray
    events: int
    aligned: np.ndarray
    depth: float
    lowest: int
    z: np.ndarray
    depth_z: float


def modulation(
    ess: Any,
    events: Sequence[int] | Sequence[Sequence[int]],
    reach: int = 6,
    *,
    draws: int = 200,
    seed: int = 0,
) -> Modulation:
    """What ESS does around events, on average, and beside as many random positions.

    The neighbourhood of an event is `2 reach` positions on either side: ESS is divided by its mean there, so that slow
    changes along a sequence cancel. An event whose neighbourhood is not all inside of the sequence is left out, and so
    is one with bad data or a local mean of 0.

    Args:
        ess: entropy-ESS or tolerance-ESS at all positions 1 to L - 1: `[P]`, rows `[B, P]`, or `[B, H, P]`, which is
            summed over the heads, the paper's total ESS. A tensor or an array; NaN and -1 are bad data.
        events: positions i, whose `H_i` has token i as its first output: the same for all rows, or a list for each row.
        reach: how many positions on either side are shown, at least 1.
        draws: how often random positions are drawn, at least 2. Each draw has as many of them in each row as there are
            events.
        seed: of the random positions.

    Raises:
        TypeError: arguments that are no numbers.
        ValueError: other shapes, events that are no positions or are too few for one to have a whole neighbourhood.
    """
    reach, draws = integer("reach", reach, minimum=1), integer("draws", draws, minimum=2)
    curves = _curves(ess)
    rows = _events_by_row(events, *curves.shape)
    outside = np.zeros(curves.shape, dtype=bool)
    wide, shown = np.arange(-2 * reach, 2 * reach + 1), slice(reach, -reach)
    everywhere = [range(1, curves.shape[1] - 1)]
    around, chances = [], []
    generator = np.random.default_rng(seed)
    for row, marks in enumerate(rows):
        part = slice(row, row + 1)
        kept = _relative(windows_inside(curves[part], outside[part], [marks], wide))[:, shown]
        if not len(kept):
            continue
        anywhere = _relative(windows_inside(curves[part], outside[part], everywhere, wide))[:, shown]
        around.append(kept)
        chances.append(anywhere[generator.integers(len(anywhere), size=(draws, len(kept)))])
    if not around:
        raise ValueError(f"events: expected at least one with {2 * reach} measured positions on either side, got none")
    aligned = np.concatenate(around).mean(0)
    chance = np.concatenate(chances, 1).mean(1)  # [draws, 2 reach + 1]
    with np.errstate(divide="ignore", invalid="ignore"):  # a flat curve has no spread: NaN
        z = (aligned - chance.mean(0)) / chance.std(0, ddof=1)
        depth_z = (-aligned.min() + chance.min(1).mean()) / chance.min(1).std(ddof=1)
    lowest = int(aligned.argmin())
    count = sum(len(kept) for kept in around)
    return Modulation(wide[shown], count, aligned, float(-aligned[lowest]), lowest - reach, z, float(depth_z))


def _curves(ess: Any) -> np.ndarray:
    """float64 `[B, L + 1]` by position, NaN where there is nothing."""
    found = ess.detach().cpu().double().numpy() if isinstance(ess, torch.Tensor) else np.asarray(ess, dtype=np.float64)
    if found.ndim not in (1, 2, 3) or not found.shape[-1]:
        raise ValueError(f"ess: expected shape [P], [B, P] or [B, H, P], got {list(found.shape)}")
    found = np.where(found < 0, np.nan, found)
    if found.ndim == 3:
        found = found.sum(1)
    found = np.atleast_2d(found)
    return np.pad(found, ((0, 0), (1, 1)), constant_values=np.nan)


def _events_by_row(events: Any, rows: int, width: int) -> list[list[int]]:
    """The events of every row."""
    listed = list(events)
    nested = bool(listed) and all(isinstance(each, (list, tuple, range, np.ndarray, torch.Tensor)) for each in listed)
    nested = nested and not all(np.ndim(each) == 0 for each in listed)
    if nested and len(listed) != rows:
        raise ValueError(f"events: expected a list for each of the {rows} rows of ess, got {len(listed)}")
    found = [[integer("events", i, minimum=1) for i in each] for each in (listed if nested else [listed] * rows)]
    length = width - 1
    for i in (i for each in found for i in each):
        if i >= length:
            raise ValueError(f"events: expected positions in 1..{length - 1}, got {i}")
    return found


def _relative(windows: np.ndarray) -> np.ndarray:
    """Windows divided by their mean, minus 1; without those that have gaps or a mean of 0."""
    mean = windows.mean(1, keepdims=True)
    usable = np.isfinite(mean[:, 0]) & (mean[:, 0] > 0)
    return windows[usable] / mean[usable] - 1
