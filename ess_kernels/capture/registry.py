"""Attention of transformers: the function that a module is about to call is wrapped where the module looks it up.

One patch, of `AttentionInterface.get_interface`, covers eager attention, SDPA, flash attention and functions that users
have registered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..operators.attention import attention
from ..operators.structure import Operator
from .call import MixerCall, Refused
from .idle import ATTENTION_IDLE

if TYPE_CHECKING:
    from .capturing import Capture

# keyword arguments that are part of the closed form
KNOWN = {"scaling", "dropout", "sliding_window", "softcap", "s_aux", "is_causal", "position_bias"}


# the reason of a call that does not mix over time begins so
OTHER_AXIS = "attention over another axis than time"


def install(capture: Capture) -> None:
    """Watch the registry of the transformers that is loaded; without transformers there is nothing to watch."""
    modeling = sys.modules.get("transformers.modeling_utils")
    interface = getattr(modeling, "AttentionInterface", None)
    if interface is None:
        return
    if "get_interface" in vars(interface):
        _wrap_lookup(capture, interface)
    else:
        _wrap_entries(capture, modeling)


def _wrap_lookup(capture: Capture, interface: Any) -> None:
    """transformers 5: every module asks `get_interface` for the function."""
    lookup = interface.get_interface

    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return watched(capture, lookup(self, *args, **kwargs))

    capture.patches.replace(interface, "get_interface", get_interface)


def _wrap_entries(capture: Capture, modeling: Any) -> None:
    """transformers 4: modules take the function from the registry's mapping, or their file's eager one."""
    from .torch_functions import modules_of

    interface = modeling.AttentionInterface
    lookup = interface.__getitem__

    def get_item(self: Any, key: str) -> Callable[..., Any]:
        return watched(capture, lookup(self, key))

    capture.patches.replace(interface, "__getitem__", get_item)
    for namespace in modules_of(capture.model):
        eager = vars(namespace).get("eager_attention_forward")
        if callable(eager):
            capture.patches.replace(namespace, "eager_attention_forward", watched(capture, eager))


def watched(capture: Capture, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with every call noted after it has returned."""

    def call(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not capture.watching:
            return function(module, query, key, value, attention_mask, *args, **kwargs)
        with capture.pause():  # what the function calls inside is this same mixer
            result = function(module, query, key, value, attention_mask, *args, **kwargs)
        output = result[0] if isinstance(result, tuple) else result

        def again(values: Tensor) -> Tensor:
            found = function(module, query, key, values, attention_mask, *args, **kwargs)
            return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

        def make(name: str) -> MixerCall:
            return attention_call(capture, name, module, query, key, value, attention_mask, args, kwargs, output, again)

        capture.note(module, make)
        return result

    return call


def attention_call(
    capture: Capture,
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    output: Tensor,
    again: Callable[[Tensor], Tensor],
) -> MixerCall:
    """The call of an attention function: `query [B, H, L, E]`, `key, value [B, HV, L, .]`, `output [B, L, H, dv]`."""
    check_lengths(query, key, capture.length)
    if options.get("dropout"):
        raise Refused(f"dropout of {options['dropout']} in training: call model.eval() first")
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and not causal:
        raise Refused("bidirectional: no mask, and is_causal is False")
    unknown = sorted({name for name, x in options.items() if x is not None} - KNOWN - ATTENTION_IDLE)
    if args or not (mask is None or isinstance(mask, Tensor)):
        unknown.append(f"a mask of type {type(mask).__name__}" if not args else "an argument without a name")

    def operator(padding: Tensor | None) -> Operator:
        if unknown:
            raise Refused(f"{', '.join(unknown)} given: unknown mathematics")
        return closed_form(query, key, mask, options, padding)

    return MixerCall(
        name,
        "attention",
        "registry",
        values=value,
        output=output.transpose(1, 2),
        operator=operator,
        one_hot=again,
        any_width=True,
        attention_mask=capture.attention_mask,
        time_by_size=query.shape[1] == query.shape[2],
    )


def check_lengths(query: Tensor, key: Tensor, length: int | None) -> None:
    """`Refused` where attention does not go from each token of the sequence to the ones before it."""
    if query.dim() != 4:
        raise Refused(f"queries of shape {list(query.shape)}: expected [B, H, L, E]")
    queries, keys = query.shape[2], key.shape[2]
    if length is not None and queries != length and query.shape[1] == length:
        raise Refused(f"{OTHER_AXIS}: the tokens stand where heads do")
    if length is not None and queries != length:
        raise Refused(f"{queries} queries where the sequence has {length} tokens: mixes over another axis, or a part")
    if keys != queries:
        raise Refused(f"{keys} keys for {queries} queries: cross-attention, a cache, or compressed keys")


def closed_form(
    query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any], padding: Tensor | None
) -> Operator:
    """Softmax attention from what an attention function is given; `padding` `[B, L]` is 0 where there is no token."""
    length, window = query.shape[2], options.get("sliding_window")
    if mask is not None and mask.dim() == 2:  # flash attention's: of tokens, not of pairs
        padding, mask = (None if bool(mask.bool().all()) else mask), None
    elif mask is not None:
        # the mask holds the window, whose number is for functions that take no mask
        mask, window = mask[..., :length, :length], None
    bias = options.get("position_bias")
    if bias is not None:
        bias = bias[..., :length, :length]
        if mask is None:
            mask = bias
        else:
            mask = bias.masked_fill(~mask, -float("inf")) if mask.dtype == torch.bool else mask + bias
    sinks = options.get("s_aux")
    if sinks is not None and sinks.numel() != query.shape[1]:
        raise Refused(f"sinks of shape {list(sinks.shape)} for {query.shape[1]} heads")
    return attention(
        query,
        key,
        scale=options.get("scaling"),
        attn_mask=mask,
        window_size=window,
        softcap=options.get("softcap"),
        sinks=None if sinks is None else sinks.flatten(),
        attention_mask=padding,
    )
