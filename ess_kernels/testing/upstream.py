"""Upstream's own functions as oracles: found by name, run in float64, and asked for their matrix `T`.

    naive = upstream_function("fla.ops.gla.naive", "naive_recurrent_gla")
    T = matrix_of(lambda v: naive(q, k, v, g), ValueLayout("[B, T, H, V]"), batch_shape=(2, 4), length=9)

Upstream's reference functions cast their inputs to float32, so that nothing better than 1e-6 could be asked of a
comparison. What they cast to is float64 while they run here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import unittest
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def float64_for_float32() -> Iterator[None]:
    """Within it `torch.float32`, `torch.float`, `Tensor.float()` and the default dtype are float64.

    Import nothing inside: a module would keep the wrong names for good.
    """
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        torch.float32 = torch.float = torch.float64
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
        yield
    finally:
        torch.float32, torch.float = saved[:2]
        torch.Tensor.float = saved[2]  # type: ignore[method-assign]
        torch.set_default_dtype(saved[3])


def upstream_function(module: str, name: str) -> Callable[..., Any]:
    """A function of an upstream package, which runs in float64 and without gradients.

    Where the package is missing, the test that asks for it is skipped.
    Decorators are taken off: with fla installed, transformers' functions in PyTorch are wrapped to call fla's Triton
    kernels. `name` may be a method, `"Class.method"`.
    """
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        # pytest takes it for a skipped test, as it takes its own exception
        raise unittest.SkipTest(f"{module} is not here: {error}") from None
    for part in name.split("."):
        found = getattr(found, part)
    function = inspect.unwrap(found)

    @functools.wraps(function)
    def in_float64(*args: Any, **kwargs: Any) -> Any:
        with float64_for_float32(), torch.no_grad():
            return function(*args, **kwargs)

    return in_float64


class ValueLayout:
    """How a mixer's values and outputs lie, such as `"[B, T, H, V]"`: T is the time, V the value channels.

    The other axes are the operator's batch dimensions, in their order. Without V there is one value a token.
    """

    def __init__(self, layout: str):
        self.axes = [axis.strip() for axis in layout.strip("[]").split(",")]
        self.batch_axes = [axis for axis in self.axes if axis not in ("T", "V")]
        self._canonical = [*self.batch_axes, "T", *(["V"] if self.has_channels else [])]

    @property
    def has_channels(self) -> bool:
        return "V" in self.axes

    def from_canonical(self, v: Tensor) -> Tensor:
        """Values `[*batch, T, V]` in this layout."""
        v = v if self.has_channels else v[..., 0]
        return v.permute([self._canonical.index(axis) for axis in self.axes]).contiguous()

    def to_canonical(self, o: Tensor) -> Tensor:
        """Outputs in this layout as `[*batch, T, V]`."""
        o = o.permute([self.axes.index(axis) for axis in self._canonical])
        return o if self.has_channels else o[..., None]


def outputs(run: Callable[[Tensor], Any], layout: ValueLayout, v: Tensor) -> Tensor:
    """`run` of values `[*batch, T, V]` as `[*batch, T, V]`; where it gives several things, the first is the output."""
    found = run(layout.from_canonical(v))
    return layout.to_canonical(found if isinstance(found, Tensor) else found[0])


def matrix_of(
    run: Callable[[Tensor], Any],
    layout: ValueLayout,
    batch_shape: Sequence[int],
    length: int,
    channels: int | None = None,
) -> Tensor:
    """`T [*batch, L, L]` of a mixer that is linear in its values: column j is what it makes of a one at token j alone.

    Args:
        run: the mixer, everything but its values given.
        layout: of its values and outputs.
        batch_shape, length: `*batch` and L.
        channels: how many value channels to give it at a time; None means L of them, or one in a layout without them.
    """
    channels = channels or (length if layout.has_channels else 1)
    columns = []
    for start in range(0, length, channels):
        v = torch.zeros(*batch_shape, length, channels, dtype=torch.float64)
        count = min(channels, length - start)
        column = torch.arange(count)
        v[..., start + column, column] = 1
        columns.append(outputs(run, layout, v)[..., :count])
    return torch.cat(columns, -1)
