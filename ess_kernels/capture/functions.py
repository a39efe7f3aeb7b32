"""Recurrent mixers are functions that models look up by name: those names are wrapped where the models look them up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import delta_products, fast_paths, known_functions, packed
from .call import MixerCall, Refused
from .known_function import KnownFunction
from .layouts import HEADS_FIRST
from .torch_functions import modules_of, on_cpu, original

if TYPE_CHECKING:
    from .capturing import Capture


def install(capture: Capture) -> None:
    """Wrap every known function in the Python modules that define the model's classes."""
    fast_paths.switch_off(capture)
    for namespace in modules_of(capture.model):
        for name, known in known_functions.BY_NAME.items():
            function = vars(namespace).get(name)
            if callable(function) and not inspect.isclass(function):
                own = original(function) if on_cpu(capture.model) else function
                capture.patches.replace(namespace, name, watched(capture, known, own))


def watched(capture: Capture, known: KnownFunction, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with every call noted after it has returned."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not capture.watching:
            return function(*args, **kwargs)
        with capture.pause():
            result = function(*args, **kwargs)
        capture.note(None, lambda name: function_call(capture, name, known, function, args, kwargs, result))
        return result

    return call


def function_call(
    capture: Capture,
    name: str,
    known: KnownFunction,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
) -> MixerCall:
    arguments = named_arguments(function, args, kwargs)
    refuse_states(arguments, known)
    output = first(result)
    if known.mixer == "gated_delta_rule" and capture.length is not None and "q" in arguments:
        steps = delta_products.steps_of_a_token(arguments, capture.attention_mask, capture.rows, capture.length)
        if steps > 1:
            known = known_functions.BY_NAME["chunk_gated_delta_product"]
            arguments, output = delta_products.as_product(arguments, steps), output[:, steps - 1 :: steps]
    layout, of_rows, padding = known.layout, arguments, capture.attention_mask
    if arguments.get("head_first"):
        layout, of_rows = HEADS_FIRST, time_first(arguments)
    tokens = packed.tokens_of(arguments, padding, capture.rows, capture.length)
    if tokens is not None:
        layout, of_rows = packed.in_rows(layout, tokens), packed.padded_arguments(of_rows, tokens)
    values = layout.to_heads(known.given_value(arguments))
    of_a_token = arguments[known.values_of_a_token] if known.values_of_a_token else 1
    length = values.shape[2] // of_a_token
    if tokens is None and packed.is_packed(arguments):
        padding = None
    else:
        capture.check_length(length)

    def one_hot(values: Tensor) -> Tensor:
        given = arguments | known.of_values_alone(layout.from_heads(values))
        return layout.to_heads(first(function(**given)))

    return MixerCall(
        name,
        known.mixer,
        "global",
        values=values,
        output=layout.to_heads(output),
        operator=lambda mask: known.operator(of_rows, mask),
        one_hot=one_hot if of_a_token == 1 else None,
        any_width=known.any_width,
        passed_on=known.passed_on(of_rows),
        attention_mask=padding,
    )


def time_first(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with `head_first=True`, which older versions of flash-linear-attention have, without."""
    turned = {name: x.transpose(1, 2) if isinstance(x, Tensor) and x.dim() >= 3 else x for name, x in arguments.items()}
    return turned | {"head_first": False}


def first(result: Any) -> Tensor:
    """The output of a function that may return its last state beside it."""
    return result[0] if isinstance(result, (tuple, list)) else result


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Also of a hub kernel, which is a module whose `forward` has the arguments."""
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def named_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, defaults included; what `**kwargs` takes stands among the others."""
    signature = signature_of(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise Refused(f"a call that does not fit the function's own signature: {error}") from None
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name)
    return arguments


def refuse_states(arguments: dict[str, Any], known: KnownFunction) -> None:
    for name in known.states:
        if arguments.get(name) is not None:
            raise Refused(f"{name} is given: starts from a state, which is no part of T")
