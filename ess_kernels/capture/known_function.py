"""What there is to know of a function that mixes over time, and the closed form of one call of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import silu

from ..operators.structure import Operator
from .call import Refused
from .idle import FUNCTION_IDLE
from .layouts import TIME_FIRST, Layout


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
        idle: arguments of this function that have no part in `T`, beside those that never have one.
        value_heads: the constructor's name for the number of heads of the values, where queries do not tell it.
        values_of_a_token: name of the argument that says how many values every token has, where there may be several.
        value_gate: name of the argument that multiplies the value before `T` does.
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
    idle: frozenset[str] = frozenset()
    value_heads: str | None = None
    values_of_a_token: str | None = None
    value_gate: str | None = None
    skip: str | None = None
    gate: str | None = None
    states: tuple[str, ...] = ("initial_state", "initial_states")
    any_width: bool = True

    def given_value(self, arguments: Mapping[str, Any]) -> Tensor:
        """What `T` multiplies, in the function's layout."""
        value: Tensor = arguments[self.value]
        gate = arguments.get(self.value_gate) if self.value_gate else None
        return value if gate is None else value * gate

    def of_values_alone(self, value: Tensor) -> dict[str, Any]:
        """The arguments that replace a call's own, so that it returns `T value` and nothing else."""
        replaced = dict.fromkeys(name for name in (self.skip, self.gate) if name is not None)
        if self.value_gate is not None:
            replaced[self.value_gate] = value.new_ones(value.shape)
        return replaced | {self.value: value}

    def operator(self, arguments: Mapping[str, Any], attention_mask: Tensor | None) -> Operator:
        """The closed form; `Refused` where an argument is given that the constructor does not have."""
        taken = inspect.signature(self.constructor).parameters
        no_part = {self.value, self.value_gate, self.skip, self.gate, "attention_mask"}
        given = dict(self.fixed)
        if self.value_heads is not None:
            given[self.value_heads] = self.layout.to_heads(arguments[self.value]).shape[1]
        for name, x in arguments.items():
            target = self.renamed.get(name, name)
            if name in no_part or name in self.idle:
                continue
            if target in taken:
                given[target] = x
            elif not (x is None or x is False or name in FUNCTION_IDLE):
                raise Refused(f"{name} is given, which {self.constructor.__name__} does not have: unknown mathematics")
        if attention_mask is not None and given.get("cu_seqlens") is None and given.get("seq_idx") is None:
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
