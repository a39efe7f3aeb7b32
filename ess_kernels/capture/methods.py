"""Mixers that no function has: methods of modules, and modules whose projections show what they do.

Modules are known by the class names and the parameters that checkpoints have frozen, in transformers 4 and 5 alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import operators
from .call import MixerCall, Refused
from .functions import first
from .layouts import CHANNELS_FIRST, CHANNELS_LAST
from .seen import Seen

if TYPE_CHECKING:
    from .capturing import Capture


def install(capture: Capture) -> None:
    """Watch every module of a known kind."""
    for module in capture.model.modules():
        kind = type(module).__name__
        if callable(getattr(module, "_rnn_scan", None)):
            _watch_rg_lru(capture, module)
        elif kind == "xLSTMBackend":
            _watch_mlstm(capture, module)
        elif kind.endswith("ShortConv") and _has(module, "in_proj", "conv", "out_proj"):
            _watch_short_convolution(capture, module)
        elif kind.endswith("LightningAttention") and _has(module, "qkv_proj", "slope_rate", "norm"):
            _watch_lightning(capture, module)
        elif all(callable(getattr(module, name, None)) for name in ("mix", "values", "operator")):
            _watch_own_operator(capture, module)


def _has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


# --- A module that makes its operator itself, as those of the embedded model do --------------------------------------


def _watch_own_operator(capture: Capture, module: Any) -> None:
    """`module.mix(x)` is `T values(x)`, `[B, H, L, V]`, with the operator `module.operator(x)`."""
    mix: Callable[[Tensor], Tensor] = module.mix
    kind = str(getattr(module, "kind", type(module).__name__))

    def watched(x: Tensor) -> Tensor:
        with capture.pause():  # its own products are a part of this call
            mixed = mix(x)
        if capture.watching:
            capture.note(module, lambda name: make(name, x, mixed))
        return mixed

    def make(name: str, x: Tensor, mixed: Tensor) -> MixerCall:
        if capture.attention_mask is not None:
            raise Refused("padding: its operator knows of none")
        return MixerCall(
            name, kind, "module", values=module.values(x), output=mixed, operator=lambda mask: module.operator(x)
        )

    capture.patches.replace(module, "mix", watched)


# --- RG-LRU of RecurrentGemma: the method that runs the recurrence ---------------------------------------------------


def _watch_rg_lru(capture: Capture, module: Any) -> None:
    scan: Callable[..., Any] = module._rnn_scan

    def watched(
        hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, recurrent_states: Any, **options: Any
    ) -> Any:
        result = scan(
            hidden_states=hidden_states,
            recurrent_gate=recurrent_gate,
            reset=reset,
            recurrent_states=recurrent_states,
            **options,
        )
        if capture.watching:
            capture.note(module, lambda name: make(name, hidden_states, recurrent_gate, reset, first(result)))
        return result

    def make(name: str, hidden_states: Tensor, gate: Tensor, reset: Tensor, output: Tensor) -> MixerCall:
        reset = reset.reshape(-1, gate.shape[1]).expand(gate.shape[:2])
        if not reset[:, 0].all():
            raise Refused("starts from a state, which is no part of T")
        gain = torch.where(reset[..., None], 1.0, (1 - gate.double().square()).clamp_min(0).sqrt())

        def one_hot(values: Tensor) -> Tensor:
            written = (CHANNELS_LAST.from_heads(values).double() * gain).to(hidden_states.dtype)
            found = scan(hidden_states=written, recurrent_gate=gate, reset=reset[..., None], recurrent_states=None)
            return CHANNELS_LAST.to_heads(first(found))

        values = torch.where(gain > 0, hidden_states.double() / gain, 0.0)
        return MixerCall(
            name,
            "rg_lru",
            "module",
            values=CHANNELS_LAST.to_heads(values),
            output=CHANNELS_LAST.to_heads(output),
            operator=lambda mask: operators.rg_lru(gate, reset=reset, attention_mask=mask),
            one_hot=one_hot,
            attention_mask=capture.attention_mask,
        )

    capture.patches.replace(module, "_rnn_scan", watched)


# --- mLSTM of xLSTM: a module whose arguments are queries, keys, values and gates ------------------------------------


def _watch_mlstm(capture: Capture, module: Any) -> None:
    def after(module: nn.Module, args: Any, arguments: dict[str, Any], result: Any) -> None:
        if not capture.watching or args:
            return

        def make(name: str) -> MixerCall:
            if any(arguments.get(state) is not None for state in ("c_initial", "n_initial", "m_initial")):
                raise Refused("starts from a state, which is no part of T")
            gates = {"i": arguments["igate"], "f": arguments["fgate"]}
            query, key = arguments["query"], arguments["key"]
            return MixerCall(
                name,
                "mlstm",
                "module",
                values=arguments["value"],
                output=first(result),
                operator=lambda mask: operators.mlstm(query, key, **gates, attention_mask=mask),
                one_hot=lambda values: first(module.forward(**arguments | {"value": values})),
                attention_mask=capture.attention_mask,
            )

        capture.note(module, make)

    capture.patches.hook(module.register_forward_hook(after, with_kwargs=True))


# --- LFM2: the gated short convolution between in_proj and out_proj --------------------------------------------------


def _watch_short_convolution(capture: Capture, module: Any) -> None:
    seen = Seen(capture)
    seen.outputs_of(module, "in_proj")

    def make(name: str, passed_on: Tensor) -> MixerCall:
        B, C, x = seen.take("in_proj").transpose(1, 2).chunk(3, 1)
        weight = module.conv.weight.squeeze(1)
        bias = module.conv.bias

        def finish(y: Tensor) -> Tensor:
            return y if bias is None else y + (bias.double()[:, None] * C.double())[..., None]

        return MixerCall(
            name,
            "short_convolution",
            "module",
            values=CHANNELS_FIRST.to_heads(x),
            output=CHANNELS_LAST.to_heads(passed_on),
            operator=lambda mask: operators.lfm2_conv(B, C, weight, attention_mask=mask),
            passed_on=finish,
            attention_mask=capture.attention_mask,
        )

    seen.before(module, "out_proj", make)


# --- MiniMax: lightning attention between qkv_proj and norm ----------------------------------------------------------


def _watch_lightning(capture: Capture, module: Any) -> None:
    seen = Seen(capture)
    seen.outputs_of(module, "qkv_proj")

    def make(name: str, passed_on: Tensor) -> MixerCall:
        heads, size = module.num_attention_heads, module.head_dim
        rows = module.act_fn(seen.take("qkv_proj")).unflatten(-1, (heads, 3 * size))
        q, k, v = rows.split(size, dim=-1)
        slopes = -module.slope_rate.flatten()
        return MixerCall(
            name,
            "lightning_attention",
            "module",
            values=v.transpose(1, 2),
            output=passed_on.unflatten(-1, (heads, size)).transpose(1, 2),
            operator=lambda mask: operators.simple_gla(q, k, g_gamma=slopes, scale=1.0, attention_mask=mask),
            attention_mask=capture.attention_mask,
        )

    seen.before(module, "norm", make)
