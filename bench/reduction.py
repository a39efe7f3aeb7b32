"""Model-order reduction: CPU seconds a head, the states that are left, and what is known about the error.

    python bench/reduction.py [--quick] [--json FILE]

One thread, the median of a few calls. Every row is checked in the run that measures it: state sizes against the ESS at
the same tolerance, and, where T is small enough to be formed, the known error against the measured one.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import inputs
import torch

import ess_kernels as ek
from ess_kernels.operators import Operator
from ess_kernels.reduction import reduce

# T of longer sequences is not formed to measure an error
LONGEST_DENSE = 1024


def rows(quick: bool) -> Iterator[tuple[Operator, dict[str, Any]]]:
    """What is measured, and the arguments of `reduce`."""
    shrink = 8 if quick else 1
    yield from product([inputs.gla(512 // shrink, 64)], [{}, {"atol": 1.0}, {"atol": 1.0, "balanced": True}])
    yield from product([inputs.gla(2048 // shrink, 64)], [{}, {"atol": 1.0}])
    yield from product([inputs.gla(2048 // shrink, 16, heads=8)], [{}, {"atol": 1.0}])
    yield from product([inputs.attention(256 // shrink)], [{}, {"atol": 0.1}, {"atol": 0.1, "balanced": True}])
    yield inputs.attention(1024 // shrink), {"atol": 0.1}
    yield inputs.attention(2048 // shrink), {"rank": 64}


def name_of(op: Operator) -> str:
    if op.state_size is None:
        return f"attention, L = {op.length}"
    return f"GLA, L = {op.length}, n = {op.state_size}" + (f", {op.num_heads} heads" if op.num_heads > 1 else "")


def measure(op: Operator, arguments: dict[str, Any], repeats: int) -> dict[str, Any]:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        reduced = reduce(op, **arguments)
        seconds.append((time.process_time() - start) / op.num_heads)
    sizes = reduced.state_sizes[..., 1:]
    row: dict[str, Any] = {
        "case": name_of(op),
        "arguments": arguments,
        "seconds": statistics.median(seconds),
        "spread": max(seconds) - min(seconds),
        "states": int(sizes.max()),
        "known error": float(reduced.error_bound.max()),
    }
    if "atol" in arguments:
        ess = ek.tolerance_ess(op, atol=arguments["atol"])
        row["ess"] = int(ess.max())
        row["more states than ESS"] = int((sizes > ess).sum())
    if op.length <= LONGEST_DENSE:
        T = op.dense()
        norm = torch.linalg.matrix_norm(T)
        error = torch.linalg.matrix_norm(T - reduced.dense())
        row["error / |T|"] = float((error / norm).max())
        row["known - measured, / |T|"] = float(((reduced.error_bound - error).abs() / norm).max())
    return row


def text(row: dict[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in row["arguments"].items()) or "minimal"
    errors = (
        f"{row['error / |T|']:.1e}   {row['known - measured, / |T|']:.1e}" if "error / |T|" in row else f"{'-':>7}   -"
    )
    wrong = f"  {row['more states than ESS']} POSITIONS WITH MORE STATES" if row.get("more states than ESS") else ""
    return (
        f"{row['case']:<31} {arguments:<24} {row['seconds']:7.3f} ± {row['spread']:.3f}"
        f" {row['states']:>7} {row.get('ess', '-'):>5}   {row['known error']:.2e}   {errors}{wrong}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short sequences once, to see that everything runs")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = platform.processor() or platform.machine()
    print(f"ess-kernels {ek.__version__}, torch {torch.__version__}, {machine}, one thread\n")
    print(f"{'':<56} CPU s a head      states   ESS   known error   |T - T_r|   off by (/ |T|)")
    found = []
    for op, arguments in rows(options.quick):
        found.append(measure(op, arguments, 1 if options.quick else 3))
        print(text(found[-1]), flush=True)
    if options.json:
        report = {"version": ek.__version__, "torch": torch.__version__, "machine": machine, "rows": found}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
