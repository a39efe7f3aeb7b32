"""A rehearsal of checks and rows: all of their launches in order to learn which kernels they need, and no kernel runs.

    PYTHONPATH=$PWD/bench python -m gpu_runs.rehearse --output FILE --groups NAME,NAME --rows KEY,KEY
        [--toy] [--capability 90]

Everything but kernels runs as always, on the GPU, rows at the sizes that need the same kernels in less time. In place
of what a kernel would have written there are random numbers: with these much is doubtful and done again, so that also
the unusual ways are rehearsed. A kernel that is missed all the same is compiled when it is needed, and the report says
so. A group that cannot go on with such numbers, or takes longer than `LONGEST`, ends there, and is not called failed.

`--capability` is for a machine without a GPU: tensors lie on the CPU, and kernels are prepared for this kind of card.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ess_kernels as ek
from ess_kernels.operators import Operator

from . import checks, compiling
from .cases import row
from .inputs import DEVICE, matrices, operator, require_device
from .measure import DEAD, LARGE_BUDGET, Mode, alive, ask, described, environment, memory_budget
from .timing import DOT_LOOPS, dot_loop

# seconds of one group
LONGEST = 12.0


class Unwritten(TorchDispatchMode):
    """Inside, memory that nobody has written holds random numbers; integers, which may be addresses, are zero."""

    NAMES = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.NAMES:
            result.normal_() if result.is_floating_point() else result.zero_()
        return result


class TooLong(BaseException):
    """No `Exception`: nothing on the way shall take it for a problem of its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"{seconds:.0f} s were not enough")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ones(op: Operator) -> Tensor:
    """In place of the singular values that answers are compared with: they take long, and no kernel depends on them."""
    return torch.ones(*op.batch_shape, op.length - 1, 1, dtype=torch.float64, device=DEVICE)


def rehearse_checks(group: str) -> None:
    for _ in checks.GROUPS[group]():
        pass


def rehearse_row(key: str, mode: Mode) -> None:
    """The calls of `measure.measure` that launch kernels of the package."""
    if key == "ceilings":
        for tile in DOT_LOOPS:
            dot_loop(*tile, mode.toy)[0]()
        return
    this = row(key)
    sizes = mode.sizes(this)
    if this.family == "spectra":
        ek.small_spectra(matrices(sizes), backend="triton")
        return
    op = operator(this, sizes)
    ask(op, this, sizes, "triton")
    if this.metric != "randomized":
        with memory_budget(LARGE_BUDGET):
            ask(op, this, sizes, "triton")
    peer = mode.peer_sizes(this)
    ask(operator(this, peer), this, peer, "triton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="lines of JSON are appended here")
    parser.add_argument("--groups", default="", help="of checks, separated by commas")
    parser.add_argument("--rows", default="", help="keys, separated by commas; 'ceilings' is one too")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--capability", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.capability is None:
        require_device(toy=False)
    else:
        compiling.pretend(arguments.capability)
    checks.TOY = arguments.toy
    checks.values_of = ones
    mode = Mode(arguments.toy, warm=True)
    work = [(name, rehearse_checks, (name,)) for name in filter(None, arguments.groups.split(","))]
    work += [(key, rehearse_row, (key, mode)) for key in filter(None, arguments.rows.split(","))]
    with arguments.output.open("a") as out:

        def say(**line: Any) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        # first of all, for the report is called after the card
        say(kind="environment", found=environment())
        with compiling.recording(say):
            for key, function, given in work:
                say(kind="start", key=key)
                problem = None
                try:
                    with at_most(LONGEST), Unwritten():
                        function(*given)
                except (Exception, TooLong) as error:
                    problem = described(error)
                say(kind="end", key=key, problem=problem)
                if not alive():
                    sys.exit(DEAD)


if __name__ == "__main__":
    main()
