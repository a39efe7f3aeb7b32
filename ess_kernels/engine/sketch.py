"""Singular values of `H_i` from its products with a few random vectors, and what is certain about them.

Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 53, 2011): an orthonormal `Q` for the
range of `H` times a Gaussian matrix, sharpened by power iterations. Then `H = Q B + E` with `B = Q^T H` and
`E = (I - Q Q^T) H`. The ranges of the two parts are orthogonal, so `H^T H = B^T B + E^T E`, and for every j

    sigma_j(B) <= sigma_j(H) <= (sigma_j(B)^2 + |E|^2)^(1/2),

with `sigma_j(B) = 0` for j beyond the rank of the sketch. `|E|` is bounded by products of E with Gaussian probes drawn
apart from those that made Q: for m of them `|E| <= alpha (2 / pi)^(1/2) max |E w|`, except with probability `alpha^-m`
(their lemma 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .certainty import EPS
from .parallel import over_batch
from .scaling import power_of_two
from .thin_products import ThinProducts

PROBES = 16
# the bound on the residual fails with this probability, at one position of one head
FAILURE = 1e-10
PROBE_FACTOR = FAILURE ** (-1 / PROBES) * math.sqrt(2 / math.pi)
# Cholesky factorisations that make a matrix orthonormal: two where it is well conditioned, five in the worst case
PASSES = 7


@dataclass
class Sketch:
    """What is known of `N` heads at `P` positions, float64, in the units of the operator.

    Attributes:
        values: `[N, P, r]`, singular values of B, descending.
        error: `[N, P]`, bound on `|E|` in the 2-norm, with rounding errors; NaN where numbers overflowed.
        slack: `[N, P]`, rounding errors in any of the values and in `error`.
    """

    values: Tensor
    error: Tensor
    slack: Tensor

    def widened(self, lost: Tensor) -> Sketch:
        """The same for `H_i` that may be wrong by `lost` `[N, P]` itself, in the 2-norm."""
        return Sketch(self.values, self.error + lost, self.slack + lost)


def draw(length: int, rank: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The Gaussian test matrix `[L, rank]` and probes `[L, PROBES]`: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    test, probes = (
        torch.randn(length, columns, dtype=torch.float64, device="cpu", generator=generator)
        for columns in (rank, PROBES)
    )
    return test.to(device), probes.to(device)


def sketch(
    products: ThinProducts,
    positions: Tensor,
    heads: int,
    test: Tensor,
    probes: Tensor,
    power_iterations: int,
    svdvals: Callable[[Tensor], Tensor],
) -> Sketch:
    """The range finder at `positions` `[P]` (ascending) of `heads` heads; test matrix and probes as drawn by `draw`.

    `svdvals` takes `[batch, r, r]`.
    """
    shape = (heads, len(positions))
    L, r = test.shape

    def apply(X: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        """The product `[N * P, L, r]` scaled by powers of two, and the units: NaN for what overflowed, then zero."""
        Y = products(positions, X.expand(*shape, *X.shape[-2:]), transposed).flatten(0, 1)
        finite = Y.isfinite().flatten(1).all(1)
        Y, unit = power_of_two(torch.where(finite[:, None, None], Y, 0.0))
        return Y, torch.where(finite, unit, torch.nan)

    def unflattened(X: Tensor) -> Tensor:
        return X.unflatten(0, shape)

    # rows before the position are zero: flipped to the end, QR leaves them exactly zero
    Q = orthonormal(apply(test, False)[0].flip(-2))[0].flip(-2)
    for _ in range(power_iterations):
        Z = orthonormal(apply(unflattened(Q), True)[0])[0]
        Q = orthonormal(apply(unflattened(Z), False)[0].flip(-2))[0].flip(-2)
    adjoint, unit = apply(unflattened(Q), True)
    values = unflattened(svdvals(orthonormal(adjoint)[1]) * unit[:, None])
    residual, unit = apply(probes, False)
    for _ in range(2):
        residual = residual - Q @ (Q.mT @ residual)
    error = unflattened(PROBE_FACTOR * torch.linalg.vector_norm(residual, dim=-2).amax(-1) * unit)
    # sums of L terms, and Q orthonormal only to about this accuracy
    slack = 8 * EPS * math.sqrt(L * r) * (values[..., 0] + error)
    return Sketch(values, error + slack, slack)


def certify(found: Sketch, cap: Tensor, atol: Tensor, rtol: Tensor) -> tuple[Tensor, Tensor]:
    """Counts above `max(atol, rtol s_1)` `[M]`, int64 `[N, M, P]`, and whether they are certain, bool.

    A count is that of the values of B surely above the tolerance, never more than the true one. It is certain where all
    other values, and what B does not see of H, are surely not. `cap` `[P]` is the largest rank that `H_i` can have.
    """
    values, error, slack = found.values, found.error[..., None], found.slack[..., None]
    lower, upper = (values - slack).clamp_min(0), torch.hypot(values + slack, error)
    atol, rtol = atol[:, None], rtol[:, None]
    # the tolerance lies between these two, as s_1 does: [N, M, P, 1]
    most, least = (_tolerance(atol, rtol, s[..., :1].movedim(-1, 1))[..., None] for s in (upper, lower))
    lower, upper, unseen = (x[:, None] for x in (lower, upper, error))
    exists = torch.arange(values.shape[-1], device=values.device) < cap[:, None]
    above = (lower > most) & exists
    certain = (above | (upper <= least) | ~exists).all(-1)
    certain &= (cap <= values.shape[-1]) | (unseen <= least)[..., 0]
    # nothing is certain where the largest value overflowed
    certain &= values[:, None, :, 0].isfinite()
    bad = found.error.isnan()[:, None]
    return above.sum(-1).masked_fill(bad, -1), certain & ~bad


def _tolerance(atol: Tensor, rtol: Tensor, largest: Tensor) -> Tensor:
    # rtol times the largest value is NaN where rtol is infinite and the matrix zero
    return torch.maximum(atol, torch.nan_to_num(rtol * largest, nan=torch.inf, posinf=torch.inf))


def orthonormal(Y: Tensor) -> tuple[Tensor, Tensor]:
    """`Y = Q R` for `Y` `[batch, L, r]`, its largest entries near 1: columns of Q are orthonormal, or zero.

    Directions that only rounding errors give are kept, as orthonormal as the others.
    """
    if Y.device.type == "cpu":
        return householder(Y)
    Q, R, done = cholesky_qr(Y)
    if not bool(done.all()):
        rest = ~done
        Q[rest], R[rest] = householder(Y[rest])
    return Q, R


def householder(Y: Tensor) -> tuple[Tensor, Tensor]:
    """`Y = Q R` by reflections."""
    Q, R = over_batch(torch.linalg.qr, Y)
    return Q, R


def cholesky_qr(Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`Y = Q R` by products and Cholesky factors of Gram matrices, which many matrices at once do well on a GPU.

    As long as the Gram matrix is far from the identity it is shifted, and each pass lifts the smallest singular values
    by the root of the shift (Fukaya et al., "Shifted Cholesky QR", SIAM J. Sci. Comput. 42, 2020). Also returned, bool
    `[batch]`: whether Q came out orthonormal.
    """
    L, r = Y.shape[-2:]
    eye = torch.eye(r, dtype=Y.dtype, device=Y.device)
    R = eye.expand(len(Y), r, r)
    for _ in range(PASSES):
        gram = Y.mT @ Y
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        # a column that is exactly zero stays so: it has a one in the factor
        dead = diagonal == 0
        defect = (gram + torch.diag_embed(dead.to(Y.dtype)) - eye).abs().amax((-2, -1))
        done = defect <= 4 * EPS * math.sqrt(L * r)
        if bool(done.all()):
            break
        shift = 11 * EPS * (L * r + r * (r + 1)) * torch.linalg.matrix_norm(gram)
        shift = torch.where(defect < 0.5, 0.0, shift)[:, None].expand_as(diagonal)
        factor, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(torch.where(dead, 1.0, shift)))
        Y = torch.linalg.solve_triangular(factor.mT, Y, upper=True, left=False)
        R = factor.mT @ R
    return Y, R * ~dead[..., None], done
