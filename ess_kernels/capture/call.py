"""What a seam has seen: one call of a mixer, with all that it takes to rebuild its operator and to check it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..operators.structure import Operator

INDEPENDENT = "independent"
ATTRIBUTION_ONLY = "attribution only"


class Refused(ValueError):
    """A call that has no operator, or none that can be trusted; the message is the reason."""


@dataclass
class MixerCall:
    """One call of a mixer. It holds the layer's own tensors, so it should not outlive the function that receives it.

    Attributes:
        name: the module that made the call, as in `model.named_modules()`.
        mixer: the kind of mixer, for instance `"attention"`.
        route: which seam saw it: `"registry"`, `"global"`, `"module"` or `"torch"`.
        values: `[B, HV, L, dv]`, what `T` multiplies. Value head `h // (H // HV)` belongs to head h.
        output: `[B, H, L, dv]`, what the mixer passed on.
        operator: makes the operator from the closed form of the mixer, given `attention_mask` or None; raises `Refused`
            where it is not known.
        one_hot: the mixer itself, without skip and gate, as a function of its values, `[B, HV, L, d]` to
            `[B, H, L, d]`. None where it cannot be called again.
        any_width: whether `one_hot` takes values of any width d; otherwise d must be dv.
        passed_on: what is added to or multiplied onto `T u` before it is passed on: a skip, an output gate.
        attention_mask: `[B, L]`, 1 for tokens and 0 for padding, or None.
        check: what the comparison is worth, see `LayerResult.check`.
        time_by_size: whether the axis of the time was told by its size alone, so that it may be another one.
    """

    name: str
    mixer: str
    route: str
    values: Tensor
    output: Tensor
    operator: Callable[[Tensor | None], Operator]
    one_hot: Callable[[Tensor], Tensor] | None = None
    any_width: bool = False
    passed_on: Callable[[Tensor], Tensor] | None = None
    attention_mask: Tensor | None = None
    check: str = INDEPENDENT
    time_by_size: bool = False

    @property
    def heads(self) -> int:
        return self.output.shape[1]

    @property
    def values_by_head(self) -> Tensor:
        """`[B, H, L, dv]`: a view where heads share values."""
        repeats = self.output.shape[1] // self.values.shape[1]
        return self.values.repeat_interleave(repeats, 1) if repeats != 1 else self.values
