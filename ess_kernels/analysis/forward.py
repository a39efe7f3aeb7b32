"""Running a model once, as `analyze` needs it: without gradients, caches and dropout, and left as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ess_kernels.capture.patches import Patches

# axes with these sizes are rare in models, so that the time is told from every other axis
SHORT_LENGTHS = (31, 29, 23, 19, 17, 13, 11, 7, 5)


CACHES = {"past_key_values", "past_key_value", "cache", "cache_params", "state", "mems"}


def forward_arguments(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs, and `use_cache=False` where the model has a cache.

    Raises:
        ValueError: an input that the model's `forward` does not take.
    """
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    # copies: a model may change its inputs
    given = {name: x for name, x in inputs.items() if x is not None}
    arguments = {name: x.clone() if isinstance(x, Tensor) else x for name, x in given.items()}
    for name in arguments:
        if name not in parameters and not takes_any:
            raise ValueError(f"{name}: {type(model).__name__} takes no such input; it takes {', '.join(parameters)}")
    for name in CACHES & arguments.keys():
        raise ValueError(f"{name}: expected None, for an operator starts from an empty state; got a cache")
    if "use_cache" in parameters or (takes_any and hasattr(getattr(model, "config", None), "use_cache")):
        arguments.setdefault("use_cache", False)
    return arguments


@contextmanager
def evaluating(model: nn.Module) -> Iterator[bool]:
    """Within it the model is in eval mode and not compiled; True if some module was in training mode before.

    Only the flags change: a module that does more in `train` and `eval`, such as merging weights, is not asked to.
    Random numbers that the model draws are drawn again afterwards.
    """
    training = [module for module in model.modules() if module.training]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with Patches() as patches, torch.no_grad(), torch.random.fork_rng(devices=sorted(devices, key=str)):
        for module in model.modules():
            if getattr(module, "_compiled_call_impl", None) is not None:
                patches.replace(module, "_compiled_call_impl", None)  # compiled in place: compiled code hides its calls
        try:
            for module in training:
                module.training = False
            yield bool(training)
        finally:
            for module in training:
                module.training = True


def size_of(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """B and L, from `input_ids`, `inputs_embeds` or the first input with two axes; a decoder's where it has its own.

    Raises:
        ValueError: there is no such input, or a row has fewer than 2 tokens.
    """
    names = ["decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds", *inputs]
    found = next((inputs[n] for n in names if isinstance(inputs.get(n), Tensor) and inputs[n].dim() >= 2), None)
    if found is None:
        raise ValueError("input_ids: expected a tensor [B, L], or inputs_embeds [B, L, D]")
    batch, length = found.shape[:2]
    if batch < 1 or length < 2:
        raise ValueError(f"input_ids: expected at least one row of 2 tokens, got shape {list(found.shape)}")
    return batch, length


def padding_of(inputs: Mapping[str, Any], batch: int, length: int) -> Tensor | None:
    """The mask of padding, bool `[B, L]`, if it leaves out a token; else None. A decoder has its own.

    Raises:
        ValueError: another shape, or a row whose tokens are not one run of ones.
        TypeError: no tensor of integers or bool.
    """
    has_decoder = any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    name = "decoder_attention_mask" if has_decoder else "attention_mask"
    attention_mask = inputs.get(name)
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.is_floating_point():
        kind = attention_mask.dtype if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise TypeError(f"{name}: expected a tensor of integers or bool [B, L], got {kind}")
    if tuple(attention_mask.shape) != (batch, length):
        raise ValueError(f"{name}: expected [B, L] = {[batch, length]}, got {list(attention_mask.shape)}")
    mask = attention_mask.bool()
    begins = (mask.int().diff(dim=1, prepend=mask.new_zeros(batch, 1).int()) == 1).sum(1)
    if bool((begins != 1).any()):
        row = int((begins != 1).nonzero()[0])
        raise ValueError(f"{name}: expected one run of ones in every row, but row {row} has {int(begins[row])}")
    return None if bool(mask.all()) else mask


def shortened(inputs: Mapping[str, Any], rows: int, batch: int, tokens: int, length: int) -> dict[str, Any]:
    """The first tokens of the first rows of every input that has rows; without the mask of padding."""

    def cut(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() < 1 or x.shape[0] != batch:
            return x
        row = x[:rows]
        return row[:, :tokens] if row.dim() > 1 and row.shape[1] == length else row

    return {name: cut(x) for name, x in inputs.items() if name != "attention_mask"}


def short_length(model: nn.Module, length: int) -> int:
    """A number of tokens, not more than there are, that is the size of no axis of the model's parameters."""
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    return next((n for n in SHORT_LENGTHS if n <= length and n not in sizes), length)
