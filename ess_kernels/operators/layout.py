"""flash-linear-attention's layout `[B, T, H, K]`: what its families check alike, and their scale."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_layout, check_positive_size, check_same_device, check_shape, finite_float

LAYOUT = "[B, T, H, K]"


def check_alike(**tensors: Tensor) -> int:
    """`K`, once all tensors are known to be `[B, T, H, K]` of one shape on one device; errors name the odd one."""
    first, *others = tensors
    shape = check_layout(first, tensors[first], LAYOUT)
    check_positive_size(first, "K", shape[-1])
    for name in others:
        check_shape(name, tensors[name], shape, LAYOUT)
    check_same_device(**tensors)
    return shape[-1]


def scale_of(scale: float | None, state_size: int) -> float:
    """The scale, `K ** -0.5` where it is None."""
    return state_size**-0.5 if scale is None else finite_float("scale", scale)


def check_q_k(q: Tensor, k: Tensor, scale: float | None, *, names: tuple[str, str] = ("q", "k")) -> float:
    """The scale, once `q` and `k`, which the caller calls by these names, are known to fit."""
    return scale_of(scale, check_alike(**dict(zip(names, (q, k)))))
