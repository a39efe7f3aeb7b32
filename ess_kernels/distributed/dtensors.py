"""Operators made of DTensors: sharded over samples or heads they need no messages, over tokens they are slices.

A constructor says which axis of its tensors is what (`operators.separate`), and a placement says along which axis a
tensor is cut. So the local tensors make a local operator. Where samples or heads are sharded its answers are DTensors
with the matching placement. Where tokens are, it is `sequence_parallel` over that dimension of the mesh, and answers
are local tensors: positions 1..L-1 do not fall into the chunks that a DTensor has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..metrics import singular_values
from ..operators.spread import Spread
from ..operators.structure import Operator
from .agreement import agree
from .sequence_parallel import sequence_parallel

HEADS = ("H", "HV", "HQ", "Hkv", "G", "D")
TOKENS = ("T", "L")
# constructors in which a head's numbers depend on how many heads there are before it
NUMBERED = ("retention", "lightning_attention")
# of the arguments that mark sequences
MARKS = {"attention_mask": "[B, T]", "seq_idx": "[B, T]"}


class Cut(NamedTuple):
    """What one dimension of the mesh cuts: `"batch"` (one of its axes), `"heads"` or `"tokens"`."""

    kind: str
    axis: int = 0


class Sharded(Spread):
    """An operator of which this process holds some samples or some heads.

    Attributes:
        local: the operator of these.
        mesh, placements: where the others are, and along which axes of the batch.
    """

    def __init__(self, local: Operator, mesh: DeviceMesh, placements: Sequence[Any], batch_shape: Sequence[int]):
        super().__init__(local.length, batch_shape, local.state_size, local.inputs, block=local.block)
        self.local, self.mesh, self.placements = local, mesh, tuple(placements)

    def answer(self, metric: Callable[..., Any], positions: Any, **arguments: Any) -> Any:
        """What the metric says of the local operator, as DTensors; no message is sent."""
        behind = 2 if metric is singular_values else 1
        return self._spread(metric(self.local, positions=positions, **arguments), behind)

    def _spread(self, found: Any, behind: int) -> Any:
        """The same as DTensors: tensors `[..., *batch, ...]` with so many axes behind the batch."""
        if isinstance(found, tuple):
            fields = [self._spread(x, behind) for x in found]
            return type(found)(*fields) if hasattr(found, "_fields") else tuple(fields)
        first = found.dim() - behind - len(self.batch_shape)
        placements = [Shard(p.dim + first) if isinstance(p, Shard) else p for p in self.placements]
        shape = torch.Size((*found.shape[:first], *self.batch_shape, *found.shape[found.dim() - behind :]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            found.contiguous(), self.mesh, placements, run_check=False, shape=shape, stride=stride
        )

    def finite(self, heads: Tensor) -> Tensor:
        raise NotImplementedError(f"op: ask .local, the operator of this process's part of {self.batch_shape}")

    def dense_heads(self, heads: Tensor) -> Tensor:
        raise NotImplementedError(f"op: ask .local, the operator of this process's part of {self.batch_shape}")


def construct(
    family: str, constructor: Callable[..., Operator], layouts: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Operator:
    """The operator of a constructor called with DTensors.

    Args:
        family: its name.
        constructor: makes the operator of local tensors.
        layouts: of its tensors, as `takes_sequences` has them.
        arguments: by name; all tensors are DTensors on one mesh.

    Raises:
        TypeError: DTensors and other tensors together.
        ValueError: different meshes, a placement that is neither Shard nor Replicate, an axis that cannot be cut, or
            tensors of which not all are cut alike.
    """
    tensors: dict[str, DTensor] = {}
    for name, given in arguments.items():
        if isinstance(given, DTensor):
            tensors[name] = given
        elif isinstance(given, Tensor):
            raise TypeError(f"{name}: expected a DTensor as the others are, got {type(given).__name__}")
    first, mesh = next((name, x.device_mesh) for name, x in tensors.items())
    axes = {name: _axes(layouts.get(name, MARKS.get(name, ())), x, arguments) for name, x in tensors.items()}
    for name, x in tensors.items():
        if x.device_mesh != mesh:
            raise ValueError(f"{name}: expected {first}'s mesh {mesh}, got {x.device_mesh}")
    cuts = [_cut_by(number, tensors, axes) for number in range(mesh.ndim)]
    kinds = [cut.kind for cut in cuts if cut is not None]
    if "heads" in kinds and family in NUMBERED:
        raise ValueError(f"{first}: {family} numbers its heads: expected all of them, got Shard over heads")
    for kind in ("heads", "tokens"):
        if kinds.count(kind) > 1:
            raise ValueError(f"{first}: expected {kind} to be cut by one dimension of the mesh, got several")
    own = {name: x.to_local() if isinstance(x, DTensor) else x for name, x in arguments.items()}
    if "tokens" in kinds:
        group = mesh.get_group(cuts.index(Cut("tokens")))
        # the tokens of one process may be wrong where those of others are not
        spread, _ = agree(group, family, lambda: constructor(**own), lambda _: None)
        return sequence_parallel(spread, group)
    local = constructor(**own)
    if "heads" in kinds and len(local.batch_shape) > 1 and not any(axes.values()):
        raise ValueError(f"{first}: which axis of {family}'s tensors is the batch is not known; pass local tensors")
    shape = list(local.batch_shape)
    placements: list[Any] = []
    for number, cut in enumerate(cuts):
        if cut is None:
            placements.append(Replicate())
            continue
        dim = len(shape) - 1 if cut.kind == "heads" else cut.axis
        placements.append(Shard(dim))
        if cut.kind == "heads":
            shape[dim] *= mesh.size(number)
        else:
            shape[dim] = next(
                x.shape[axis] for name, x in tensors.items() for axis, its in enumerate(axes[name]) if its == cut
            )
    return Sharded(local, mesh, placements, shape)


def _axes(layout: Any, x: DTensor, arguments: Mapping[str, Any]) -> list[Cut | None]:
    """What every axis of a tensor is; nothing where its layout is not known."""
    layout = layout(arguments) if callable(layout) else layout
    for choice in (layout,) if isinstance(layout, str) else layout:
        names = choice.strip("[]").split(", ")
        found: list[Cut | None] = []
        if names[0] == "*batch":
            names = names[1:]
            found = [Cut("batch", axis) for axis in range(x.dim() - len(names))]
        for name in names:
            kind = "batch" if name == "B" else "heads" if name in HEADS else "tokens" if name in TOKENS else None
            found.append(None if kind is None else Cut(kind))
        if len(found) == x.dim():
            return found
    return []


def _cut_by(number: int, tensors: Mapping[str, DTensor], axes: Mapping[str, list[Cut | None]]) -> Cut | None:
    """What a dimension of the mesh cuts, in all tensors that have it; None: nothing."""
    cuts: dict[str, Cut] = {}
    for name, x in tensors.items():
        placement = x.placements[number]
        if type(placement) is Replicate:
            continue
        if type(placement) is not Shard:
            raise ValueError(f"{name}: expected Shard or Replicate, got {placement}: redistribute it")
        # an argument without samples and tokens has its heads first
        known = axes[name] or [Cut("heads")] + [None] * (x.dim() - 1)
        cut = known[placement.dim]
        if cut is None:
            raise ValueError(f"{name}: expected Shard over samples, heads or tokens, got {placement} of {_sizes(x)}")
        size = x.device_mesh.size(number)
        if cut.kind == "heads" and x.shape[placement.dim] % size:
            raise ValueError(f"{name}: expected a number of heads that {size} processes divide, got {_sizes(x)}")
        cuts[name] = cut
    if not cuts:
        return None
    leader, cut = next(iter(cuts.items()))
    for name, x in tensors.items():
        expected = f"{name}: expected Shard over {cut.kind} as {leader} has"
        if name in cuts:
            if cuts[name] != cut:
                raise ValueError(f"{expected}, got {x.placements[number]} of {_sizes(x)}")
        elif any(its == cut and x.shape[axis] > 1 for axis, its in enumerate(axes[name])):
            raise ValueError(f"{expected}, got {x.placements[number]}")
    return cut


def _sizes(x: Tensor) -> list[int]:
    return list(x.shape)
