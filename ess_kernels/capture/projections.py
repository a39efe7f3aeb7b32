"""Mamba and its kin, and Mamba-2, of transformers before 5.15, which run their recurrence inside of a method.

There is no function to wrap. What enters the recurrence is seen where projections, and the convolution, return it, and
the rest are the module's own parameters, whose names checkpoints have frozen. What it passes on is what the norm or the
last projection receives. Where transformers calls a function for the recurrence, the module is left to `functions`.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import silu

from .. import operators
from . import functions
from .call import MixerCall
from .known_functions import BY_NAME
from .layouts import CHANNELS_FIRST, CHANNELS_LAST, TIME_FIRST
from .seen import Seen
from .torch_functions import on_cpu

if TYPE_CHECKING:
    from .capturing import Capture

MAMBA = ("in_proj", "x_proj", "dt_proj", "out_proj", "A_log", "D")
ZAMBA = ("in_proj", "conv1d", "x_proj_weight", "dt_proj_weight", "dt_proj_bias", "out_proj", "A_log", "D")
MAMBA2 = ("in_proj", "conv1d", "out_proj", "A_log", "D", "dt_bias", "num_heads", "n_groups", "ssm_state_size")
# functions for the recurrence: that of transformers itself, and those of mamba_ssm, which need a GPU
OWN = ("mamba_selective_scan", "mamba2_chunk_scan")
OF_MAMBA_SSM = ("selective_scan_fn", "mamba_chunk_scan_combined")


def install(capture: Capture) -> None:
    """Watch every module of a known kind that calls no function for its recurrence."""
    cpu = on_cpu(capture.model)
    for module in capture.model.modules():
        if not type(module).__module__.startswith("transformers.models."):
            continue
        if "chunk_gated_delta_rule" in vars(module):
            _watch_gated_delta_rule(capture, module, cpu)
        elif not _calls_a_function(module, cpu):
            if _has(module, MAMBA):
                _watch_mamba(capture, module)
            elif _has(module, ZAMBA):
                _watch_zamba(capture, module)
            elif _has(module, MAMBA2):
                _watch_mamba2(capture, module)


def _has(module: nn.Module, names: tuple[str, ...]) -> bool:
    return all(hasattr(module, name) for name in names)


def _calls_a_function(module: nn.Module, cpu: bool) -> bool:
    namespace = vars(sys.modules[type(module).__module__])
    return any(callable(namespace.get(name)) for name in (OWN if cpu else OWN + OF_MAMBA_SSM))


# --- Qwen3-Next: every module keeps its function as an attribute ------------------------------------------------------


def _watch_gated_delta_rule(capture: Capture, module: nn.Module, cpu: bool) -> None:
    name = "chunk_gated_delta_rule"
    function = vars(module)[name]
    of_torch = getattr(sys.modules[type(module).__module__], f"torch_{name}", None)
    if cpu and of_torch is not None:  # it is watched already; flash-linear-attention's needs a GPU
        capture.patches.replace(module, name, of_torch)
        return
    known = BY_NAME[f"torch_{name}" if "query" in inspect.signature(function).parameters else name]
    capture.patches.replace(module, name, functions.watched(capture, known, function))


# --- Mamba, FalconMamba, Jamba ---------------------------------------------------------------------------------------


def _watch_mamba(capture: Capture, module: Any) -> None:
    seen = Seen(capture)
    seen.outputs_of(module, "in_proj", "x_proj")
    seen.input_of(module, "x_proj", "u")

    def make(name: str, passed_on: Tensor) -> MixerCall:
        u, projected = seen.take("u"), seen.take("x_proj")
        gate = seen.take("in_proj").chunk(2, -1)[1]
        capture.check_length(u.shape[1])
        states = module.A_log.shape[1]
        dt, B, C = _normalized(module, projected.split([projected.shape[-1] - 2 * states, states, states], -1))
        delta = dt @ module.dt_proj.weight.T
        activation = getattr(module, "act", silu)

        def finish(y: Tensor) -> Tensor:
            y = y + CHANNELS_LAST.to_heads(module.D.double() * u.double())
            return y * CHANNELS_LAST.to_heads(activation(gate.double()))

        return MixerCall(
            name,
            "mamba",
            "module",
            values=CHANNELS_LAST.to_heads(u),
            output=CHANNELS_LAST.to_heads(passed_on),
            operator=lambda padding: operators.selective_scan(
                delta.transpose(1, 2),
                -module.A_log.float().exp(),
                B.transpose(1, 2),
                C.transpose(1, 2),
                delta_bias=module.dt_proj.bias,
                delta_softplus=True,
                attention_mask=padding,
            ),
            passed_on=finish,
            attention_mask=capture.attention_mask,
        )

    seen.before(module, "out_proj", make)


def _normalized(module: Any, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`dt`, `B` and `C` after the norms that FalconMamba and Jamba have for them."""
    if hasattr(module, "rms_eps"):
        return tuple(x * (x.float().square().mean(-1, keepdim=True) + module.rms_eps).rsqrt() for x in parts)
    if hasattr(module, "dt_layernorm"):
        norms = (module.dt_layernorm, module.b_layernorm, module.c_layernorm)
        return tuple(norm(x) for norm, x in zip(norms, parts, strict=True))
    return parts


# --- Zamba: Mamba with heads, each with steps, B and C of its own -----------------------------------------------------


def _watch_zamba(capture: Capture, module: Any) -> None:
    seen = Seen(capture)
    seen.outputs_of(module, "in_proj", "conv1d")

    def make(name: str, passed_on: Tensor) -> MixerCall:
        gate = seen.take("in_proj")[..., 1::2].transpose(1, 2)
        u = _masked(capture, module.act(seen.take("conv1d")[..., : gate.shape[-1]]).transpose(1, 2)).transpose(1, 2)
        capture.check_length(u.transpose(1, 2).shape[1])
        heads, states = module.n_mamba_heads, module.ssm_state_size
        projected = module.x_proj_weight @ u.unflatten(1, (heads, -1))
        dt, B, C = projected.split([projected.shape[2] - 2 * states, states, states], 2)
        delta = (module.dt_proj_weight @ dt).flatten(1, 2)

        def finish(y: Tensor) -> Tensor:
            y = y + CHANNELS_FIRST.to_heads(module.D.double().flatten()[:, None] * u.double())
            return y * CHANNELS_FIRST.to_heads(module.act(gate.double()))

        return MixerCall(
            name,
            "mamba",
            "module",
            values=CHANNELS_FIRST.to_heads(u),
            output=CHANNELS_LAST.to_heads(passed_on),
            operator=lambda padding: operators.selective_scan(
                delta,
                -module.A_log.float().exp().flatten(0, 1),
                B,
                C,
                delta_bias=module.dt_proj_bias.flatten(),
                delta_softplus=True,
                attention_mask=padding,
            ),
            passed_on=finish,
            attention_mask=capture.attention_mask,
        )

    seen.before(module, "out_proj", make)


# --- Mamba-2 and its kin: Bamba, Zamba2, FalconH1, GraniteMoeHybrid --------------------------------------------------


def _watch_mamba2(capture: Capture, module: Any) -> None:
    seen = Seen(capture)
    seen.outputs_of(module, "in_proj", "conv1d")
    # FalconH1 has its norm only where it is asked for; else the gate comes before the last projection
    normalizes = isinstance(getattr(module, "norm", None), nn.Module)

    def make(name: str, passed_on: Tensor) -> MixerCall:
        projected, convolved = seen.take("in_proj"), seen.take("conv1d")
        projected = projected * getattr(module, "mup_vector", 1)
        length = projected.shape[1]
        x = _masked(capture, module.act(convolved[..., :length].transpose(1, 2)))
        heads, groups, states = module.num_heads, module.n_groups, module.ssm_state_size
        inner = x.shape[-1] - 2 * groups * states
        u, B, C = x.split([inner, groups * states, groups * states], -1)
        capture.check_length(u.shape[1])
        gate = projected[..., -heads - x.shape[-1] - inner : -heads - x.shape[-1]]
        u, gate, passed_on = (y.unflatten(-1, (heads, -1)) for y in (u, gate, passed_on))
        B, C = (y.unflatten(-1, (groups, states)) for y in (B, C))
        dt = projected[..., -heads:]

        def finish(y: Tensor) -> Tensor:
            y = y + TIME_FIRST.to_heads(module.D.double()[:, None] * u.double())
            return y if normalizes else y * TIME_FIRST.to_heads(silu(gate.double()))

        return MixerCall(
            name,
            "mamba2",
            "module",
            values=TIME_FIRST.to_heads(u),
            output=TIME_FIRST.to_heads(passed_on),
            operator=lambda padding: operators.ssd(
                dt,
                -module.A_log.float().exp(),
                B,
                C,
                dt_bias=module.dt_bias,
                dt_softplus=True,
                dt_limit=_limits(module),
                attention_mask=padding,
            ),
            passed_on=finish,
            attention_mask=capture.attention_mask,
        )

    seen.before(module, "norm" if normalizes else "out_proj", make)


def _limits(module: Any) -> tuple[float, float]:
    """Between which numbers the steps are kept. Zamba2 keeps them above the smallest one alone."""
    if type(module).__name__.startswith("Zamba2"):
        return (module.time_step_min, float("inf"))
    limits: tuple[float, float] = module.time_step_limit
    return limits


def _masked(capture: Capture, x: Tensor) -> Tensor:
    """`x` `[B, L, D]`, 0 where there is padding, as these modules have it after their convolution."""
    return x if capture.attention_mask is None else x * capture.attention_mask[..., None]
