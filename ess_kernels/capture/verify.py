"""From a mixer's call to its operator, with proof: `T u`, with skip and gate, against what the mixer passed on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..operators.dense import dense
from ..operators.structure import Operator
from .call import MixerCall, Refused
from .one_hot import NotCausal, is_half, read_off
from .product import apply

# above these an operator is not used
LARGEST_ERROR = 1e-3  # float32 and float64
LARGEST_ERROR_HALF = 3e-2  # bfloat16 and float16


class Unverified(Refused):
    """An operator was made, but what it gives is not what the mixer passed on."""


@dataclass(frozen=True)
class Verified:
    """An operator and how far it can be trusted.

    Attributes:
        operator: of the mixer, batch shape `(B, H)`.
        capture_error: largest difference between `T u`, with skip and gate, and what was passed on, in units of the
            largest number passed on. Padding is left aside.
        route: the seam, followed by `", one-hot"` where `T` was read off by one-hot values.
        check: what the comparison is worth, see `LayerResult.check`.
        remark: what a reader should know, such as why the closed form was not used; often empty.
    """

    operator: Operator
    capture_error: float
    route: str
    check: str
    remark: str = ""


READS_PADDING = "it reads padding as if it were tokens, and so do its positions"


def verify(call: MixerCall) -> Verified:
    """The operator of a call, from its closed form, or by one-hot values where there is none or it is not right.

    Raises:
        Refused: there is no operator; `Unverified` where there is one that does not give what was passed on.
    """
    try:
        return _with_padding(call)
    except Refused as error:
        if call.attention_mask is None:
            raise
        try:  # some recurrent mixers know nothing of padding
            found = _with_padding(replace(call, attention_mask=None))
        except Refused:
            raise error from None
        return replace(found, remark=f"{READS_PADDING}; {found.remark}" if found.remark else READS_PADDING)


def _with_padding(call: MixerCall) -> Verified:
    """As `verify`, with the call's own mask of padding."""
    try:
        return _compared(call, call.operator(call.attention_mask), call.route)
    except NotCausal:
        raise
    except Exception as error:
        reason = _reason(error)
        if call.one_hot is None:
            raise reason from error
    try:
        operator = dense(read_off(call), attention_mask=call.attention_mask)
        found = _compared(call, operator, f"{call.route}, one-hot")
    except Exception as error:
        again = _reason(error)
        raise type(again)(f"{again} (closed form: {reason})") from error
    return replace(found, remark=f"T was read off by one-hot values: {reason}")


def _reason(error: Exception) -> Refused:
    """What is told of an error: a mixer of an unexpected form must not end the model's forward pass."""
    if isinstance(error, Refused):
        return error
    # the messages of constructors name the argument and say what is wrong
    return Refused(str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}")


def _compared(call: MixerCall, operator: Operator, route: str) -> Verified:
    error = capture_error(call, operator)
    half = is_half(call.output.dtype) or is_half(call.values.dtype)
    if not error <= (LARGEST_ERROR_HALF if half else LARGEST_ERROR):  # NaN is not below the bound either
        raise Unverified(f"unverified: T u differs from what the mixer passed on by {error:.1e} of the largest number")
    return Verified(operator, error, route, call.check)


def capture_error(call: MixerCall, operator: Operator) -> float:
    """See `Verified`; NaN if a token's output is not a number."""
    rebuilt = apply(operator, call.values_by_head)
    if call.passed_on is not None:
        rebuilt = call.passed_on(rebuilt)
    difference, passed_on = _tokens(call, rebuilt - call.output.double()), _tokens(call, call.output.double())
    if not passed_on.numel():
        return 0.0
    return float(difference.abs().max() / passed_on.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def _tokens(call: MixerCall, x: Tensor) -> Tensor:
    """`x` `[B, H, L, d]` without padding."""
    if call.attention_mask is None:
        return x
    return x.transpose(1, 2)[call.attention_mask.bool().to(x.device)]
