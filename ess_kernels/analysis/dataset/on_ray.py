"""Shards over the actors of a Ray cluster. An actor makes the model once; one that is killed is replaced."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import optional
from .inputs import Shard
from .processes import Order
from .run_file import clean
from .shard import Outcome

MOST_RESTARTS = 20  # of an actor
MOST_TRIES = 3  # of a shard, whose actor was killed
OBJECT_STORE = 2**27  # bytes, of a Ray that is started here: names of shards and outcomes are all that passes through


class Actor:
    """What Ray keeps in a process of its own."""

    def __init__(self, order: Order):
        clean(order.run.out)  # of what actors that were killed on this machine have left
        self.shards = order.run.shards
        self.analyst = order.analyst()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """From a shard's number to what has become of it, as JSON: Ray's own columns know plain values alone."""
        found = self.analyst(self.shards[row["number"]])
        return {"number": row["number"], "outcome": json.dumps({**vars(found), "shard": None})}


def analyse_on_ray(order: Order, shards: Sequence[Shard], workers: int, num_gpus: float) -> Iterator[Outcome]:
    """What becomes of the shards, in the order in which they are finished. Nothing is said of those that Ray gave up.

    Connects to the cluster that the process is in or that `RAY_ADDRESS` names; without one, Ray is started here for
    as long as it takes.

    Args:
        order: what an actor needs.
        shards: which ones. Their files and the run's directory must be the same files on all machines.
        workers: how many actors.
        num_gpus: how many GPUs each of them has.
    """
    with _started(workers) as data:
        context = data.DataContext.get_current()
        before = context.enable_progress_bars, context.max_errored_blocks
        # a shard that was given up must not end the others: it is missed, and named, afterwards
        context.enable_progress_bars, context.max_errored_blocks = False, -1
        try:
            items = [{"number": shard.number} for shard in shards]
            rows = data.from_items(items, override_num_blocks=len(items))
            work = rows.map(
                Actor,
                fn_constructor_args=(order,),
                compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                num_cpus=1,
                num_gpus=num_gpus or None,
                **_limits(rows.map),
            )
            for row in work.iter_rows():
                shard = order.run.shards[row["number"]]
                yield Outcome(**{**json.loads(row["outcome"]), "shard": shard})
        finally:
            context.enable_progress_bars, context.max_errored_blocks = before


def _limits(function: Callable[..., Any]) -> dict[str, int]:
    """How often an actor and a shard are tried, where Ray's version can be told; otherwise it tries without end."""
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    return {"max_restarts": MOST_RESTARTS, "max_task_retries": MOST_TRIES - 1} if takes_any else {}


@contextlib.contextmanager
def _started(workers: int) -> Iterator[Any]:
    """`ray.data`, with Ray running: the program's own, a cluster's, or one that is stopped afterwards."""
    ray, data = optional.ray()
    if ray.is_initialized():
        yield data
        return
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError:  # there is no cluster
        ray.init(
            num_cpus=max(workers, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
        )
    try:
        yield data
    finally:
        ray.shutdown()
