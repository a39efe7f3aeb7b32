"""From a mixer's call to its operator, with proof: `T u`, with skip and gate, against what the mixer passed on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..operators.dense import dense
from ..operators.structure import Operator
from .call import INDEPENDENT, MixerCall, Refused
from .one_hot import NotCausal, is_half, read_off
from .product import apply

# above these an operator is not used
LARGEST_ERROR = 1e-3  # float32 and float64
LARGEST_ERROR_HALF = 3e-2  # bfloat16 and float16
FEW = 8  # channels of random values, where a mixer takes any number of them


class Unverified(Refused):
    """An operator was made, but what it gives is not what the mixer passed on."""


@dataclass(frozen=True)
class Verified:
    """An operator and how far it can be trusted.

    Attributes:
        operator: of the mixer, batch shape `(B, H)`.
        capture_error: largest difference between `T u`, with skip and gate, and what was passed on, in units of the
            largest number of the same head (of all heads, in half precision); also for random values, where the mixer
            can be called again. Padding is left aside.
        route: the seam, followed by `", one-hot"` where `T` was read off by one-hot values.
        check: what the comparison is worth, see `LayerResult.check`.
        remark: what a reader should know, such as why the closed form was not used; often empty.
    """

    operator: Operator
    capture_error: float
    route: str
    check: str
    remark: str = ""


DIFFERENT = "unverified: T u differs from what the mixer passed on"
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
    if not error <= (LARGEST_ERROR_HALF if _is_half(call) else LARGEST_ERROR):  # NaN is not below the bound either
        raise Unverified(
            f"unverified: T u differs from what the mixer passed on by {error:.1e} of a head's largest number"
        )
    return Verified(operator, error, route, call.check)


def capture_error(call: MixerCall, operator: Operator) -> float:
    """See `Verified`: the largest of all heads. NaN if a token's output is not a number.

    Values that are the same at all tokens prove little: every operator whose rows have the same sums gives the same.
    So random values are compared as well, where the mixer can be called again; where it cannot, and an operator was not
    made from its own weights, such values are refused.

    Raises:
        Refused: see above.
    """
    u = call.values_by_head
    width = u.shape[-1]
    extra = _random_values(call)
    if extra is not None:
        u = torch.cat([u.double(), extra.repeat_interleave(call.heads // extra.shape[1], 1).double()], -1)
    elif call.check == INDEPENDENT and not _varies(call):
        raise Refused("the values are the same at all tokens, so that T u = y proves nothing of T")
    rebuilt = apply(operator, u)
    passed_on = rebuilt[..., :width] if call.passed_on is None else call.passed_on(rebuilt[..., :width])
    # in half precision a head may be nothing but the rounding of larger numbers, such as those of its skip
    by_head = not _is_half(call)
    errors = [_error(call, passed_on, call.output.double(), by_head)]
    if extra is not None and call.one_hot is not None:
        errors.append(_error(call, rebuilt[..., width:], call.one_hot(extra).double(), by_head))
    return float("nan") if any(error != error for error in errors) else max(errors)


def _random_values(call: MixerCall) -> Tensor | None:
    """Random values of the call's dtype; None where the mixer cannot be called with them."""
    if call.one_hot is None:
        return None
    B, heads, length, width = call.values.shape
    size = (B, heads, length, min(width, FEW) if call.any_width else width)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(call.values)
    if call.attention_mask is not None:  # padding has no values
        noise = noise * call.attention_mask.to(noise)[:, None, :, None]
    return noise


def _varies(call: MixerCall) -> bool:
    """Whether the values of every head differ from token to token."""
    values = _tokens(call, call.values.double())  # [tokens, H, d], or [B, H, L, d] without padding
    time = 0 if call.attention_mask is not None else 2
    spread = (values - values.mean(time, keepdim=True)).abs().amax(time).amax(-1)
    return bool((spread > 1e-3 * values.abs().amax(time).amax(-1)).all())


def _is_half(call: MixerCall) -> bool:
    return is_half(call.output.dtype) or is_half(call.values.dtype)


def _error(call: MixerCall, rebuilt: Tensor, passed_on: Tensor, by_head: bool) -> float:
    """The largest difference of a head in units of its largest number, or of that of all heads; without padding."""
    difference, size = _tokens(call, rebuilt - passed_on).abs(), _tokens(call, passed_on).abs()
    if not size.numel():
        return 0.0
    if call.attention_mask is None:
        difference, size = (x.flatten(2).amax(2) for x in (difference, size))
    else:  # rows of a padded batch are joined
        difference, size = (x.transpose(0, 1).flatten(1).amax(1) for x in (difference, size))
    if difference.isnan().any():
        return float("nan")
    # a head that passes on nothing is compared with the others
    largest = size.max().clamp_min(torch.finfo(torch.float64).tiny)
    size = torch.where(size > 0, size, largest) if by_head else largest
    return float((difference / size).max())


def _tokens(call: MixerCall, x: Tensor) -> Tensor:
    """`x` `[B, H, L, d]`; of a padded batch the tokens of all rows alone, `[tokens, H, d]`."""
    if call.attention_mask is None:
        return x
    return x.transpose(1, 2)[call.attention_mask.bool().to(x.device)]
