"""Several processes that compile kernels, for `gpu.py`: see compiling.py. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .jobs import Job, Line


class Compilers:
    """Kernels go to whichever process is idle. One that ends its process has failed, and another process goes on.

    Attributes:
        compiled: names and seconds of kernels that are in the cache now.
        failures: kernels that could not be compiled: name and why.
        left: names of those that there was no time for.
    """

    def __init__(self, start: Callable[[], Job], workers: int):
        self.start, self.workers = start, workers
        # all at once, while nothing is known yet: they need some seconds to import torch
        self.jobs: dict[Job, Line | None] = {start(): None for _ in range(workers)}
        self.waiting: list[Line] = []
        self.known: set[str] = set()
        self.compiled: list[tuple[str, float]] = []
        self.failures: list[tuple[str, str]] = []
        self.left: list[str] = []

    def add(self, kernel: Line) -> None:
        """A line of `compiling.recording`; one that came before is left out."""
        if kernel["data"] not in self.known:
            self.known.add(kernel["data"])
            self.waiting.append(kernel)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or any(self.jobs.values()))

    def step(self) -> None:
        for job in list(self.jobs):
            # asked before its lines are read, or the last ones might be missed
            ended = not job.running
            self._listen(job)
            if not ended:
                continue
            if kernel := self.jobs.pop(job):
                self.failures.append((kernel["name"], job.how_it_ended()))
            job.end()
        idle = [job for job, kernel in self.jobs.items() if kernel is None]
        while self.waiting and (idle or len(self.jobs) < self.workers):
            job = idle.pop() if idle else self.start()
            self.jobs[job] = self.waiting.pop(0)
            job.tell(self.jobs[job])

    def stop(self) -> None:
        for job in self.jobs:
            job.end()
            self._listen(job)
        self.left = [kernel["name"] for kernel in [*filter(None, self.jobs.values()), *self.waiting]]
        self.jobs, self.waiting = {}, []

    def _listen(self, job: Job) -> None:
        for line in job.news():
            kernel = self.jobs[job]
            assert kernel is not None, line
            self.jobs[job] = None
            if line["failure"] is None:
                self.compiled.append((kernel["name"], line["seconds"]))
            else:
                self.failures.append((kernel["name"], line["failure"]))

    def found(self) -> dict[str, Any]:
        """For the report."""
        return {
            "kernels": len(self.compiled),
            "compile_seconds": sum(seconds for _, seconds in self.compiled),
            "slowest": sorted(self.compiled, key=lambda found: -found[1])[:3],
            "failures": self.failures,
            "left": self.left,
        }
