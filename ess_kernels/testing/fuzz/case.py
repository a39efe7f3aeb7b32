"""One input of the fuzzer: an operator's constructor, its tensors, and which of their axes are heads, tokens, states.

The axes are what a shrinker cuts along. Every constructor is called with `scale=1` where it has a scale, so that the
matrix which the tensors stand for is known without a rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ... import operators
from ...caching import cached_property
from ...operators.structure import Operator

HEAD, TOKEN, STATE = "H", "L", "N"
# One letter an axis: H heads (or channels), L tokens, N states or head sizes; 1 is an axis of length one.
LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "dense": {"T": "HLL"},
    "attention": {"q": "1HLN", "k": "1HLN", "attn_mask": "11LL", "sinks": "H", "g": "1HL", "alibi_slopes": "H"},
    "linear_attention": {"q": "1LHN", "k": "1LHN"},
    "gla": {"q": "1LHN", "k": "1LHN", "g": "1LHN"},
    "ssd": {"dt": "1LH", "A": "H", "B": "1LHN", "C": "1LHN"},
    "selective_scan": {"delta": "1HL", "A": "HN", "B": "1NL", "C": "1NL"},
    "kda": {"q": "1LHN", "k": "1LHN", "g": "1LHN", "beta": "1LH"},
    "dplr_delta_rule": {"q": "1LHN", "k": "1LHN", "a": "1LHN", "b": "1LHN", "gk": "1LHN"},
    "convolution": {"k": "HL"},
    "gated_convolution": {"x0": "1HL", "k": "HL", "x1": "1HL"},
}
RECURRENCES: Mapping[tuple[bool, bool], Mapping[str, str]] = {
    # by (diagonal, constant)
    (True, False): {"A": "HLN", "B": "HLN", "C": "HLN"},
    (False, False): {"A": "HLNN", "B": "HLN", "C": "HLN"},
    (True, True): {"A": "HN", "B": "HN", "C": "HN"},
    (False, True): {"A": "HNN", "B": "HN", "C": "HN"},
}


@dataclass(frozen=True)
class Case:
    """An operator by its ingredients.

    Attributes:
        family: name of the constructor in `ess_kernels.operators`.
        kind: what the generator made, for the report.
        inputs: the constructor's tensors by name, floating point of any precision (a mask is bool).
        options: its other arguments.
        tolerances: absolute tolerances that are natural for this input, beside those found from its spectrum.
    """

    family: str
    kind: str
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerances: tuple[float, ...] = ()

    def operator(self, device: str = "cpu") -> Operator:
        inputs = {name: x.to(device) for name, x in self.inputs.items()}
        return getattr(operators, self.family)(**inputs, **self.options)

    @property
    def layout(self) -> Mapping[str, str]:
        if self.family == "recurrence":
            return RECURRENCES[self.options["diagonal"], "length" in self.options]
        return LAYOUTS[self.family]

    def size(self, letter: str) -> int:
        """How many heads, tokens or states there are."""
        if letter == TOKEN and "length" in self.options:
            return self.options["length"]
        for name, x in self.inputs.items():
            if letter in self.layout[name]:
                return x.shape[self.layout[name].index(letter)]
        return 1

    @property
    def state_size(self) -> int | None:
        """How large the state of a recurrence is; `None` where there is no finite state."""
        finite = self.family != "attention" and any(STATE in axes for axes in self.layout.values())
        return self.size(STATE) if finite else None

    @cached_property
    def numel(self) -> int:
        return sum(x.numel() for x in self.inputs.values())

    def take(self, letter: str, index: Tensor) -> Case:
        """Only some heads, tokens or states: every axis of that letter is cut to `index`, a 1-D tensor of integers."""
        inputs = {}
        for name, x in self.inputs.items():
            for axis, of in enumerate(self.layout[name]):
                if of == letter:
                    x = torch.index_select(x, axis, index)
            inputs[name] = x
        options = dict(self.options)
        if letter == TOKEN and "length" in options:
            options["length"] = len(index)
        return replace(self, inputs=inputs, options=options)

    def cast(self, dtype: torch.dtype) -> Case:
        """The tensors in a lower precision; the same case where a number would become infinite."""
        inputs = {name: x if x.dtype == torch.bool else x.to(dtype) for name, x in self.inputs.items()}
        overflows = any(bool((y.isinf() & ~self.inputs[name].isinf()).any()) for name, y in inputs.items())
        return self if overflows else replace(self, inputs=inputs)

    def scaled(self, power: int) -> Case:
        """The same operator in another unit: `T` times `2**power`, the natural tolerances too. Nothing is rounded."""
        first, second = _FACTORS.get(self.family, (None, None))
        if first is None:
            return self
        inputs = dict(self.inputs)
        half = power // 2 if second else power
        inputs[first] = inputs[first] * 2.0**half
        if second:
            inputs[second] = inputs[second] * 2.0 ** (power - half)
        return replace(self, inputs=inputs, tolerances=tuple(tau * 2.0**power for tau in self.tolerances))


# the tensors that T is linear in, one or two of them
_FACTORS: Mapping[str, tuple[str, str | None]] = {
    "dense": ("T", None),
    "linear_attention": ("q", "k"),
    "gla": ("q", "k"),
    "ssd": ("B", "C"),
    "selective_scan": ("B", "C"),
    "kda": ("q", None),
    "dplr_delta_rule": ("q", "k"),
    "recurrence": ("B", "C"),
    "convolution": ("k", None),
    "gated_convolution": ("x0", "x1"),
}
