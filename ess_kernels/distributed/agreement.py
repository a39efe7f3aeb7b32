"""One error for all processes of a group: whoever has a problem tells the others before any tensor moves.

A process that raised by itself would leave the others in a collective operation, waiting until its timeout. So every
collective call begins with a status word, in which each rank says what is wrong with its input, how it was called, and
what the others have to know. A process that has died, or does not answer within the group's timeout, is found there or
in a later message, and raises the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .._version import __version__


class DistributedError(RuntimeError):
    """A call that processes make together has failed on one of them: the message says on which rank, and why."""


class Word(NamedTuple):
    """The status word of a rank.

    Attributes:
        problem: what is wrong here, or None.
        called: how the function was called, which must be the same on all ranks.
        told: whatever else the others have to know.
    """

    problem: str | None
    called: str
    told: Any


def resolved_group(group: Any) -> dist.ProcessGroup:
    """The process group meant by a group, a 1-D mesh of devices or None, the world.

    Raises:
        RuntimeError: there is no process group.
        TypeError, ValueError: it is none of the three, a mesh of more dimensions, or a group that lacks this process.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "group: no process group: start the program with torchrun and call torch.distributed.init_process_group"
        )
    if group is None:
        return dist.group.WORLD  # type: ignore[return-value]
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group: expected a group that has this process, got what new_group gives to all others")
    if isinstance(group, dist.ProcessGroup):
        if dist.get_rank(group) < 0:
            raise ValueError("group: expected a group that has this process, got one of other processes")
        return group
    if type(group).__name__ == "DeviceMesh":
        if group.ndim != 1:
            raise ValueError(f"group: expected a mesh of one dimension, got {group.ndim}: pass mesh['name of one']")
        if group.get_coordinate() is None:
            raise ValueError("group: expected a mesh that has this process, got one of other processes")
        return group.get_group()
    raise TypeError(f"group: expected a ProcessGroup, a DeviceMesh of one dimension or None, got {_type(group)}")


@contextmanager
def told_as_one(group: dist.ProcessGroup) -> Iterator[None]:
    """Turns the error of a message that did not come into a DistributedError."""
    try:
        yield
    except DistributedError:
        raise
    except (RuntimeError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise DistributedError(
            f"rank {dist.get_rank(group)}: another rank is gone, or has not answered in time: {first[:200]}"
        ) from error


def tried(work: Callable[[], Any]) -> tuple[Any, str | None, Exception | None]:
    """What `work` returns, or the problem and the error that it raises."""
    try:
        return work(), None, None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}", error


def agree(group: dist.ProcessGroup, called: str, work: Callable[[], Any], told: Callable[[Any], Any]) -> Any:
    """What `work()` returns here and `[told(result)]` of every rank, in their order.

    Args:
        called: how this rank was called, with all that must be the same on every rank.
        work: all that can go wrong by this rank's input; no message is sent in it.
        told: what the other ranks have to know of the result.

    Raises:
        DistributedError: on all ranks, if any has a problem, or if they were called differently.
    """

    def both() -> tuple[Any, Any]:
        result = work()
        return result, told(result)

    found, problem, error = tried(both)
    words = exchanged(
        group, Word(problem, f"{called} (ess_kernels {__version__})", None if found is None else found[1])
    )
    problems = [(rank, word.problem) for rank, word in enumerate(words) if word.problem is not None]
    if problems:
        raise DistributedError(_by_rank(problems)) from error
    if any(word.called != words[0].called for word in words):
        calls = _by_rank([(rank, word.called) for rank, word in enumerate(words)])
        raise DistributedError(f"ranks were called differently: {calls}")
    assert found is not None
    return found[0], [word.told for word in words]


def _by_rank(said: list[tuple[int, str]]) -> str:
    """What ranks have said, each sentence once."""
    ranks: dict[str, list[str]] = {}
    for rank, words in said:
        ranks.setdefault(words, []).append(str(rank))
    return "; ".join(f"rank{'s' * (len(its) > 1)} {', '.join(its)}: {words}" for words, its in ranks.items())


def exchanged(group: dist.ProcessGroup, word: Word) -> list[Word]:
    """The words of all ranks."""
    words: list[Any] = [None] * dist.get_world_size(group)
    with told_as_one(group):
        dist.all_gather_object(words, word, group=group)
    return words


def device_of_messages(group: dist.ProcessGroup, device: torch.device) -> torch.device:
    """Where tensors have to lie that are sent: NCCL takes those on a GPU only, Gloo those of the CPU."""
    return torch.device("cpu") if dist.get_backend(group) == "gloo" else device


def _type(x: Any) -> str:
    return type(x).__name__
