"""Correlations of two or three lists of numbers, and how sure one can be of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DRAWS = 2000


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """NaN if either does not vary."""
    x, y = x - x.mean(), y - y.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 1e-12 * len(x) else float("nan")


def ranks(x: np.ndarray) -> np.ndarray:
    """From 0; equal numbers share the mean of their ranks."""
    _, where, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[where]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    return pearson(ranks(x), ranks(y))


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Pearson of what is left of x and y after a straight line in `given` has been taken out of each."""
    if np.ptp(given) == 0:
        return float("nan")
    left = [a - np.polyval(np.polyfit(given, a, 1), given) for a in (x, y)]
    return pearson(left[0], left[1])


def interval(statistic: Callable[..., float], *data: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """A statistic of runs and its 95 % bootstrap interval: runs are drawn again with replacement, `DRAWS` times.

    Args:
        statistic: of the arrays of `data`.
        data: numbers, one a run in each array.

    Returns:
        The statistic of the runs, and the 2.5 % and 97.5 % quantiles over draws. Draws without a value are left out.
    """
    generator = np.random.default_rng(seed)
    size = len(data[0])
    with np.errstate(all="ignore"):
        drawn = np.array([statistic(*(x[pick] for x in data)) for pick in generator.integers(size, size=(DRAWS, size))])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return statistic(*data), float(low), float(high)


def shown(found: tuple[float, float, float]) -> str:
    """For a table: `+0.83 [+0.70, +0.91]`; a value whose draws are all the same has no interval."""
    if found[1] == found[2]:
        return f"{found[0]:+.2f} (no interval)"
    return "–" if np.isnan(found[0]) else f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"


def mean_interval(values: np.ndarray) -> str:
    """A mean with its bootstrap interval, for a table; a single value says that it is one."""
    values = np.asarray(values, dtype=float)
    if len(values) == 1:
        return f"{values[0]:.2f} (one run)"
    mean, low, high = interval(lambda x: float(x.mean()), values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
