"""Processes that work through named groups: several side by side, each group once, and none pays for another's crash.

A process says what it does by lines of JSON. `{"kind": "start", "key": ...}` comes before a group and `{"kind": "end",
"key": ...}` behind it; `{"kind": "stopped"}` says that it leaves the rest alone, for want of time.

Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

BENCH = Path(__file__).resolve().parent.parent
# what can become of a group; who reads the lines of one that is done says whether it has passed
DONE, FAILED, NOT_REACHED = "done", "failed", "not reached"
Line = dict[str, Any]


class Job:
    """A process that appends lines of JSON to a file, and its errors to another.

    Args:
        folder: for these files.
        program: a module of this package, or the path of a script.
        listens: whether it can be told lines.
        settings: environment variables of its own.
    """

    def __init__(
        self,
        folder: Path,
        program: str | Path,
        *arguments: str,
        listens: bool = False,
        settings: Mapping[str, str] | None = None,
    ):
        stem = f"{Path(program).stem}-{time.monotonic_ns()}"
        self.lines, self.log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
        self.read = 0
        self.heard = time.monotonic()
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TRITON_CACHE_AUTOTUNING": "1"} | dict(settings or {})
        # ess_kernels need not be installed
        places = [str(BENCH), str(BENCH.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(places)
        # many processes side by side, and none of them needs the CPU for much
        environment.setdefault("OMP_NUM_THREADS", "2")
        module = ["-m", f"{__package__}.{program}"] if isinstance(program, str) else [str(program)]
        command = [sys.executable, *module, "--output", str(self.lines), *arguments]
        stdin = subprocess.PIPE if listens else subprocess.DEVNULL
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, text=True
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tell(self, line: Line) -> None:
        """A line of JSON for the process to read; one that has ended reads nothing."""
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def news(self) -> Iterator[Line]:
        """Complete lines that were not read before."""
        if not self.lines.exists():
            return
        with self.lines.open() as file:
            file.seek(self.read)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break
                self.read += len(line.encode())
                self.heard = time.monotonic()
                yield json.loads(line)

    def end(self) -> None:
        if self.running:
            self.process.kill()
        self.process.wait()
        if self.process.stdin:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def how_it_ended(self) -> str:
        text = self.log.read_text(errors="replace").strip().splitlines()
        last_words = " | ".join(line.strip() for line in text[-4:])[-400:]
        return f"its process ended with status {self.process.returncode}: {last_words}"


class Part(Protocol):
    """Something that goes on a little at every `step`, for `work_on`."""

    @property
    def busy(self) -> bool: ...

    def step(self) -> None: ...

    def stop(self) -> None: ...


def work_on(parts: Iterable[Part], until: float) -> None:
    """Goes on with all parts until they have nothing left to do, or until the time, of `time.monotonic`, has come."""
    parts = list(parts)
    try:
        while any(part.busy for part in parts) and time.monotonic() < until:
            for part in parts:
                part.step()
            time.sleep(0.05)
    finally:
        for part in parts:
            part.stop()


@dataclass
class _Lane:
    job: Job
    # groups that have not ended, in their order, and the one in work
    rest: list[str]
    current: str | None = None
    # whether this process has ended a group
    useful: bool = False


class Lanes:
    """Groups in lanes: those of one lane run one after the other in one process.

    Behind a group that ends its process, or makes it silent for too long, the rest of the lane goes on in a fresh one.
    The group itself is not tried again.
    """

    def __init__(
        self,
        lanes: Iterable[Iterable[str]],
        start: Callable[[list[str]], Job],
        hear: Callable[[Line], None],
        settle: Callable[[str, str, str], None],
        workers: int,
        patience: float,
    ):
        """
        Args:
            lanes: the groups' keys.
            start: a process for these keys.
            hear: gets every line of a process, but for `start` and `stopped`.
            settle: gets every key once: its key, `DONE`, `FAILED` or `NOT_REACHED`, and why.
            workers: processes at a time.
            patience: seconds of silence after which a process is taken for dead.
        """
        self.waiting = [list(lane) for lane in lanes]
        self.running: list[_Lane] = []
        self.start, self.hear, self.settle = start, hear, settle
        self.workers, self.patience = workers, patience

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> None:
        while self.waiting and len(self.running) < self.workers:
            keys = self.waiting.pop(0)
            self.running.append(_Lane(self.start(keys), keys))
        for lane in list(self.running):
            # asked before its lines are read, or the last ones might be missed
            ended = not lane.job.running
            self._listen(lane)
            if ended:
                self._over(lane, lane.job.how_it_ended())
            elif time.monotonic() - lane.job.heard > self.patience:
                self._over(lane, f"nothing was heard for {self.patience:.0f} s")

    def stop(self) -> None:
        """Ends all processes; what has not ended was not reached."""
        for lane in self.running:
            lane.job.end()
            self._listen(lane)
            for key in lane.rest:
                self.settle(key, NOT_REACHED, "the time was up" + " before it had ended" * (key == lane.current))
        for key in (key for keys in self.waiting for key in keys):
            self.settle(key, NOT_REACHED, "the time was up")
        self.running, self.waiting = [], []

    def _listen(self, lane: _Lane) -> None:
        for line in lane.job.news():
            if line["kind"] == "start":
                lane.current = line["key"]
            elif line["kind"] == "stopped":
                for key in lane.rest:
                    self.settle(key, NOT_REACHED, "too little time was left")
                lane.rest = []
            else:
                self.hear(line)
            if line["kind"] == "end":
                lane.rest.remove(line["key"])
                lane.current, lane.useful = None, True
                self.settle(line["key"], DONE, "")

    def _over(self, lane: _Lane, why: str) -> None:
        lane.job.end()
        self._listen(lane)
        self.running.remove(lane)
        if lane.rest and (lane.current is not None or not lane.useful):
            # the one in work, or the first if none ever started, lest it go on for ever
            key = lane.current or lane.rest[0]
            lane.rest.remove(key)
            self.settle(key, FAILED, why)
        if lane.rest:
            self.waiting.insert(0, lane.rest)
