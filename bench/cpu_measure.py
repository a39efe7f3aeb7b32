"""What `all_positions.py` measures of one operator: times, checks, and ratios, as rows of plain values."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peers
import torch
from torch import Tensor

import ess_kernels as ek

TOLERANCES = (1e-3, 1e-1, 1e-5, 1e-6)
FIVE = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]


@dataclass
class Case:
    """An operator and what its answers need (`cpu_work`): operations of counts at one tolerance, and of the entropy."""

    key: str
    title: str
    op: ek.operators.Operator
    counts: float
    entropy: float
    heads: int = 1  # at most so many are sampled
    positions: int = 25


def measure(call: Callable[[], Any], seconds: float = 3.0) -> tuple[float, Any]:
    """Median seconds of as many calls as fit, at least three, after one that warms up."""
    start = time.perf_counter()
    result = call()
    first = time.perf_counter() - start
    times = []
    for _ in range(max(3, min(15, int(seconds / first)))):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def entropy_of(values: Tensor) -> float:
    p = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


def compare(case: Case, backend: str, rate: float) -> list[dict[str, Any]]:
    """A row a tolerance and one for entropy, against the peers; `rate` is that of the machine's matrix product."""
    op = case.op
    heads = peers.sample(op.num_heads, case.heads)
    positions = peers.sample(op.length - 1, case.positions, first=1)
    paper = peers.paper_program(op, heads, positions)
    best = peers.informed(op, heads, positions)[0]
    common = {"case": case.title, "key": case.key, "sampled": len(paper.values), "paper_seconds": paper.seconds}
    common |= {"informed": best.name, "informed_seconds": best.seconds, "informed_sampled": best.sampled}
    rows = []
    for tau in TOLERANCES:
        seconds, (counts, certificate) = measure(
            lambda tau=tau: ek.tolerance_ess(op, atol=tau, backend=backend, certificate=True)
        )
        counts = counts.reshape(op.num_heads, -1)
        truth = {task: int((s > tau).sum()) for task, s in paper.values.items()}
        rows.append(
            common
            | {
                "metric": f"counts {tau:g}",
                "seconds": seconds,
                "fraction": case.counts / seconds / rate,
                "wrong": sum(int(counts[h, i - 1]) != count for (h, i), count in truth.items()),
                "informed_wrong": sum(int((best.values[task] > tau).sum()) != count for task, count in truth.items()),
                "redone": float(certificate.redone.double().mean()),
                "unresolved": int(certificate.unresolved.sum()),
            }
        )
    seconds, ess = measure(lambda: ek.entropy_ess(op, backend=backend))
    ess = ess.reshape(op.num_heads, -1)
    errors = [abs(float(ess[h, i - 1]) / entropy_of(s) - 1) for (h, i), s in paper.values.items()]
    fraction = case.entropy / seconds / rate
    rows.append(common | {"metric": "entropy", "seconds": seconds, "fraction": fraction, "error": max(errors)})
    return rows


def five_tolerances(case: Case, backend: str) -> dict[str, Any]:
    """Five tolerances in one call over one of them (the middle one)."""
    one, _ = measure(lambda: ek.tolerance_ess(case.op, atol=1e-3, backend=backend), seconds=1.5)
    five, _ = measure(lambda: ek.tolerance_ess(case.op, atol=FIVE, backend=backend), seconds=1.5)
    return {"case": case.title, "key": case.key, "one": one, "five": five, "ratio": five / one}


def scaling(case: Case, backend: str) -> list[dict[str, Any]]:
    """How much faster all threads are than one."""
    threads = torch.get_num_threads()
    calls = {
        "counts 0.001": lambda: ek.tolerance_ess(case.op, atol=1e-3, backend=backend),
        "entropy": lambda: ek.entropy_ess(case.op, backend=backend),
    }
    rows = []
    for metric, call in calls.items():
        every, _ = measure(call, seconds=1.0)
        torch.set_num_threads(1)
        one, _ = measure(call, seconds=1.0)
        torch.set_num_threads(threads)
        row = {"case": case.title, "key": case.key, "metric": metric, "threads": threads}
        rows.append(row | {"one_thread": one, "seconds": every, "speedup": one / every})
    return rows


def spectra(backend: str, rate: float, matrices: int, n: int, work: float) -> dict[str, Any]:
    """Singular values of many small matrices, float64, against batched `svdvals` cut across a pool of threads."""
    A = torch.randn(matrices, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    seconds, found = measure(lambda: ek.small_spectra(A, backend=backend).values, seconds=1.0)
    peer, truth = measure(lambda: peers.threaded(torch.linalg.svdvals, A), seconds=1.0)
    error = float(((found - truth).abs().amax(-1) / truth[:, 0]).max())
    row = {"case": f"{matrices} spectra n={n}", "key": f"spectra{n}", "metric": "singular values", "seconds": seconds}
    return row | {"fraction": work / seconds / rate, "lapack_seconds": peer, "error": error}


def growth(title: str, make: Callable[[int], Any], lengths: list[int], backend: str) -> dict[str, Any]:
    """Exponent of the time in L, fitted over the upper half of the lengths."""
    times = {}
    for length in lengths:
        op = make(length)
        times[length] = measure(lambda op=op: ek.tolerance_ess(op, atol=1e-3, backend=backend), seconds=1.0)[0]
    upper = lengths[len(lengths) // 2 :]
    x = [math.log(length) for length in upper]
    y = [math.log(times[length]) for length in upper]
    return {"case": title, "exponent": statistics.linear_regression(x, y).slope, "upper": upper, "seconds": times}


def one_position(case: Case, backend: str) -> dict[str, Any]:
    """What the middle position alone costs, as a share of all positions."""
    middle = [case.op.length // 2]
    one, _ = measure(lambda: ek.tolerance_ess(case.op, positions=middle, backend=backend), seconds=1.0)
    every, _ = measure(lambda: ek.tolerance_ess(case.op, backend=backend), seconds=1.0)
    return {"case": case.title, "seconds": one, "share": one / every}
