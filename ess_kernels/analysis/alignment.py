"""Curves cut out around events, so that they can be averaged offset by offset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def windows_inside(
    curves: np.ndarray, outside: np.ndarray, events: Sequence[Sequence[int]], offsets: np.ndarray
) -> np.ndarray:
    """What each curve is around its events, of those events whose whole window is inside of a sequence.

    Args:
        curves: float64 `[rows, L + 1]`, a number for each position, NaN where there is none.
        outside: bool `[rows, L + 1]`: positions that are in no sequence.
        events: positions, for each row.
        offsets: int64 `[W]`, rising, from the event.

    Returns:
        float64 `[events kept, W]`, row by row.
    """
    length = curves.shape[1] - 1
    found = [np.empty((0, len(offsets)))]
    for row, marks in enumerate(events[: len(curves)]):
        where = np.asarray(marks, dtype=np.int64)[:, None] + offsets
        whole = (where[:, 0] > 0) & (where[:, -1] < length)
        where = where[whole]
        found.append(curves[row, where[~outside[row, where].any(1)]])
    return np.concatenate(found)
