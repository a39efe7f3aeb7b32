"""`T` read off by one-hot values, from a mixer that can be called again and is found linear in its values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .call import MixerCall, Refused

NONLINEAR = 1e-4  # relative violation of additivity above which a mixer is not linear; for float32 and float64
NONLINEAR_HALF = 3e-2  # for bfloat16 and float16
FUTURE = 1e-6  # relative size of an entry of T above the diagonal that is no rounding error
FUTURE_HALF = 1e-2
WIDTH = 512  # one-hot values at a time where any number of channels may be used


class NotCausal(Refused):
    """`T` has entries above its diagonal."""


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def read_off(call: MixerCall) -> Tensor:
    """`T` `[B, H, L, L]` in the values' dtype, from `call.one_hot`.

    Raises:
        Refused: the mixer is not linear in its values, or `T` has entries above its diagonal.
    """
    function = call.one_hot
    if function is None:
        raise Refused("no closed form, and the mixer cannot be called again")
    offset = check_linear(function, call.values)
    B, heads, L, dv = call.values.shape
    width = min(L, WIDTH) if call.any_width else dv
    T = call.output.new_empty(B, call.heads, L, L)
    for start in range(0, L, width):
        count = min(width, L - start)
        values = call.values.new_zeros(B, heads, L, width if not call.any_width else count)
        columns = torch.arange(count, device=values.device)
        values[:, :, start + columns, columns] = 1
        # a function with an offset has the same one at every width; it is known for the width of the values
        found = function(values)[..., :count]
        T[..., start : start + count] = found if offset is None else found - offset[..., :1]
    return refuse_future(T, call.attention_mask)


def check_linear(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor | None:
    """The output for values that are all zero, or None if it is zero; `Refused` if the rest is not linear."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(values.shape, generator=generator).to(values) for _ in range(2))
    zero = function(torch.zeros_like(values)).double()
    fa, fb, both = (function(x).double() - zero for x in (a, b, 2 * a - 3 * b))
    violation = float((both - 2 * fa + 3 * fb).abs().max() / both.abs().max().clamp_min(1e-30))
    if not violation <= (NONLINEAR_HALF if is_half(values.dtype) else NONLINEAR):
        raise Refused(f"not linear in its values: additivity is violated by {violation:.1e}")
    if not zero.any():
        return None
    if not torch.equal(zero, zero[..., :1].expand_as(zero)):
        raise Refused("adds numbers of its own, another one to every channel")
    return zero


def refuse_future(T: Tensor, attention_mask: Tensor | None) -> Tensor:
    """`T` as it is; `NotCausal` if a token's row has entries of later tokens, those of padding left aside."""
    if not T.numel():
        return T
    # NaN is not for this comparison to judge, but must not hide what else there is
    size = T.abs().nan_to_num_(0.0, posinf=float("inf"))
    if attention_mask is not None:
        token = attention_mask.bool().to(T.device)
        size.masked_fill_(~(token[:, :, None] & token[:, None, :])[:, None], 0)
    bound = (FUTURE_HALF if is_half(T.dtype) else FUTURE) * float(size.max())
    largest = float(size.triu_(1).max())
    if largest > bound:
        raise NotCausal(f"not causal: T has entries above its diagonal, up to {largest:.2g}")
    return T
