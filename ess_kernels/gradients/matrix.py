"""Functions of the singular values of `H_i` of any operator, from `T` itself.

A few positions are decomposed one by one. Many positions of one head have log-determinants in common (`logdets`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.certainty import EPS
from ..engine.scaling import largest, power_of_two
from .functions import SpectralFunction
from .logdets import matrix_logdets
from .spectral import SpectralValues

# log-determinants of a head at all positions and one shift cost as much as so many decompositions of the largest H_i
DECOMPOSITIONS = 6.0


def matrix_values(T: Tensor, positions: Sequence[int], function: SpectralFunction) -> Tensor:
    """The functions `[N, M, P]` of `T` `[N, L, L]`, of which what lies on and above the diagonal is ignored.

    NaN in heads that have an infinite entry or one that is no number.
    """
    finite = _finite(T)
    if not bool(finite.all()):
        values = T.new_full((len(T), function.number, len(positions)), torch.nan)
        good = finite.nonzero()[:, 0]
        return values.index_copy(0, good, matrix_values(T[good], positions, function)) if len(good) else values
    T, unit = power_of_two(T, largest(T.detach().tril(-1)))
    if not few(T.shape[-1], positions, function):
        return torch.stack([_by_logdets(*head, positions, function) for head in zip(T, unit)])
    return torch.stack([SpectralValues.apply(T[:, i:, :i], unit, function)[0] for i in positions], -1)


def few(length: int, positions: Sequence[int], function: SpectralFunction) -> bool:
    """Whether decompositions cost less than log-determinants."""
    i = torch.tensor(positions, dtype=torch.float64, device="cpu")
    short, long = torch.minimum(i, length - i), torch.maximum(i, length - i)
    work = float((short.square() * long).sum()) * 8 / length**3
    return work <= DECOMPOSITIONS * len(function.quadrature) * function.number


@torch.no_grad()
def _finite(T: Tensor) -> Tensor:
    return largest(T.tril(-1)).isfinite()


def _by_logdets(T: Tensor, unit: Tensor, positions: Sequence[int], function: SpectralFunction) -> Tensor:
    """`[M, P]` of one head."""
    length = T.shape[-1]
    cap = torch.tensor([min(i, length - i) for i in positions], dtype=torch.float64, device=T.device)
    T = T.tril(-1)
    with torch.no_grad():
        # the scale, a constant for the gradient, is a little above the largest squared singular value
        square = torch.linalg.matrix_norm(T, 2).square() * 1.05
        square = torch.where(square > 0, square, 1.0)
    nodes = function.quadrature.nodes(T.device)
    rows = []
    for scale in function.scales(square, unit):
        logdets = matrix_logdets(T, nodes * scale)[:, positions]
        rounding = (EPS * square / scale).expand_as(cap)
        found = function.quadrature.estimate(logdets, cap, rounding)
        doubtful = ~function.is_certain(found, cap)
        rows.append((logdets, rounding, scale, doubtful))
    doubtful = torch.stack([row[-1] for row in rows]).any(0)
    values = [
        function.from_logdets(
            # no gradient may pass through log-determinants that are not used: zero times infinity is not zero
            function.quadrature.estimate(torch.where(doubtful, 0.0, logdets), cap, rounding),
            scale,
            unit,
        )
        for logdets, rounding, scale, _ in rows
    ]
    exact = [
        SpectralValues.apply(T[None, i:, :i], unit[None], function)[0][0] if bad else x
        for i, bad, x in zip(positions, doubtful.tolist(), torch.stack(values, -1), strict=True)
    ]
    return torch.stack(exact, -1)
