"""Time on the device: events around whole calls, medians of many, ceilings of the card, and calls taken apart.

Before every timed call a buffer several times the size of a GPU's L2 is overwritten, so that nothing is found in it,
and the device is idle: what is measured is what a caller waits for, the host's own work included.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ess_kernels.backends.triton.recurrence import engine as recurrence
from ess_kernels.backends.triton.recurrence import parts, passes, scans, small
from ess_kernels.backends.triton.staircase import descent, leaf, splits

CUDA = torch.cuda.is_available()
FLUSHED_BYTES = 1 << 28
MOST_RUNS = 200


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def _once(call: Callable[[], Any], flushed: Tensor | None) -> float:
    """Milliseconds of one call."""
    if not CUDA:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    if flushed is not None:
        flushed.zero_()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def clock(call: Callable[[], Any], seconds: float, once: bool = False) -> dict[str, Any]:
    """Median milliseconds of as many calls as fit into the time, at least three, after one that warms up.

    The one that warms up is timed by itself (`first_ms`): kernels are compiled or loaded in it. With `once` it is all.
    """
    first = _once(call, None)
    if once:
        return {"ms": first, "runs": 1, "warm": False, "first_ms": first}
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda") if CUDA else None
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < MOST_RUNS:
        times.append(_once(call, flushed))
        spent = time.perf_counter() - start
        # a call that takes longer than its share is not repeated much
        if spent > seconds and (len(times) >= 3 or spent > 3 * seconds):
            break
    times.sort()
    quarter = len(times) // 4
    return {
        "ms": statistics.median(times),
        "runs": len(times),
        "warm": True,
        "first_ms": first,
        "least_ms": times[0],
        "most_ms": times[-1],
        "spread": (times[-1 - quarter] - times[quarter]) / statistics.median(times),
    }


# --- ceilings ---------------------------------------------------------------------------------------------------------


@triton.jit
def dot_loop_kernel(A, B, OUT, turns, M: tl.constexpr, N: tl.constexpr):
    """Two independent chains of products `[M, 16] x [16, N]` in float64, operands and sums in registers."""
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, 16)
    a = tl.load(A + i[:, None] * 16 + k[None, :])
    b = tl.load(B + k[:, None] * N + j[None, :])
    # from different starts, or a compiler would see that they are the same
    one = tl.zeros([M, N], tl.float64)
    other = tl.full([M, N], 1.0, tl.float64)
    turn = 0
    while turn < turns:
        one = tl.dot(a, b, one, out_dtype=tl.float64)
        other = tl.dot(a, b, other, out_dtype=tl.float64)
        turn += 1
    at = tl.program_id(0).to(tl.int64) * M * N + i[:, None] * N + j[None, :]
    tl.store(OUT + at, one + other)


# rows, columns and warps of a program
DOT_LOOPS = ((16, 32, 1), (16, 64, 4), (64, 64, 4))


def dot_loop(M: int, N: int, warps: int, toy: bool) -> tuple[Callable[[], Any], float]:
    """A call that only multiplies, with one to eight programs a multiprocessor, and its operations."""
    if CUDA:
        programs = torch.cuda.get_device_properties(0).multi_processor_count * (8 // warps) * 4
    else:
        programs = 1
    turns = 2 if toy else 2000
    device = "cuda" if CUDA else "cpu"
    a, b = (torch.randn(*shape, dtype=torch.float64, device=device) for shape in ((M, 16), (16, N)))
    out = torch.empty(programs, M, N, dtype=torch.float64, device=device)
    return (
        lambda: dot_loop_kernel[(programs,)](a, b, out, turns, M=M, N=N, num_warps=warps, num_stages=1),
        2.0 * M * N * 16 * 2 * turns * programs,
    )


def ceilings(toy: bool) -> Iterator[dict[str, Any]]:
    """The card's rates: copy in TB/s (bytes read and written), products in TFLOP/s."""
    device = "cuda" if CUDA else "cpu"

    def copy() -> dict[str, Any]:
        source = torch.randn((1 << 12) if toy else (1 << 29), device=device)
        target = torch.empty_like(source)
        found = clock(lambda: target.copy_(source), 0.3, toy)
        return {"name": "copy", "unit": "TB/s", "rate": 8 * source.numel() / found["ms"] / 1e9} | found

    def product(name: str, batch: int, n: int, dtype: torch.dtype) -> dict[str, Any]:
        A, B = (torch.randn(batch, n, n, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(A)
        found = clock(lambda: torch.bmm(A, B, out=out), 0.3, toy)
        return {"name": name, "unit": "TFLOP/s", "rate": 2.0 * batch * n**3 / found["ms"] / 1e9} | found

    yield copy()
    double, single = torch.float64, torch.float32
    yield product("float64 product 4096", 1, 32 if toy else 4096, double)
    for n in (64, 128, 256):
        yield product(f"float64 products {n}, batched", *((2, 8) if toy else ((1 << 26) // n**2, n)), double)
    yield product("float32 product 4096", 1, 32 if toy else 4096, single)
    for M, N, warps in DOT_LOOPS:
        if toy and M > 16:
            continue
        call, operations = dot_loop(M, N, warps, toy)
        found = clock(call, 0.3, toy)
        name = f"tl.dot loop {M} x {N}, {warps} warp{'s' * (warps > 1)}"
        yield {"name": name, "unit": "TFLOP/s", "rate": operations / found["ms"] / 1e9} | found


# --- a call taken apart -----------------------------------------------------------------------------------------------

# every function that a stage consists of, where it is called from: (module, name); stages are those of model.py
STAGES = {
    "parts": [(parts, "build")],
    "scan": [(scans, "gramians"), (small, "gramians")],
    "root": [(recurrence, "shifted_roots"), (recurrence, "pivoted_roots")],
    "products": [(passes, "_products")],
    "boundary": [(passes, "eliminate"), (small, "eliminate")],
    "split64": [(splits, "split")],
    "split32": [],
    "split16": [(leaf, "split16")],
    "leaf8": [(leaf, "finish8")],
}


@contextmanager
def taken_apart() -> Iterator[Callable[[], dict[str, dict[str, float]]]]:
    """Inside, stages are timed by events on the stream; the result says milliseconds and calls of each.

    A stage's time reaches from its first launch to its last: gaps in which the device waits for the host are part of
    it. Splits are told apart by their nodes' size.
    """
    events: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def mark() -> Any:
        if not CUDA:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            name = stage
            if stage == "split64" and arguments[0].shape[-1] == 32:
                name = "split32"
            begin = mark()
            result = function(*arguments, **options)
            events[name].append((begin, mark()))
            return result

        return call

    def elapsed(begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) if CUDA else 1e3 * (end - begin)

    def result() -> dict[str, dict[str, float]]:
        synchronize()
        return {
            name: {"ms": sum(elapsed(*pair) for pair in pairs), "calls": len(pairs)} for name, pairs in events.items()
        }

    originals = [
        (module, name, stage, getattr(module, name))
        for stage, places in STAGES.items()
        for module, name in places
        if hasattr(module, name)
    ]
    try:
        for module, name, stage, function in originals:
            setattr(module, name, timed(stage, function))
        yield result
    finally:
        for module, name, _, function in originals:
            setattr(module, name, function)


# the staircase calls its kernels through their modules, which is what makes the above work
assert descent.splits is splits and descent.leaf is leaf
