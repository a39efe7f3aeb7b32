"""Sums of singular values from log-determinants.

With `x = sigma^2 / scale` in [0, 1], `sqrt(x)` and `sqrt(x) log sqrt(x)` are sums `sum_k w_k log(1 + x / t_k)` over a
few fixed nodes, to a small uniform error. Summed over the singular values of `H` these are log-determinants
`log det(I + H H^T / (t_k scale))`, so `N = sum sigma` and `E = sum sigma log sigma` (in units of `sqrt(scale)`), and
entropy-ESS `= exp(log N - E / N)` (paper, equation 3).

Nodes and weights come from `bench/quadrature_nodes.py`. No node is so small that rounding errors of the squares, about
`eps * scale`, would be amplified beyond the error of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class LogdetSums(NamedTuple):
    """Log-determinants summed over the nodes of a quadrature.

    Attributes:
        total: with the weights of `sqrt(x)`.
        mixed: with those of `sqrt(x) log sqrt(x)`.
        tail: the first tail node's less the second's.
    """

    total: Tensor
    mixed: Tensor
    tail: Tensor


@dataclass(frozen=True)
class Quadrature:
    """Nodes, weights, and what they are worth.

    Attributes:
        table: rows `t`, weight of `sqrt(x)`, weight of `sqrt(x) log sqrt(x)`.
        error: the largest error of both functions where a value is visible.
        tail_error: what an invisible value adds to that.
        tail: two nodes; a value's visibility is `log((1 + x / t_a) / (1 + x / t_b)) / log(t_b / t_a)`, from 0 to 1.
    """

    table: tuple[tuple[float, float, float], ...]
    error: float
    tail_error: float
    tail: tuple[int, int]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def tail_span(self) -> float:
        a, b = self.tail
        return math.log(self.table[b][0] / self.table[a][0])

    def nodes(self, device: torch.device) -> Tensor:
        return torch.tensor([row[0] for row in self.table], dtype=torch.float64, device=device)

    def entropy_of(self, logdets: Tensor, cap: Tensor, rounding: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Entropy-ESS and a bound of its relative error from log-determinants at `nodes * scale`.

        Args:
            logdets: `[..., K, P]`, `log det(I + H H^T / (t_k scale))` per position.
            cap: broadcastable to `[..., P]`, the largest possible number of non-zero singular values.
            rounding: likewise, how wrong squared singular values may be by rounding, in units of the scale.

        Returns:
            `ess` `[..., P]` within `[1, cap]`, and `bound` `[..., P]`, the first-order effect of the errors of all
            singular values on it: infinite where the log-determinants see nothing.
        """
        weights = torch.tensor([row[1:] for row in self.table], dtype=torch.float64, device=logdets.device)
        total, mixed = (weights.T @ logdets).unbind(-2)
        a, b = self.tail
        return self.entropy_of_sums(LogdetSums(total, mixed, logdets[..., a, :] - logdets[..., b, :]), cap, rounding)

    def entropy_of_sums(self, sums: LogdetSums, cap: Tensor, rounding: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """The same where only the sums over the nodes are known, `[..., P]` each."""
        unseen = ~(sums.total > 0)
        total = torch.where(unseen, 1.0, sums.total)
        ratio = sums.mixed / total
        ess = torch.exp(total.log() - ratio)
        visible = sums.tail / self.tail_span
        # a square that is wrong by x moves its root by at most the root of x
        errors = (self.error + rounding**0.5) * cap + self.tail_error * (cap - visible).clamp_min(0.0)
        bound = errors / total * (1 + (1 + ratio).abs())
        return torch.minimum(ess.clamp_min(1.0), cap), torch.where(unseen, torch.inf, bound)


# fewest nodes, every value to 3.2e-7
STANDARD = Quadrature(
    table=(
        (4.898519147901e-15, 8.648970262625e-08, -1.355900537711e-06),
        (1.562632750195e-12, 8.955010617275e-07, -1.122490494607e-05),
        (7.459373056595e-11, 4.636142901729e-06, -4.952779566129e-05),
        (1.586260779402e-09, 1.769226167495e-05, -1.612865977184e-04),
        (2.123054450781e-08, 5.627208379019e-05, -4.414414580367e-04),
        (2.132892205440e-07, 1.618384912983e-04, -1.079852049136e-03),
        (1.759867113400e-06, 4.276626893334e-04, -2.408105202020e-03),
        (1.243586498462e-05, 1.060546718840e-03, -4.924445728918e-03),
        (7.744844280106e-05, 2.482577237279e-03, -9.274887681449e-03),
        (4.351770064457e-04, 5.588977304780e-03, -1.602694945401e-02),
        (2.252642464464e-03, 1.213890871023e-02, -2.488093398344e-02),
        (1.090118612335e-02, 2.575346994007e-02, -3.238895325760e-02),
        (5.022814476468e-02, 5.384284781703e-02, -2.681039050323e-02),
        (2.288491263781e-01, 1.181389455183e-01, 3.161578772752e-02),
        (1.266235241952e00, 3.565885865378e-01, 3.911244728408e-01),
        (2.236259106625e01, 3.454582153846e00, 9.776270196027e00),
    ),
    error=3.2e-7,
    tail_error=0.0,
    tail=(0, 1),
)

# values above 1e-6 sqrt(scale) to 5.1e-9, those below to 4e-7
FINE = Quadrature(
    table=(
        (7.724217823996e-15, 1.036817972685e-07, -1.589665374066e-06),
        (1.013395514802e-12, 5.181512972309e-07, -6.627799842286e-06),
        (1.429248687969e-11, 1.386038130681e-06, -1.591919379424e-05),
        (1.229600789639e-10, 3.588873208168e-06, -3.736012630193e-05),
        (8.631056538815e-10, 8.758019912507e-06, -8.263250338973e-05),
        (5.276774537178e-09, 2.026576571438e-05, -1.728678542259e-04),
        (2.897369108382e-08, 4.487070939107e-05, -3.445358224413e-04),
        (1.455972741393e-07, 9.562203130543e-05, -6.570401505933e-04),
        (6.777076453327e-07, 1.968565837216e-04, -1.201272035086e-03),
        (2.945409047285e-06, 3.925173922015e-04, -2.106889692034e-03),
        (1.202084243295e-05, 7.595396070983e-04, -3.542821364176e-03),
        (4.626443966060e-05, 1.428439057057e-03, -5.700285600871e-03),
        (1.684427341932e-04, 2.613638781933e-03, -8.741200444392e-03),
        (5.816046355985e-04, 4.657748768549e-03, -1.269171872763e-02),
        (1.909758132448e-03, 8.103646567416e-03, -1.726390750897e-02),
        (5.990848822122e-03, 1.382914480703e-02, -2.155637182938e-02),
        (1.808960873395e-02, 2.332600392736e-02, -2.347072231431e-02),
        (5.331508117506e-02, 3.959034265399e-02, -1.844016226248e-02),
        (1.590601635505e-01, 7.155134910762e-02, 5.777678623071e-03),
        (6.892190016493e-01, 1.113209838115e00, 9.079615209605e-01),
        (8.874925745079e-01, -7.318181454157e00, -6.902711475730e00),
        (9.330775517639e-01, 6.573132874194e00, 6.365646852085e00),
        (9.588026871467e00, 1.299230117377e00, 2.755265926278e00),
        (4.243383183141e08, 1.733398566315e07, 7.462765144625e07),
    ),
    error=5.1e-9,
    tail_error=3.9e-7,
    tail=(0, 2),
)
