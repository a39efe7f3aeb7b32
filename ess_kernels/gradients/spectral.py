"""Functions of singular values of matrices, for autograd: the gradient of `h(s)` is `U diag(dh/ds) V^T`.

No factor of the decomposition is differentiated, so that singular values may coincide or vanish. Second derivatives
are exact as well; a third one is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .functions import SpectralFunction, alive

# singular values nearer to each other than this, relative to the larger one, are taken for equal in second derivatives
EQUAL = 1e-7


class SpectralValues(torch.autograd.Function):
    """`function` of the singular values of `K` `[..., N, a, b]`, whose heads have the units `[N]`.

    Returns `[..., N, M]`, and the gradients of these, `[..., N, M, a, b]`, for the backward.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(K: Tensor, unit: Tensor, function: SpectralFunction) -> tuple[Tensor, Tensor]:
        U, s, Vh = torch.linalg.svd(K, full_matrices=False)
        slopes = function.slopes(s, unit)
        gradients = (U[..., None, :, :] * slopes[..., None, :]) @ Vh[..., None, :, :]
        return function.values(s, unit), gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        K, unit, ctx.function = inputs
        ctx.save_for_backward(K, unit, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, weights: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        if weights is None:
            return None, None, None
        K, unit, gradients = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _WeightedGradient.apply(K, weights, gradients, unit, ctx.function), None, None
        return _weighted(weights, gradients), None, None


class RootValues(torch.autograd.Function):
    """`function` of the singular values of `G F^T` for pairs of roots `G` `[N, a, n]`, `F` `[N, b, n]` of one shape.

    The roots come one pair after the other, as `[G.first, G.again, F.first, F.again]` each. Returns `[P, N, M]`, and
    for the backward the gradients with respect to `G F^T`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(unit: Tensor, function: SpectralFunction, *roots: Tensor) -> tuple[Tensor, Tensor]:
        return SpectralValues.forward(_products(roots[::4], roots[2::4]), unit, function)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        unit, ctx.function, *roots = inputs
        ctx.save_for_backward(unit, output[1], *roots[1::2])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, weights: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        unit, gradients, *roots = ctx.saved_tensors
        if weights is None:
            return (None,) * (2 + 2 * len(roots))
        observe, reach = roots[::2], roots[1::2]
        if torch.is_grad_enabled():
            products = _products(observe, reach)
            middle = _WeightedGradient.apply(products, weights, gradients, unit, ctx.function)
        else:
            middle = _weighted(weights, gradients)
        pairs = zip(middle, observe, reach, strict=True)
        return None, None, *(x for m, G, F in pairs for x in (m @ F, None, m.mT @ G, None))


def _products(observe: Sequence[Tensor], reach: Sequence[Tensor]) -> Tensor:
    return torch.stack([G @ F.mT for G, F in zip(observe, reach, strict=True)])


def _weighted(weights: Tensor, gradients: Tensor) -> Tensor:
    if gradients.shape[-3] == 1:
        return weights[..., None] * gradients[..., 0, :, :]
    return (weights[..., None, None] * gradients).sum(-3)


class _WeightedGradient(torch.autograd.Function):
    """`sum_m weights_m U diag(slopes_m) V^T`, whose own backward is a second derivative of the functions.

    It is only asked for its backward where somebody wants second derivatives; until then it costs nothing. What that
    backward returns cannot be differentiated again: how it depends on `K` is not known to autograd.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(K: Tensor, weights: Tensor, gradients: Tensor, unit: Tensor, function: SpectralFunction) -> Tensor:
        return _weighted(weights, gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.function = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        K, weights, gradients, unit = ctx.saved_tensors
        if torch.is_grad_enabled():
            second, of_weights = _SecondDerivative.apply(K, weights, direction, gradients, unit, ctx.function)
        else:
            second, of_weights = _SecondDerivative.forward(K, weights, direction, gradients, unit, ctx.function)
        return second, of_weights, None, None, None


class _SecondDerivative(torch.autograd.Function):
    """The backward of `_WeightedGradient`, as a function whose own backward, a third derivative, is an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        K: Tensor, weights: Tensor, direction: Tensor, gradients: Tensor, unit: Tensor, function: SpectralFunction
    ) -> tuple[Tensor, Tensor]:
        of_weights = (direction[..., None, :, :] * gradients).sum((-2, -1))
        return second_derivative(K, weights, direction, unit, function), of_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            f"a third derivative of {type(ctx.function).__name__} was asked for: functions of singular values have "
            "first and second derivatives here, and no higher ones"
        )


def second_derivative(
    K: Tensor, weights: Tensor, direction: Tensor, unit: Tensor, function: SpectralFunction
) -> Tensor:
    """How `sum_m weights_m U diag(slopes_m) V^T` changes as `K` moves in a direction, all `[..., N, a, b]`.

    Source: divided differences (Daleckii and Krein), for the symmetric and the antisymmetric part of `U^T direction V`.

    Raises:
        RuntimeError: a singular value counts as zero and the function has no second derivative there.
    """
    if K.shape[-2] < K.shape[-1]:
        return second_derivative(K.mT, weights, direction.mT, unit, function).mT
    U, s, Vh = torch.linalg.svd(K, full_matrices=False)
    if not function.smooth_at_zero and _moves_where_zero(s, direction):
        raise RuntimeError(
            f"a second derivative of {type(function).__name__} was asked for where a singular value of H_i is below "
            "1e-10 of the largest one: there it is infinite. First derivatives exist, and soft_ess has second ones"
        )
    slope = (weights[..., None] * function.slopes(s, unit)).sum(-2)
    curvature = (weights[..., None, None] * function.curvatures(s, unit)).sum(-3)
    own = curvature.diagonal(dim1=-2, dim2=-1)
    left, right = s[..., :, None], s[..., None, :]
    apart, together = left - right, left + right
    mean = (own[..., :, None] + own[..., None, :]) / 2
    equal = apart.abs() <= EQUAL * torch.maximum(left, right)
    even = torch.where(
        equal, mean - curvature, (slope[..., :, None] - slope[..., None, :]) / torch.where(equal, 1.0, apart)
    )
    nothing = together <= 0
    odd = torch.where(nothing, mean, (slope[..., :, None] + slope[..., None, :]) / torch.where(nothing, 1.0, together))
    turned = U.mT @ direction @ Vh.mT
    inner = (even * (turned + turned.mT) + odd * (turned - turned.mT)) / 2
    along = (curvature @ turned.diagonal(dim1=-2, dim2=-1)[..., None])[..., 0]
    inner = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)) + torch.diag_embed(along)
    # and what leaves the span of U
    beside = direction @ Vh.mT - U @ turned
    ratio = torch.where(s > 0, slope / torch.where(s > 0, s, 1.0), own)
    return (U @ inner + beside * ratio[..., None, :]) @ Vh


def _moves_where_zero(s: Tensor, direction: Tensor) -> bool:
    moves = (direction != 0).flatten(-2).any(-1)
    return bool((moves & ~alive(s).all(-1)).any())
