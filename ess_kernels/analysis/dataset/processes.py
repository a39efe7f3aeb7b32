"""Shards over processes of this machine. One that is killed costs the shard that it had, and no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch

from ess_kernels.processes import forked

from .inputs import Shard
from .models import MakeModel, load
from .prompts import one_line
from .run_file import Run
from .shard import Analyst, Outcome

# after so many workers in a row that end with nothing done, the next one would end so too
MOST_DEATHS = 3
NOT_BEGUN = "not begun: {} workers in a row ended with nothing done"


class WorkerFailed(RuntimeError):
    """A worker cannot make its model."""


class Order(NamedTuple):
    """What a worker needs: all of it can be pickled."""

    run: Run
    id_kind: str
    make: MakeModel | None
    tokenizer: Any

    def analyst(self) -> Analyst:
        """Makes the model."""
        return Analyst(self.run, self.id_kind, None if self.make is None else load(self.make(), self.tokenizer))


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection
    shard: Shard


def analyse_in_processes(order: Order, shards: Iterable[Shard], workers: int) -> Iterator[Outcome]:
    """What becomes of the shards, in the order in which they are finished. Workers end when the iterator is closed.

    Raises:
        WorkerFailed: the model could not be made.
    """
    todo = deque(shards)
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    busy: dict[int, _Worker] = {}
    deaths = 0
    try:
        for place in range(min(workers, len(todo))):
            busy[place] = _start(context, order, threads, place, todo.popleft())
        while busy:
            ready = wait([worker.connection for worker in busy.values()])
            for place in [place for place, worker in busy.items() if worker.connection in ready]:
                worker = busy[place]
                outcome, alive = _answer(worker)
                deaths = 0 if alive else deaths + 1
                yield outcome
                if deaths >= max(MOST_DEATHS, workers):
                    while todo:
                        yield Outcome(todo.popleft(), False, reason=NOT_BEGUN.format(deaths))
                if not todo:
                    _end(busy.pop(place), kill=False)
                elif alive:
                    busy[place] = worker._replace(shard=todo.popleft())
                    _send(worker.connection, busy[place].shard)
                else:
                    busy[place] = _start(context, order, threads, place, todo.popleft())
    finally:
        for worker in busy.values():
            _end(worker, kill=True)


def _start(context: Any, order: Order, threads: int, place: int, shard: Shard) -> _Worker:
    mine, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, order, threads, place), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    _send(mine, shard)
    return _Worker(process, mine, shard)


def _send(connection: Connection, shard: Shard | None) -> None:
    with contextlib.suppress(OSError):  # a process that has ended: `_answer` sees it
        connection.send(shard)


def _answer(worker: _Worker) -> tuple[Outcome, bool]:
    """What has become of the worker's shard, and whether the worker lives."""
    try:
        found = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        _end(worker, kill=False)
        return Outcome(worker.shard, False, reason=f"its worker {how}"), False
    if isinstance(found, str):
        raise WorkerFailed(found)
    return found, True


def _end(worker: _Worker, kill: bool) -> None:
    if kill:
        worker.process.kill()
    else:
        _send(worker.connection, None)
    worker.connection.close()
    worker.process.join()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _work(connection: Connection, order: Order, threads: int, place: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    assert not forked()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    use_gpu(place)
    try:
        analyst = order.analyst()
    except Exception as error:
        connection.send(one_line(error))
        return
    while (shard := connection.recv()) is not None:
        connection.send(analyst(shard))


def use_gpu(place: int) -> None:
    """Makes a GPU the current one of this process: worker after worker takes the next."""
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())


def _end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however that came about."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
