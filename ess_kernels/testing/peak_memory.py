"""How much memory a call really takes beside its inputs: its peak, in a process of its own.

    python -m ess_kernels.testing.peak_memory '{"task": "tolerance_ess", "family": "attention", "length": 1024}'

prints the peak, what was announced, and the seconds of processor time that the call took, as JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
)
FAMILIES = ("attention", "gla", "mamba", "convolution")


def measure(**options: Any) -> dict[str, Any]:
    """What the command above prints for some options: those of `_measure`, `limit` (RLIMIT_AS in bytes beside what the
    process has when the call begins) and `threads`.

    Raises:
        subprocess.CalledProcessError: the process died.
    """
    done = subprocess.run(
        [sys.executable, "-m", "ess_kernels.testing.peak_memory", json.dumps(options)], check=True, capture_output=True
    )
    return json.loads(done.stdout)


def main() -> None:
    options = json.loads(sys.argv[1])
    import torch

    torch.set_num_threads(options.pop("threads", 1))
    print(json.dumps(_measure(**options)))


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
    small, op = _operator(family, 96, 2), _operator(family, length, heads)
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
    }[task]


def _operator(family: str, length: int, heads: int) -> Any:
    import torch

    import ess_kernels as ek

    torch.manual_seed(length)
    if family == "attention":
        return ek.operators.attention(*torch.randn(2, 1, heads, length, 64))
    if family == "gla":
        q, k, g = torch.randn(3, 1, length, heads, 64)
        return ek.operators.gla(q, k, torch.nn.functional.logsigmoid(g) / 16)
    if family == "mamba":
        delta, A = torch.rand(1, heads, length), -torch.rand(heads, 16) - 0.5
        return ek.operators.selective_scan(delta, A, *torch.randn(2, 1, 16, length))
    if family == "convolution":
        t = torch.arange(length)
        return ek.operators.convolution(torch.randn(heads, length) / (1 + t))
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
