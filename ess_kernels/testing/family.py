"""What a test case of an operator family is made of: the two or three methods of the family, and its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import backends
from ..operators.structure import Operator


class FamilyUnderTest(ABC):
    """An operator family with inputs to try. See `OperatorTestCase` for what a subclass writes.

    Attributes:
        constructor: the public function.
        options: its other arguments, passed as they are.
        reads: for each input the axis that runs along each batch dimension, `None` where it is shared. An axis shorter
            than the batch dimension holds groups of neighbours. Inputs not named lie as `[B, T, H, ...]`: `(0, 2)`.
        allows_minus_inf: the inputs in which -inf is a valid value.
        state_size: the expected TSS; `"last"` takes the last axis of the first input.
        lengths: lengths of the sequences to try.
        rtol: of the comparison with `dense`.
        decays: the inputs from which transitions are made, such that three times their negatives make them grow.
        other_sizes: the inputs that may have other sizes too, for which `dense` is not written.
        real_or_complex: the inputs that may be either; `make_inputs` makes them as the family is meant.
        scales: the inputs in which `T` is linear, one at a time, such as `q` and `k`.
        diagonal_only: the inputs that only the diagonal of `T` reads, such as RWKV-6's bonus `u`. No metric reads the
            diagonal, so bad data there mark no head.
        value_layout: how upstream's values and outputs lie; see `ValueLayout`.
        value_channels: how many value channels upstream wants, where it does not take any number.
        upstream_length: the length to ask upstream for; None means the longest of `lengths`.
        speaks_for_its_kind: whether the family stands for others that lower to the same structure where a test takes
            seconds, as on kernels in Triton's interpreter; the others are slow tests there.

    The diagonal of `T` is the mixer's own. A family that reads before its transition has none, unless upstream adds a
    term of the present token apart from the state.
    """

    constructor: ClassVar[Callable[..., Operator]]
    options: ClassVar[Mapping[str, Any]] = {}
    reads: ClassVar[Mapping[str, tuple[int | None, ...]]] = {}
    allows_minus_inf: ClassVar[tuple[str, ...]] = ()
    state_size: ClassVar[int | str | None] = "last"
    lengths: ClassVar[tuple[int, ...]] = (1, 2, 3, 9)
    rtol: ClassVar[float] = 1e-10
    decays: ClassVar[tuple[str, ...]] = ()
    other_sizes: ClassVar[tuple[str, ...]] = ()
    real_or_complex: ClassVar[tuple[str, ...]] = ()
    scales: ClassVar[tuple[str, ...]] = ()
    diagonal_only: ClassVar[tuple[str, ...]] = ()
    value_layout: ClassVar[str] = "[B, T, H, V]"
    value_channels: ClassVar[int | None] = None
    upstream_length: ClassVar[int | None] = None
    speaks_for_its_kind: ClassVar[bool] = False

    @abstractmethod
    def make_inputs(self, length: int) -> dict[str, Tensor]:
        """Random inputs by the names of the constructor's arguments, at least two of each batch dimension.

        All are float64, or complex128.
        """

    @abstractmethod
    def dense(self, *args: Any, **inputs: Any) -> Tensor:
        """`T [*batch, L, L]` of float64 inputs, computed independently of the operator."""

    def upstream(self, v: Tensor, **inputs: Any) -> Any:
        """What upstream's reference function makes of the values `v`, given these inputs in float64.

        Optional. The function comes from `upstream_function`; where it gives several things, the first is the output.
        """
        raise NotImplementedError

    def inputs(self, length: int) -> dict[str, Tensor]:
        """The same random inputs every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(length)
            return self.make_inputs(length)

    def make_operator(self, inputs: Mapping[str, Any]) -> Operator:
        return type(self).constructor(**inputs, **self.options)

    def _readers(self, name: str, x: Tensor, index: tuple[int, ...], batch_shape: tuple[int, ...]) -> Tensor:
        """bool `[*batch]`: the heads that read the entry `x[index]`."""
        readers = torch.full(batch_shape, name not in self.diagonal_only)
        for dim, axis in enumerate(self.reads.get(name, (0, 2))):
            if axis is None:
                continue
            head = torch.arange(batch_shape[dim])
            group = head // (batch_shape[dim] // x.shape[axis])
            shape = [-1 if d == dim else 1 for d in range(len(batch_shape))]
            readers &= (group == index[axis]).reshape(shape)
        return readers

    def _short_inputs(self) -> dict[str, Tensor]:
        return self.inputs(5 if max(self.lengths) > min(self.lengths) else self.lengths[0])

    def _last_row(self, name: str, x: Tensor) -> tuple[int | slice, ...]:
        """Everything that the last head of an input reads."""
        axes = self.reads.get(name, (0, 2))
        return tuple(-1 if axis in axes else slice(None) for axis in range(x.dim()))

    def _first_head(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the first head of the first batch reads."""
        alone = {}
        for name, x in inputs.items():
            for axis in self.reads.get(name, (0, 2)):
                x = x if axis is None else x.narrow(axis, 0, 1)
            alone[name] = x
        return alone

    def _backends(self, op: Operator) -> list[str]:
        """The backends that are usable here and take this operator."""

        def takes_it(name: str) -> bool:
            try:
                backends.choose(name, "tolerance_ess", op.inner)
            except RuntimeError:
                return False
            return True

        return [status.name for status in backends.describe() if status.usable and takes_it(status.name)]
