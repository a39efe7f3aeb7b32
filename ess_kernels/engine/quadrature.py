"""Sums of singular values from log-determinants.

With `x = sigma^2 / scale` in [0, 1], `sqrt(x)` and `sqrt(x) log sqrt(x)` are sums `sum_k w_k log(1 + x / t_k)` over a
few fixed nodes, to a small uniform error. Summed over the singular values of `H` these are log-determinants
`log det(I + H H^T / (t_k scale))`, so `N = sum sigma` and `E = sum sigma log sigma` (in units of `sqrt(scale)`), and
entropy-ESS `= exp(log N - E / N)` (paper, equation 3).

Nodes and weights come from `bench/quadrature_nodes.py`. No weight is so large that it would amplify the rounding errors
of a log-determinant, and the errors hold down to `x = 0`, however many values are there. A node may be smaller than the
rounding errors of squares: what these do to the sums is part of the bound, and where they leave no log-determinant at
the smallest node, a second set of weights does without it, or the neighbour's is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# the least error that squares are taken to have, because its logarithm is taken
LEAST_ROUNDING = 1e-300


class Estimate(NamedTuple):
    """What log-determinants tell of singular values; float64 tensors of one shape.

    Attributes:
        ess: entropy-ESS.
        bound: of its relative error, to first order in the errors of all singular values; infinite or NaN: no answer.
        total: the sum of the singular values, in units of the root of the scale.
    """

    ess: Tensor
    bound: Tensor
    total: Tensor


@dataclass(frozen=True)
class Quadrature:
    """Nodes, weights, and bounds of their errors.

    Attributes:
        table: rows `t`, weight of `sqrt(x)`, weight of `sqrt(x) log sqrt(x)`.
        errors: the largest error of either function, for values without haze.
        haze_errors: what is added for others, in units of the root of a value's haze; haze is how much more the step
            between the first two nodes sees of it than the step between the next two, from 0 to 1.
        without_smallest: the same nodes but the first, with weights of their own.
    """

    table: tuple[tuple[float, float, float], ...]
    errors: tuple[float, float]
    haze_errors: tuple[float, float] = (0.0, 0.0)
    without_smallest: Quadrature | None = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def slopes(self) -> tuple[float, float]:
        """Bounds of how fast either sum changes with `x`, anywhere."""
        first, second = (sum(abs(row[f]) / row[0] for row in self.table) for f in (1, 2))
        return first, second

    def nodes(self, device: torch.device) -> Tensor:
        return torch.tensor([row[0] for row in self.table], dtype=torch.float64, device=device)

    def estimate(self, logdets: Tensor, cap: Tensor, rounding: Tensor) -> Estimate:
        """From log-determinants at `nodes * scale`.

        Where there is none at the first node, two other ways are tried, and the better one taken.

        Args:
            logdets: `[..., K, P]`, `log det(I + H H^T / (t_k scale))` at positions one after the other; NaN where
                rounding left none, or none was wanted.
            cap: broadcastable to `[..., P]`, the largest possible number of non-zero singular values.
            rounding: likewise, how wrong squared singular values are by rounding, on an average over `cap` of them, in
                units of the scale.

        Returns:
            `[..., P]` each, `ess` within `[1, cap]`.
        """
        found = self.estimate_with_all_nodes(logdets, cap, rounding)
        if self.without_smallest is None or bool(found.bound.isfinite().all()):
            return found
        without = self.without_smallest.estimate_in_haze(logdets[..., 1:, :], cap, rounding)
        for other in (without, self.estimate_beside(logdets, cap, rounding)):
            better = other.bound < found.bound
            found = Estimate(*(torch.where(better, x, y) for x, y in zip(other, found, strict=True)))
        return found

    def estimate_with_all_nodes(
        self, logdets: Tensor, cap: Tensor, rounding: Tensor, more: tuple[Tensor, Tensor] | None = None
    ) -> Estimate:
        """The same in one way only: with this quadrature's own weights; `more` bounds other errors of both sums."""
        weights = torch.tensor([row[1:] for row in self.table], dtype=torch.float64, device=logdets.device)
        total, mixed = (weights.T @ logdets).unbind(-2)
        return self.estimate_from_sums(total, mixed, cap, rounding, more)

    def estimate_in_haze(self, logdets: Tensor, cap: Tensor, rounding: Tensor) -> Estimate:
        """With the errors of values that are hardly seen, each in proportion to the root of the value's haze.

        The sum of these roots is at most the root of `cap` times the haze of all values (Cauchy and Schwarz). Haze that
        rounding may have hidden is added.
        """
        first, second, third = logdets[..., :3, :].unbind(-2)
        steps = [math.log(self.table[k + 1][0] / self.table[k][0]) for k in (0, 1)]
        haze = (first - second) / steps[0] - (second - third) / steps[1]
        roots = (cap * (haze.clamp_min(0.0) + cap * rounding / (self.table[0][0] * steps[0]))).sqrt()
        return self.estimate_with_all_nodes(
            logdets, cap, rounding, (roots * self.haze_errors[0], roots * self.haze_errors[1])
        )

    def estimate_beside(self, logdets: Tensor, cap: Tensor, rounding: Tensor) -> Estimate:
        """With the log-determinant that the nearest position has at the first node.

        From one position to the next `H` loses a row and gains a column. Singular values interlace, so that either
        changes a log-determinant by no more than that of the largest of them alone, one in opposite direction to the
        other.
        """
        first, distance = _nearest(logdets[..., 0, :])
        node, *weights = self.table[0]
        unsure = distance * math.log1p(1 / node)
        logdets = torch.cat([first[..., None, :], logdets[..., 1:, :]], -2)
        return self.estimate_with_all_nodes(
            logdets, cap, rounding, (unsure * abs(weights[0]), unsure * abs(weights[1]))
        )

    def estimate_from_sums(
        self, total: Tensor, mixed: Tensor, cap: Tensor, rounding: Tensor, more: tuple[Tensor, Tensor] | None = None
    ) -> Estimate:
        """The same where only the sums over the nodes are known, `[..., P]` each; `more` bounds other errors."""
        unseen = ~(total > 0)
        N = torch.where(unseen, 1.0, total)
        ratio = mixed / N
        ess = torch.exp(N.log() - ratio)
        steep = (1 + ratio).abs()
        errors = cap * (self.errors[0] * steep + self.errors[1])
        if more is not None:
            errors = errors + more[0] * steep + more[1]
        # a square that is wrong by r moves the sums by at most r times their slopes, and its root by at most the root
        # of r; with all errors alike, and by concavity of both functions no others are worse
        rounding = rounding.clamp_min(LEAST_ROUNDING)
        slowly = rounding * (self.slopes[0] * steep + self.slopes[1])
        at_once = rounding.sqrt() * torch.maximum(ratio.abs(), 1 + ratio - rounding.log() / 2)
        bound = (errors + cap * torch.minimum(slowly, at_once)) / N
        return Estimate(
            torch.minimum(ess.clamp_min(1.0), cap),
            torch.where(unseen, torch.inf, bound),
            torch.where(unseen, 0.0, total),
        )


def _nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of every entry of `[..., P]` the nearest one that is finite, and how far it is away, float64; else infinity."""
    P = x.shape[-1]
    place = torch.arange(P, device=x.device).expand(x.shape)
    known = x.isfinite()
    left = torch.where(known, place, -P).cummax(-1).values
    right = torch.where(known, place, 2 * P).flip(-1).cummin(-1).values.flip(-1)
    place = torch.where(place - left <= right - place, left, right)
    there = (place >= 0) & (place < P)
    distance = (place - torch.arange(P, device=x.device)).abs().to(x.dtype)
    return x.gather(-1, place.clamp(0, P - 1)), torch.where(there, distance, torch.inf)


# the fewest nodes: entropies are first computed with these
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
    errors=(2.4e-7, 3.2e-7),
)

# without the first node of FINE
WITHOUT_SMALLEST = Quadrature(
    table=(
        (3.414440105212e-15, 7.687453861286e-08, -1.573988692913e-06),
        (1.413518952146e-13, 9.485647518767e-08, 3.581029140918e-08),
        (2.757089294885e-12, 8.621410380424e-07, -1.250555842609e-05),
        (3.494629093166e-11, 2.099303170832e-06, -2.165510073383e-05),
        (3.299719126706e-10, 6.261139319558e-06, -6.308933017698e-05),
        (2.541520776044e-09, 1.567820393737e-05, -1.387106102125e-04),
        (1.684419180507e-08, 3.773322166963e-05, -3.007097286244e-04),
        (9.875581241085e-08, 8.569085913874e-05, -6.045346227997e-04),
        (5.201454066803e-07, 1.852954253535e-04, -1.156300355556e-03),
        (2.519430955483e-06, 3.900175604313e-04, -2.122850838557e-03),
        (1.143941665194e-05, 7.986656546929e-04, -3.745961660226e-03),
        (4.906521210433e-05, 1.592727323833e-03, -6.308769042432e-03),
        (1.994509515613e-04, 3.095290984175e-03, -1.009007609763e-02),
        (7.718981580425e-04, 5.881910285244e-03, -1.519652073410e-02),
        (2.858271687112e-03, 1.096894906413e-02, -2.115323832377e-02),
        (1.019191583028e-02, 2.016859170634e-02, -2.608605624999e-02),
        (3.537632639798e-02, 3.704470781078e-02, -2.483749008340e-02),
        (1.225025160497e-01, 6.995161108081e-02, -3.529333539506e-03),
        (4.510736435787e-01, 1.477278943014e-01, 8.920146097468e-02),
        (2.209957864110e00, 4.550434560152e-01, 6.298253669728e-01),
        (3.949176100085e01, 4.670639547013e00, 1.441977218676e01),
    ),
    errors=(7.9e-9, 1.6e-8),
    haze_errors=(7.9e-8, 1.6e-6),
)

# errors a thirtieth of those of STANDARD, for positions that stay doubtful
FINE = Quadrature(
    table=(
        (1.169398017360e-17, 4.227454384308e-09, -7.880821402385e-08),
        (3.414440105212e-15, 4.039138478223e-08, -6.310400410071e-07),
        (1.413518952146e-13, 1.951255367435e-07, -2.693302771814e-06),
        (2.757089294885e-12, 7.206075887868e-07, -8.866344797384e-06),
        (3.494629093166e-11, 2.233055209051e-06, -2.465569764331e-05),
        (3.299719126706e-10, 6.164090962813e-06, -6.111146838052e-05),
        (2.541520776044e-09, 1.572242935175e-05, -1.398799914082e-04),
        (1.684419180507e-08, 3.774952524006e-05, -3.000435844792e-04),
        (9.875581241085e-08, 8.560938432054e-05, -6.049499538403e-04),
        (5.201454066803e-07, 1.854445539904e-04, -1.156012245223e-03),
        (2.519430955483e-06, 3.898108421938e-04, -2.123061811840e-03),
        (1.143941665194e-05, 7.988981363751e-04, -3.745803308300e-03),
        (4.906521210433e-05, 1.592514891838e-03, -6.308891257187e-03),
        (1.994509515613e-04, 3.095433645923e-03, -1.008998307728e-02),
        (7.718981580425e-04, 5.881903937735e-03, -1.519657266705e-02),
        (2.858271687112e-03, 1.096870718509e-02, -2.115324935324e-02),
        (1.019191583028e-02, 2.016929205626e-02, -2.608597730103e-02),
        (3.537632639798e-02, 3.704313009171e-02, -2.483762508577e-02),
        (1.225025160497e-01, 6.995514300639e-02, -3.529120200087e-03),
        (4.510736435787e-01, 1.477185834540e-01, 8.920100526875e-02),
        (2.209957864110e00, 4.550787020941e-01, 6.298268986981e-01),
        (3.949176100085e01, 4.670364193176e00, 1.441976086370e01),
    ),
    errors=(9.2e-9, 1.65e-8),
    without_smallest=WITHOUT_SMALLEST,
)
