"""Answers of all processes brought together, and tokens exchanged for heads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import check_positions
from .._readable import check_plain, check_readable
from .agreement import agree, device_of_messages, resolved_group, told_as_one
from .sequence_parallel import LAYOUTS, SequenceParallel, readable, reusable, spans_of_ranks


def gather(result: Any, op: SequenceParallel, positions: Any = None, *, dim: int = -1) -> Any:
    """The answers of all processes, on every one of them.

    All processes of the group have to call this function.

    Args:
        result: what a metric has said of `op` here: a tensor with `P_mine` positions along `dim`, or a tuple of such
            tensors (a count with its certificate).
        op: the operator of `sequence_parallel`.
        positions: those that the metric was asked for, if any.
        dim: the axis of the positions: -1, and -2 for singular values.

    Returns:
        The same with L - 1 positions, or as many as were asked for, in their order.

    Raises:
        DistributedError: on all ranks, if the shape of one is wrong, if one requires grad while gradients are enabled,
            or if they were called differently.
    """
    if not isinstance(op, SequenceParallel):
        raise TypeError(f"op: expected the operator of sequence_parallel, got {type(op).__name__}")
    return _gathered(result, op, reusable(positions), dim, "result")


def _gathered(result: Any, op: SequenceParallel, positions: Any, dim: Any, name: str) -> Any:
    """`gather` of a tensor, or of each field of a tuple; `name` says which one this is, alike on all ranks."""
    if isinstance(result, tuple):
        names = [f"{name}[{number} of {len(result)}]" for number in range(len(result))]
        fields = [_gathered(each, op, positions, dim, its) for each, its in zip(result, names, strict=True)]
        return type(result)(*fields) if hasattr(result, "_fields") else tuple(fields)
    rank = dist.get_rank(op.group)
    is_axis = isinstance(result, Tensor) and _is_integer(dim) and -result.dim() <= dim < result.dim()

    def places() -> list[Tensor]:
        wanted = check_positions(positions, op.length)
        owners = torch.full((op.length,), -1, dtype=torch.int64)
        for owner, spans in enumerate(op.shares):
            for span in spans:
                owners[span.begin : span.begin + span.stop - span.start] = owner
        owner_of = owners[wanted]
        every = [(owner_of == owner).nonzero()[:, 0] for owner in range(len(op.shares))]
        if not isinstance(result, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(result).__name__}")
        check_plain(name, result)
        if not is_axis:
            raise ValueError(f"dim: expected an axis of the result's {result.dim()}, got {dim!r}")
        if result.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: expected no gradient, since none crosses processes: pass {name}.detach()")
        if result.shape[dim] != len(every[rank]):
            raise ValueError(
                f"{name}: expected {len(every[rank])} positions along axis {dim}, as rank {rank} has of those asked "
                f"for, got shape {list(result.shape)}"
            )
        return every

    others = [*result.shape[:dim], *result.shape[dim:][1:]] if is_axis else None
    dtype = result.dtype if isinstance(result, Tensor) else None
    called = f"gather({name} {dtype} with {others} beside the positions, dim={dim!r}, positions={readable(positions)})"
    every, _ = agree(op.group, called, places, lambda _: None)
    moved = result.detach().movedim(dim, 0).contiguous()
    most = max(len(mine) for mine in every)
    mine = moved.new_zeros(most, *moved.shape[1:])
    mine[: len(moved)] = moved
    # bytes, since not every kind of group sends every dtype
    message = mine.flatten().view(torch.uint8).to(device_of_messages(op.group, result.device))
    received = [torch.empty_like(message) for _ in every]
    with told_as_one(op.group):
        dist.all_gather(received, message, group=op.group)
    whole = moved.new_zeros(sum(len(its) for its in every), *moved.shape[1:])
    for its, got in zip(every, received, strict=True):
        whole[its.to(whole.device)] = got.to(whole.device).view(moved.dtype).view(mine.shape)[: len(its)]
    return whole.movedim(0, dim)


def to_heads(
    *tensors: Tensor, group: Any = None, seq_dim: int = 2, head_dim: int = 1, layout: str = "contiguous"
) -> Tensor | tuple[Tensor, ...]:
    """Some tokens of all heads exchanged for all tokens of some heads: what attention needs, whose boundary is long.

    Rank r of R gets the r-th of R runs of heads, as equal as may be; the operator made of them is an ordinary one, its
    answers those of these heads. All processes of the group have to call this function.

    Args:
        tensors: at least one, with this process's tokens along `seq_dim` and all heads along `head_dim`. Where they
            have different numbers of heads, as queries and keys may have, each is a multiple of the smallest, and heads
            that belong together stay together.
        group: a ProcessGroup, a DeviceMesh of one dimension, or None: the world.
        seq_dim, head_dim: axes, counted from 0; those of `[B, H, L, E]` unless said otherwise.
        layout: which tokens a rank has, as in `sequence_parallel`.

    Returns:
        A tensor for each, or the one.

    Raises:
        DistributedError: on all ranks: fewer heads than ranks, wrong axes, unlike shapes, inputs that require grad.
    """
    group = resolved_group(group)
    rank, size = dist.get_rank(group), dist.get_world_size(group)

    def checked() -> tuple[int, int]:
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {LAYOUTS}, got {layout!r}")
        if not tensors or not all(isinstance(x, Tensor) for x in tensors):
            raise TypeError(f"tensors: expected at least one tensor and nothing else, got {_types(tensors)}")
        for number, x in enumerate(tensors):
            check_plain(f"tensors[{number}]", x)
            check_readable(f"tensors[{number}]", [x.resolve_neg()])
            for name, axis in (("seq_dim", seq_dim), ("head_dim", head_dim)):
                if not _is_integer(axis) or not 0 <= axis < x.dim():
                    raise ValueError(f"{name}: expected an axis of shape {list(x.shape)}, from 0 on, got {axis!r}")
            if seq_dim == head_dim:
                raise ValueError(f"head_dim: expected another axis than seq_dim = {seq_dim}")
            if x.requires_grad and torch.is_grad_enabled():
                raise ValueError("tensors: expected none that requires grad: gradients do not cross processes")
        lengths, heads = {x.shape[seq_dim] for x in tensors}, [x.shape[head_dim] for x in tensors]
        if len(lengths) != 1:
            raise ValueError(f"tensors: expected as many tokens in each, got {sorted(lengths)}")
        length, fewest = lengths.pop(), min(heads)
        if layout == "zigzag" and length % 2:
            raise ValueError(f"tensors: expected two chunks of equal length (layout='zigzag'), got {length} tokens")
        if fewest < size:
            raise ValueError(f"tensors: expected at least as many heads as the {size} ranks, got {fewest}")
        if any(number % fewest for number in heads):
            raise ValueError(f"tensors: expected numbers of heads that the smallest one divides, got {heads}")
        return length, fewest

    shapes = [_without(x, seq_dim) if isinstance(x, Tensor) else _types([x]) for x in tensors]
    called = f"to_heads({shapes}, seq_dim={seq_dim!r}, head_dim={head_dim!r}, layout={layout!r})"
    (_, fewest), lengths = agree(group, called, checked, lambda x: x[0])
    spans = spans_of_ranks(lengths, layout)
    edges = [fewest * r // size for r in range(size + 1)]
    exchanged = tuple(
        _exchanged(x.detach(), seq_dim, head_dim, [x.shape[head_dim] // fewest * e for e in edges], spans, rank, group)
        for x in tensors
    )
    return exchanged if len(exchanged) > 1 else exchanged[0]


def _exchanged(
    x: Tensor, seq_dim: int, head_dim: int, edges: list[int], spans: list[Any], rank: int, group: dist.ProcessGroup
) -> Tensor:
    """All tokens of heads `edges[rank] .. edges[rank + 1] - 1`."""
    device = device_of_messages(group, x.device)
    rows = x.resolve_conj().resolve_neg().movedim((head_dim, seq_dim), (0, 1))
    rest = rows.shape[2:]
    lengths = [sum(span.stop - span.start for span in its) for its in spans]
    mine = edges[rank + 1] - edges[rank]
    sent = [rows[start:stop].contiguous().flatten().view(torch.uint8) for start, stop in pairwise(edges)]
    each = x.element_size() * mine * rest.numel()
    received = torch.empty(each * sum(lengths), dtype=torch.uint8, device=device)
    message = torch.cat(sent).to(device)
    with told_as_one(group):
        dist.all_to_all_single(received, message, [each * n for n in lengths], [len(s) for s in sent], group=group)
    whole = rows.new_empty(mine, sum(lengths), *rest)
    for its, piece in zip(spans, received.to(x.device).split([each * n for n in lengths]), strict=True):
        tokens = piece.view(x.dtype).view(mine, sum(span.stop - span.start for span in its), *rest)
        for span in its:
            count = span.stop - span.start
            whole[:, span.begin : span.begin + count] = tokens[:, span.start : span.stop]
    return whole.movedim((0, 1), (head_dim, seq_dim)).contiguous()


def _without(x: Tensor, dim: Any) -> str:
    sizes = list(x.shape)
    if isinstance(dim, int) and 0 <= dim < len(sizes):
        del sizes[dim]
    return f"{x.dtype} {sizes} beside the tokens"


def _is_integer(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _types(values: Any) -> str:
    return ", ".join(type(x).__name__ for x in values) or "none"
