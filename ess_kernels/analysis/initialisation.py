"""ESS of a mixer before training, against the state size that it pays for.

Source: section 5.1 of the paper (arXiv 2504.19561): a mixer whose ESS on Gaussian noise does not grow with its state
size does not learn to use a larger state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .._checks import integer
from ..aggregate import average_ess
from ..metrics import entropy_ess, tolerance_ess
from ..operators.structure import Operator


class ShowsOperator(Protocol):
    """A mixer that says how wide its input is and which operator it makes of one."""

    @property
    def width(self) -> int: ...

    def operator(self, x: Tensor) -> Operator: ...


@dataclass(frozen=True)
class Initialisation:
    """ESS at initialisation; means over heads and positions.

    Attributes:
        sizes: the state sizes asked for.
        seeds: the seeds.
        entropy: float64 `[sizes, seeds]`, entropy-ESS.
        counts: by tolerance, float64 `[sizes, seeds]`, tolerance-ESS.
    """

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    entropy: np.ndarray
    counts: dict[float, np.ndarray]


def initialisation(
    build: Callable[[int], ShowsOperator],
    sizes: Sequence[int],
    length: int,
    seeds: int | Sequence[int] = 3,
    *,
    positions: int = 31,
    atol: Sequence[float] = (1e-1, 1e-3, 1e-5),
) -> Initialisation:
    """ESS of freshly made mixers on Gaussian noise, for several state sizes.

    Args:
        build: from a state size to a mixer with random weights, such as
            `lambda size: ek.analysis.featurizers.GLA(128, 8, state=size)`. Its `width` says how wide its input is.
            It draws its weights from torch's global generator, which is seeded for each call and put back at the end.
        sizes: the state sizes.
        length: tokens of the noise, at least 2.
        seeds: a number n, which means 0 to n - 1, or the seeds themselves. A seed fixes weights and noise.
        positions: how many positions are measured, evenly spread, the ends left out; fewer in a short sequence.
        atol: tolerances of tolerance-ESS.

    Raises:
        ValueError: no size, no seed, or a number out of range.
    """
    length = integer("length", length, minimum=2)
    count = min(integer("positions", positions, minimum=1), length - 1)
    places = [round(length * (number + 1) / (count + 1)) for number in range(count)]
    chosen = tuple(range(integer("seeds", seeds, minimum=1)) if isinstance(seeds, int) else seeds)
    tried = tuple(integer("sizes", size, minimum=1) for size in sizes)
    if not chosen or not tried:
        raise ValueError(f"sizes and seeds: expected at least one of each, got {list(tried)} and {list(chosen)}")
    entropy = np.empty((len(tried), len(chosen)))
    counts = np.empty((len(atol), len(tried), len(chosen)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for i, size in enumerate(tried):
            for j, seed in enumerate(chosen):
                torch.manual_seed(seed)
                mixer = build(size)
                op = mixer.operator(torch.randn(1, length, mixer.width))
                entropy[i, j] = float(average_ess(entropy_ess(op, places)))
                found = tolerance_ess(op, atol=list(atol), positions=places)
                assert isinstance(found, Tensor)
                counts[:, i, j] = [float(average_ess(of_tau)) for of_tau in found]  # NaN where a head is bad
    return Initialisation(tried, chosen, entropy, dict(zip(map(float, atol), counts)))
