"""How much memory a call really takes beside its inputs: its peak, in a process of its own.

    python -m ess_kernels.testing.peak_memory < options

reads a JSON object a line, such as `{"task": "tolerance_ess", "family": "attention", "length": 1024}`, and prints for
each the peak, what was announced, and the seconds of processor time that the call took, as JSON. The libraries are
loaded once: every measurement is made by a forked copy of the process, on one thread.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

TASKS = (
    "tolerance_ess",
    "entropy_ess",
    "soft_ess",
    "nuclear_norm",
    "singular_values",
    "small_spectra",
    "randomized_ess",
    "reduce",
    "dense",
    "entropy_ess, backward",
    "soft_ess, backward",
    "nuclear_norm, backward",
    "token_influence",
    "state_spectra",
    "causal_ess",
    "compress",
    "bounded_ess",
    "bounded_entropy_ess",
)
FAMILIES = ("attention", "gla", "mamba", "convolution")
# what only operators with a finite state have
OF_STATES = ("state_spectra", "causal_ess")
WITH_STATES = ("gla", "mamba")
CASES = [(task, family) for task in TASKS for family in FAMILIES if task not in OF_STATES or family in WITH_STATES]


class Measurements:
    """A process that makes measurements, one after the other, each with the options of `_measure`.

    What it returns is described at `_measure`. Where the process of a measurement was killed or died, it returns
    `{"died": how}` with what `os.waitstatus_to_exitcode` says of it: a negative number is that of a signal.
    """

    def __enter__(self) -> Measurements:
        command = [sys.executable, "-m", "ess_kernels.testing.peak_memory"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # threads do not survive a fork
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def __call__(self, **options: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that measures ended with {self._process.wait()}")
        return json.loads(line)


def main() -> None:
    import torch

    import ess_kernels as ek

    torch.set_num_threads(1)
    ek.tolerance_ess(torch.ones(4, 4))  # finds out which library is in use
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                print(json.dumps(_measure(**json.loads(line))), flush=True)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            print(json.dumps({"died": code}), flush=True)


def _measure(
    task: str,
    family: str,
    length: int,
    heads: int = 1,
    budget: int | str = "1GiB",
    backend: str = "auto",
    limit: int | None = None,
    positions: list[int] | None = None,
    rtol: bool = False,
) -> dict[str, Any]:
    import ess_kernels as ek
    from ess_kernels import memory

    call = _calls(task, backend, positions, rtol)
    gradient = task.endswith("backward")
    small, op = operator(family, 96, 2, gradient), operator(family, length, heads, gradient)
    # libraries load and threads start at first calls
    call(small)
    with ek.memory_budget(1):
        call(small)
    with ek.memory_budget(budget):
        before = _forget_peak()
        if limit is not None:
            whole = _status("VmSize") + limit
            resource.setrlimit(resource.RLIMIT_AS, (whole, whole))
        start = time.process_time()
        with memory.needs_of_calls() as needs:
            try:
                result, error = call(op), None
            except MemoryError as caught:
                result, error = None, str(caught)
        seconds = time.process_time() - start
    del result
    peak = _status("VmHWM") - before
    announced = max((need.most for need in needs), default=None)
    return {"peak": peak, "announced": announced, "seconds": seconds, "error": error}


def _calls(task: str, backend: str, positions: list[int] | None, rtol: bool) -> Callable[[Any], Any]:
    import torch

    import ess_kernels as ek

    def some(op: Any) -> list[int]:
        return [op.length // 3, op.length // 2] if positions is None else [min(i, op.length - 1) for i in positions]

    def backward(found: torch.Tensor) -> None:
        found.sum().backward()

    atol, relative = (None, 1e-3) if rtol else (1e-2, None)
    return {
        "tolerance_ess": lambda op: ek.tolerance_ess(op, atol, relative, positions and some(op), backend),
        "entropy_ess": lambda op: ek.entropy_ess(op, positions and some(op), backend),
        "soft_ess": lambda op: ek.soft_ess(op, 1e-2, positions and some(op), backend),
        "nuclear_norm": lambda op: ek.nuclear_norm(op, positions and some(op), backend),
        "singular_values": lambda op: ek.singular_values(op, some(op), backend=backend),
        "small_spectra": lambda op: ek.small_spectra(
            torch.rand(op.num_heads * op.length, 16, 16, dtype=torch.float64), backend=backend
        ),
        "randomized_ess": lambda op: ek.randomized_ess(op, some(op), rank=16, atol=1e-2),
        "reduce": lambda op: ek.reduce(op, atol=1e-2),
        "dense": lambda op: op.dense(),
        "entropy_ess, backward": lambda op: backward(ek.entropy_ess(op, some(op), backend)),
        "soft_ess, backward": lambda op: backward(ek.soft_ess(op, 1e-2, some(op), backend)),
        "nuclear_norm, backward": lambda op: backward(ek.nuclear_norm(op, some(op), backend)),
        "token_influence": lambda op: ek.token_influence(op),
        "state_spectra": lambda op: ek.state_spectra(op, "causal", some(op)),
        "causal_ess": lambda op: ek.causal_ess(op, positions=some(op)),
        "compress": lambda op: ek.compress(op, 1e-2, max_rank=64),
        "bounded_ess": lambda op: ek.bounded_ess(op, 1e-2, positions and some(op)),
        "bounded_entropy_ess": lambda op: ek.bounded_entropy_ess(op, positions and some(op)),
    }[task]


def operator(family: str, length: int, heads: int, gradient: bool = False) -> Any:
    """Heads of one of `FAMILIES`; `gradient`: whether one of its inputs requires grad."""
    import torch

    import ess_kernels as ek

    torch.manual_seed(length)
    if family == "attention":
        q, k = torch.randn(2, 1, heads, length, 64)
        return ek.operators.attention(q.requires_grad_(gradient), k)
    if family == "gla":
        q, k, g = torch.randn(3, 1, length, heads, 64)
        return ek.operators.gla(q.requires_grad_(gradient), k, torch.nn.functional.logsigmoid(g) / 16)
    if family == "mamba":
        delta, A = torch.rand(1, heads, length), -torch.rand(heads, 16) - 0.5
        return ek.operators.selective_scan(delta.requires_grad_(gradient), A, *torch.randn(2, 1, 16, length))
    if family == "convolution":
        t = torch.arange(length)
        return ek.operators.convolution((torch.randn(heads, length) / (1 + t)).requires_grad_(gradient))
    raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")


def _status(name: str) -> int:
    """A line of `/proc/self/status`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}")


def _forget_peak() -> int:
    """Resets the peak of this process, and returns what it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


if __name__ == "__main__":
    main()
