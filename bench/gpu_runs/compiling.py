"""Compiling kernels before they are needed: what a launch would compile, and a process that compiles it.

    PYTHONPATH=$PWD/bench python -m gpu_runs.compiling --output FILE < LINES

A kernel's machine code depends on its launch: on the types of the arguments, on which of them are 1 or multiples of
16, on constants and warps. Guessing all that beside the launches would go wrong unnoticed, so launches tell it
themselves. While `recording`, Triton prepares each launch as always, up to the point where it would compile; there its
own hook gets all that the compiler needs, as text, and the launch is left out. A process of this script hands such a
text to Triton's `preload`, which compiles it as the launch would have done and puts it into the cache on disk. There
the launch finds it, for both come to the same key by the same code of Triton's. (`kernel.warmup` would compile the
same, but only where the arguments are: in one process, one kernel after the other.) Compiling asks no GPU: a stand-in
for CUDA's driver says for which kind of card it is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triton import knobs
from triton.runtime import driver

from ess_kernels.testing.driver import install

Say = Callable[..., None]


@contextmanager
def recording(say: Say) -> Iterator[None]:
    """Inside, kernels are neither compiled nor launched; a line `kernel` is said for each that would be compiled."""
    known: set[str] = set()

    def hook(*, fn: Any, compile: dict[str, Any], **rest: Any) -> bool:
        data = compile["specialization_data"]
        if data not in known:
            known.add(data)
            capability = driver.active.get_current_target().arch
            say(kind="kernel", name=title(fn, compile), module=fn.module, data=data, capability=capability)
        # yes: this hook has taken care of it
        return True

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, hook
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before


def title(fn: Any, compile: dict[str, Any]) -> str:
    """A kernel with what was chosen for it, for people; strides and the like are left out."""
    chosen = [
        f"{fn.jit_function.params[path[0]].name}={value}"
        for path, value in compile["constants"].items()
        if fn.jit_function.params[path[0]].is_constexpr
    ]
    return " ".join([fn.name, *chosen, f"warps={compile['num_warps']}"])


def tell_compiled(say: Say) -> None:
    """From now on a line `late` is said for every kernel that this process compiles: none was in the cache."""

    def listener(*, src: Any, times: Any, cache_hit: bool, **rest: Any) -> None:
        if not cache_hit:
            say(kind="late", name=src.name, seconds=times.total / 1e6)

    knobs.compilation.listener = listener


class Absent:
    """A card that is not there: kernels are compiled for it, and cannot be launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def launch(self, source: Any, *rest: Any) -> None:
        raise RuntimeError(f"{source.name}: this card only pretends to be there, nothing can be launched on it")


def pretend(capability: int) -> None:
    """From now on Triton compiles for `sm_<capability>`, and no GPU is asked."""
    install(Absent(capability))


def compile_one(module: str, data: str) -> None:
    """Into the cache. `data` is Triton's own text."""
    place = importlib.import_module(module)
    name = json.loads(data)["name"].removeprefix(f"{module}.")
    getattr(place, name).preload(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="lines of JSON are appended here")
    arguments = parser.parse_args()
    capability = None
    with arguments.output.open("a") as out:
        for line in sys.stdin:
            kernel = json.loads(line)
            if capability != kernel["capability"]:
                capability = kernel["capability"]
                pretend(capability)
            begin, failure = time.perf_counter(), None
            try:
                compile_one(kernel["module"], kernel["data"])
            except Exception as problem:
                failure = f"{type(problem).__name__}: {' '.join(str(problem).split())[-300:]}"
            seconds = time.perf_counter() - begin
            out.write(json.dumps({"kind": "compiled", "failure": failure, "seconds": seconds}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
