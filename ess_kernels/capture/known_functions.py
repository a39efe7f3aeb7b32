"""Functions of transformers, mamba_ssm and flash-linear-attention that mix over time, and their closed forms.

Constructors of operators have the names and layouts of the functions that they mirror. So most entries say only which
constructor it is; arguments go to it by name, and one that it does not know makes the closed form unknown.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import silu

from .. import operators
from ..operators.structure import Operator
from .call import Refused
from .idle import FUNCTION_IDLE
from .layouts import CHANNELS_FIRST, CHANNELS_LAST, TIME_FIRST, Layout


@dataclass(frozen=True)
class KnownFunction:
    """What there is to know of a function that mixes over time.

    Attributes:
        mixer: the kind of mixer.
        constructor: of its operator.
        value: the name of the argument that `T` multiplies.
        layout: of the value and of what the function returns.
        renamed: the constructor's names for arguments that the function calls otherwise.
        fixed: arguments of the constructor that the function does not have.
        skip, gate: names of the arguments that add `D u` and multiply by `silu(z)`; no part of `T`.
        states: names of states that a call may start from.
        any_width: whether values may have any number of channels.
    """

    mixer: str
    constructor: Callable[..., Operator]
    value: str = "v"
    layout: Layout = TIME_FIRST
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    skip: str | None = None
    gate: str | None = None
    states: tuple[str, ...] = ("initial_state", "initial_states")
    any_width: bool = True

    @property
    def not_linear(self) -> tuple[str, ...]:
        """Arguments that are None where the function is called for `T` alone."""
        return tuple(name for name in (self.skip, self.gate) if name is not None)

    def operator(self, arguments: Mapping[str, Any], attention_mask: Tensor | None) -> Operator:
        """The closed form; `Refused` where an argument is given that the constructor does not have."""
        taken = inspect.signature(self.constructor).parameters
        given = dict(self.fixed)
        for name, x in arguments.items():
            target = self.renamed.get(name, name)
            if name == self.value or name in self.not_linear or name in FUNCTION_IDLE or x is None or x is False:
                continue
            if target not in taken:
                raise Refused(f"{name} is given, which {self.constructor.__name__} does not have: unknown mathematics")
            given[target] = x
        if attention_mask is not None and not {"cu_seqlens", "seq_idx"} & given.keys():
            given["attention_mask"] = attention_mask
        return self.constructor(**given)

    def passed_on(self, arguments: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
        """Adds the skip and multiplies the gate, for `T u` `[B, H, L, dv]`; None where there is neither."""
        skip = arguments.get(self.skip) if self.skip else None
        gate = arguments.get(self.gate) if self.gate else None
        if skip is None and gate is None:
            return None
        u = self.layout.to_heads(arguments[self.value]).double()

        def finish(y: Tensor) -> Tensor:
            if skip is not None:
                y = y + skip.double().reshape(u.shape[1], 1, -1) * u
            return y if gate is None else y * silu(self.layout.to_heads(gate).double())

        return finish


TRANSFORMERS = {"query": "q", "key": "k"}
MAMBA = {"dt": "delta"}

BY_NAME: dict[str, KnownFunction] = {
    # transformers, 5.15 and newer
    "mamba_selective_scan": KnownFunction(
        "mamba",
        operators.selective_scan,
        "hidden_states",
        CHANNELS_FIRST,
        MAMBA,
        skip="D",
        gate="z",
        any_width=False,
    ),
    "mamba2_chunk_scan": KnownFunction("mamba2", operators.ssd, "hidden_states", skip="D", gate="z"),
    "torch_chunk_gated_delta_rule": KnownFunction(
        "gated_delta_rule", operators.gated_delta_rule, "value", renamed=TRANSFORMERS
    ),
    "chunk_kimi_delta_attention": KnownFunction("kda", operators.kda, "value", renamed=TRANSFORMERS),
    "rwkv_linear_attention": KnownFunction(
        "rwkv4",
        operators.rwkv4,
        "value",
        CHANNELS_LAST,
        {"time_decay": "w", "time_first": "u", "key": "k"},
        states=("state",),
        any_width=False,
    ),
    # mamba_ssm
    "selective_scan_fn": KnownFunction(
        "mamba", operators.selective_scan, "u", CHANNELS_FIRST, skip="D", gate="z", any_width=False
    ),
    "selective_scan_ref": KnownFunction(
        "mamba", operators.selective_scan, "u", CHANNELS_FIRST, skip="D", gate="z", any_width=False
    ),
    "mamba_chunk_scan_combined": KnownFunction("mamba2", operators.ssd, "x", skip="D", gate="z"),
}
