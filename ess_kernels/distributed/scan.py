"""What arrives at the edges of every process's slice: an exclusive scan over the processes.

Up to `FEW` processes all summaries are gathered at once, and every process joins those before and after its own. Of
more processes none may hold all: each sends what it knows to the process 1, 2, 4, ... places away, which doubles what
the other knows, and at last to its neighbour: `ceil(log2 R) + 1` messages in each direction, both directions at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .agreement import device_of_messages, told_as_one

# up to this many processes one gathering is faster than the messages of a scan
FEW = 8


class Summary(ABC):
    """What a process tells of its slice.

    Attributes:
        tensors: all of it, of the same shapes on all ranks.
        rows: a number that travels with them.
    """

    rows: int

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def of(self, tensors: Sequence[Tensor], rows: int) -> Self:
        """Another one of other tensors."""

    @abstractmethod
    def then(self, later: Self) -> Self:
        """This one, followed by `later`."""


S = TypeVar("S", bound=Summary)


def arriving(up: Sequence[S], down: Sequence[S], group: dist.ProcessGroup) -> tuple[list[S | None], list[S | None]]:
    """What all lower ranks together add to the summaries `up`, and all higher ranks to the summaries `down`.

    Those of `up` are joined in the order of the ranks, those of `down` in the reverse order. None where there is no
    such rank. All ranks have equally many, of the same shapes.
    """
    with told_as_one(group):
        return _gathered(up, down, group) if dist.get_world_size(group) <= FEW else _scanned(up, down, group)


class Messages(Generic[S]):
    """Summaries as flat tensors, and back."""

    def __init__(self, like: Sequence[S], group: dist.ProcessGroup):
        self.like, self.group = like, group
        self.own_device = like[0].tensors[0].device if like else torch.device("cpu")
        self.device = device_of_messages(group, self.own_device)
        self.size = sum(1 + sum(x.numel() for x in summary.tensors) for summary in like)

    def written(self, summaries: Sequence[S]) -> Tensor:
        pieces = []
        for summary in summaries:
            tensors = summary.tensors
            pieces += [tensors[0].new_tensor([summary.rows]), *(x.reshape(-1) for x in tensors)]
        return torch.cat(pieces).to(self.device) if pieces else self.room()

    def room(self) -> Tensor:
        return torch.empty(self.size, dtype=torch.float64, device=self.device)

    def read(self, message: Tensor) -> list[S]:
        message, summaries, at = message.to(self.own_device), [], 0
        for like in self.like:
            rows, at, tensors = int(message[at]), at + 1, []
            for x in like.tensors:
                tensors.append(message[at : at + x.numel()].view(x.shape))
                at += x.numel()
            summaries.append(like.of(tensors, rows))
        return summaries


def _joined(first: Sequence[S] | None, later: Sequence[S]) -> list[S]:
    if first is None:
        return list(later)
    return [one.then(other) for one, other in zip(first, later, strict=True)]


def _gathered(up: Sequence[S], down: Sequence[S], group: dist.ProcessGroup) -> tuple[list[S | None], list[S | None]]:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    messages = Messages([*up, *down], group)
    every = [messages.room() for _ in range(size)]
    dist.all_gather(every, messages.written([*up, *down]), group=group)
    from_below: list[S] | None = None
    from_above: list[S] | None = None
    for other in range(rank):
        from_below = _joined(from_below, messages.read(every[other])[: len(up)])
    for other in range(size - 1, rank, -1):
        from_above = _joined(from_above, messages.read(every[other])[len(up) :])
    return _or_none(from_below, len(up)), _or_none(from_above, len(down))


def _scanned(up: Sequence[S], down: Sequence[S], group: dist.ProcessGroup) -> tuple[list[S | None], list[S | None]]:
    size = dist.get_world_size(group)
    rising, falling = Messages(up, group), Messages(down, group)
    known_up, known_down, step = list(up), list(down), 1
    while step < size:
        below, above = _shifted(known_up, known_down, step, rising, falling)
        known_up, known_down = _joined(below, known_up), _joined(above, known_down)
        step *= 2
    below, above = _shifted(known_up, known_down, 1, rising, falling)
    return _or_none(below, len(up)), _or_none(above, len(down))


def _shifted(
    up: Sequence[S], down: Sequence[S], step: int, rising: Messages[S], falling: Messages[S]
) -> tuple[list[S] | None, list[S] | None]:
    """What ranks `step` below and above send here, while this one sends `up` and `down` there."""
    group = rising.group
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    requests: list[dist.P2POp] = []
    received: list[Tensor | None] = []
    for messages, summaries, by in ((rising, up, step), (falling, down, -step)):
        if summaries and 0 <= rank + by < size:
            peer = dist.get_global_rank(group, rank + by)
            requests.append(dist.P2POp(dist.isend, messages.written(summaries), peer, group))
        got = messages.room() if summaries and 0 <= rank - by < size else None
        if got is not None:
            requests.append(dist.P2POp(dist.irecv, got, dist.get_global_rank(group, rank - by), group))
        received.append(got)
    for request in dist.batch_isend_irecv(requests) if requests else ():
        request.wait()
    below, above = (None if got is None else m.read(got) for m, got in zip((rising, falling), received, strict=True))
    return below, above


def _or_none(summaries: list[S] | None, count: int) -> list[S | None]:
    return [None] * count if summaries is None else list(summaries)
