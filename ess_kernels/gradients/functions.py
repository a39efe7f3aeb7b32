"""Symmetric functions of singular values, with their first and second derivatives.

Every method takes the values `s` `[..., N, r]` of scaled operators, descending, and the units `[N]` that were taken out
of their heads: the singular values of head n are `s[n] * unit[n]`. Derivatives are those with respect to `s`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.certainty import ENTROPY_BOUND
from ..engine.extent import FAR
from ..engine.quadrature import STANDARD, Estimate, Quadrature
from ..engine.soft_quadrature import SOFT, soft_count_is_certain

# values below this share of the largest one count as zero
FLOOR = 1e-10


class SpectralFunction(ABC):
    """`M` functions of the same singular values.

    Attributes:
        number: M.
        smooth_at_zero: whether second derivatives exist where a singular value is zero.
        quadrature: how the functions follow from log-determinants.
    """

    number: int = 1
    smooth_at_zero: bool = False
    quadrature: Quadrature = STANDARD

    @abstractmethod
    def values(self, s: Tensor, unit: Tensor) -> Tensor:
        """`[..., N, M]`."""

    @abstractmethod
    def slopes(self, s: Tensor, unit: Tensor) -> Tensor:
        """First derivatives `[..., N, M, r]`."""

    @abstractmethod
    def curvatures(self, s: Tensor, unit: Tensor) -> Tensor:
        """Second derivatives `[..., N, M, r, r]`."""

    def scales(self, largest: Tensor, unit: Tensor) -> Tensor:
        """The `M` scales of one head's log-determinants, from the square of its largest singular value."""
        return largest[None]

    def is_certain(self, found: Estimate, cap: Tensor) -> Tensor:
        """Where what log-determinants tell is certain enough, bool: elsewhere singular values are needed."""
        return found.bound <= ENTROPY_BOUND

    def depends_on_tiny(self, found: Tensor, unit: Tensor) -> Tensor:
        """Where singular values that a head's unit has made zero would matter, bool `[N, M, P]`.

        `found` `[N, M, P]` are the functions themselves. False where the caller knows by other means.
        """
        return torch.zeros_like(found, dtype=torch.bool)

    @abstractmethod
    def from_logdets(self, found: Estimate, scale: Tensor, unit: Tensor) -> Tensor:
        """The function of one head from what log-determinants at the nodes times `scale` tell, `[P]`."""


def alive(s: Tensor) -> Tensor:
    """Which of the values do not count as zero, bool."""
    return (s > FLOOR * s[..., :1]) & (s > 0)


class Entropy(SpectralFunction):
    """Entropy-ESS: `E = exp(-sum p log p)` with `p = s / sum s`; 0 where all values are zero (paper, equation 3)."""

    def values(self, s: Tensor, unit: Tensor) -> Tensor:
        value = self._parts(s)[0]
        return torch.where(value > 0, value.clamp_min(1.0), value)

    def slopes(self, s: Tensor, unit: Tensor) -> Tensor:
        value, total, beyond = self._parts(s)
        return torch.where(alive(s), value / total * beyond, 0.0)[..., None, :]

    def curvatures(self, s: Tensor, unit: Tensor) -> Tensor:
        value, total, beyond = self._parts(s)
        own = torch.where(alive(s), value / (total * s), 0.0)
        steep = torch.where(alive(s), 1 - beyond, 0.0)
        both = (value / total.square())[..., None] * steep[..., :, None] * steep[..., None, :]
        return (both - torch.diag_embed(own))[..., None, :, :]

    def from_logdets(self, found: Estimate, scale: Tensor, unit: Tensor) -> Tensor:
        return found.ess

    def _parts(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`E` `[..., 1]`, the sum of the values (1 where there is none), and `mean log s - log s` `[..., r]`."""
        kept = torch.where(alive(s), s, 0.0)
        logs = torch.where(alive(s), s, 1.0).log()
        total = kept.sum(-1, keepdim=True)
        some = total > 0
        total = torch.where(some, total, 1.0)
        mean = (kept * logs).sum(-1, keepdim=True) / total
        return torch.where(some, (total.log() - mean).exp(), 0.0), total, mean - logs


class NuclearNorm(SpectralFunction):
    """The sum of the singular values."""

    def values(self, s: Tensor, unit: Tensor) -> Tensor:
        return s.sum(-1, keepdim=True) * unit[:, None]

    def slopes(self, s: Tensor, unit: Tensor) -> Tensor:
        return torch.where(alive(s), unit[:, None], 0.0)[..., None, :]

    def curvatures(self, s: Tensor, unit: Tensor) -> Tensor:
        return s.new_zeros(*s.shape[:-1], 1, s.shape[-1], s.shape[-1])

    def depends_on_tiny(self, found: Tensor, unit: Tensor) -> Tensor:
        return found / unit[:, None, None] < FAR

    def from_logdets(self, found: Estimate, scale: Tensor, unit: Tensor) -> Tensor:
        return found.total * scale.sqrt() * unit


class SoftCount(SpectralFunction):
    """`sum s^2 / (s^2 + tau^2)` for `M` positive tolerances: a count with a smooth step at the tolerance."""

    smooth_at_zero = True
    quadrature = SOFT

    def __init__(self, atol: Sequence[float]):
        self.atol = list(atol)
        self.number = len(self.atol)

    def values(self, s: Tensor, unit: Tensor) -> Tensor:
        below, ratio, _ = self._ratios(s, unit)
        square = ratio.square()
        return torch.where(below, square / (1 + square), 1 / (1 + square)).sum(-1)

    def slopes(self, s: Tensor, unit: Tensor) -> Tensor:
        below, ratio, tau = self._ratios(s, unit)
        square = ratio.square()
        return 2 * torch.where(below, ratio, ratio * square) / (1 + square).square() / tau

    def curvatures(self, s: Tensor, unit: Tensor) -> Tensor:
        below, ratio, tau = self._ratios(s, unit)
        square = ratio.square()
        bend = torch.where(below, 1 - 3 * square, square.square() * (square - 3))
        return torch.diag_embed(2 * bend / (1 + square).pow(3) / tau.square())

    def scales(self, largest: Tensor, unit: Tensor) -> Tensor:
        return (largest.new_tensor(self.atol) / unit).square()

    def depends_on_tiny(self, found: Tensor, unit: Tensor) -> Tensor:
        return (found.new_tensor(self.atol) / unit[:, None] < FAR)[..., None].expand_as(found)

    def is_certain(self, found: Estimate, cap: Tensor) -> Tensor:
        return soft_count_is_certain(found.total, found.bound, cap)

    def from_logdets(self, found: Estimate, scale: Tensor, unit: Tensor) -> Tensor:
        return found.total

    def _ratios(self, s: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether `s <= tau`; the smaller of `s / tau` and `tau / s`, which has a square; `tau`: `[..., N, M, r]`."""
        tau = (s.new_tensor(self.atol) / unit[:, None])[..., None]
        s = s[..., None, :]
        below = s <= tau
        return below, torch.where(below, s / tau, tau / torch.where(below, 1.0, s)), tau
