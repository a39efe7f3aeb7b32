"""An operator whose `T` is the caller's own function of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_floating, integer
from .finiteness import strictly_lower_finite
from .structure import Tiled

Rows = Callable[[Tensor, int, int], Tensor]


class Tiles(Tiled):
    """A function's `T`; see `tiles`, whose arguments are the attributes. No graph can hold it."""

    def __init__(self, rows: Rows, length: int, batch_shape: Sequence[int], device: torch.device):
        super().__init__(length, batch_shape, None, (torch.empty(0, device=device),))
        self.function = rows
        # what the function reads is unknown, so one row is made to see whether gradients flow through it
        heads = self.all_heads()[:1]
        self._differentiable = length > 0 and self.rows(heads, length - 1, length).requires_grad

    @property
    def requires_grad(self) -> bool:
        return self._differentiable

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        if not len(heads) or stop == start:
            return torch.zeros(len(heads), stop - start, stop, dtype=torch.float64, device=self.device)
        found: Any = self.function(heads, start, stop)
        check_floating(f"rows({len(heads)} heads, {start}, {stop})", found)
        shape = (len(heads), stop - start, stop)
        if tuple(found.shape) != shape or found.device != self.device:
            raise ValueError(
                f"rows: expected [N, rows, stop] = {list(shape)} on {self.device} for {len(heads)} heads, "
                f"start={start}, stop={stop}, got {list(found.shape)} on {found.device}"
            )
        return found.double().tril(start)

    def finite(self, heads: Tensor) -> Tensor:
        return strictly_lower_finite(self, heads)


def tiles(rows: Rows, *, length: int, batch_shape: Sequence[int], device: torch.device | str) -> Tiles:
    """An operator given as a function that makes rows of `T`, so that no more of it need exist than is being used.

    For attention by tile indices, or any mixer that no constructor knows. It works outside of compiled graphs: a graph
    that meets it ends there, and with `fullgraph=True` that is an error that says so.

    Args:
        rows: `rows(heads, start, stop)` gives rows `start..stop-1` of `T` and columns `0..stop-1`, `[N, stop - start,
            stop]` in any floating-point dtype on `device`. `heads` `[N]` int64 are numbers along the flattened batch
            shape. What lies above the diagonal is ignored. It must give the same numbers every time; it is called once
            here, for one row, and rows are asked for more than once.
        length: L.
        batch_shape: sizes of the batch dimensions, such as `(B, H)`; may be empty.
        device: where the rows lie, and results will.

    Raises:
        TypeError, ValueError: an argument is wrong, or what the function gives has another dtype, shape or device.
    """
    if not callable(rows):
        raise TypeError(f"rows: expected a function rows(heads, start, stop), got {type(rows).__name__}")
    if isinstance(batch_shape, (str, bytes)) or not hasattr(batch_shape, "__iter__"):
        raise TypeError(f"batch_shape: expected a sequence of integers, got {type(batch_shape).__name__}")
    length = integer("length", length, minimum=0)
    sizes = [integer("batch_shape", size, minimum=0) for size in batch_shape]
    try:
        # an index, such as the 0 of "cuda:0", that results have
        place = torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, TypeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        raise ValueError(f"device: expected a device that is here, got {device!r}: {error}") from None
    return Tiles(rows, length, sizes, place)
