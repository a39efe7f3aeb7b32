"""All singular values of a batch of small matrices: this package against torch and NumPy, in one run on the same core.

    python bench/small_spectra.py [--backend native] [--quick] [--json FILE]

Microseconds a matrix, for batches of random n x n matrices, on one thread ("threads": on all that torch has). The best
of many calls, engine and peers in turns. Counts are those above one tolerance, found without values. Errors are the
largest ones in units of eps s_1, against LAPACK in float64. Compare ratios, not seconds.
"""

from __future__ import annotations

import os

# before NumPy and torch: neither library takes it back later for all of its BLAS
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels.backends.native import library

SIZES = (16, 32, 64, 128, 256)


def best(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Seconds of the fastest of at least three calls each, in turns so that all see the same machine."""
    times = {name: float("inf") for name in calls}
    start = time.perf_counter()
    turn = 0
    while turn < 4 or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            if turn:  # the first one warms up
                times[name] = min(times[name], time.perf_counter() - before)
        turn += 1
    return times


def error(found: Tensor, A: Tensor) -> float:
    exact = torch.linalg.svdvals(A.double())
    return float(((found.double() - exact).abs() / exact[:, :1]).max()) / torch.finfo(A.dtype).eps


def counter(A: Tensor, tau: Tensor) -> Callable[[], Tensor] | None:
    """Counts without values, where there is a kernel for them."""
    if library().handle is None:
        return None
    from ess_kernels.backends.native.choice import as_set
    from ess_kernels.backends.native.spectra import counts_above

    def counts() -> Tensor:
        with as_set():
            return counts_above(A, None, tau)

    return counts


def measure(n: int, dtype: torch.dtype, backend: str, threads: int, seconds: float) -> dict[str, Any]:
    batch = max(32, min(1024, round(2**18 / n**3) * 64))
    A = torch.randn(batch, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).to(dtype)
    tau = torch.tensor([0.5 * n**0.5], dtype=torch.float64)
    # LAPACK takes one matrix after the other: fewer of them do
    few = A[: max(4, batch // 32)]
    array = few.numpy()
    torch.set_num_threads(1)
    calls = {
        "engine": lambda: ek.small_spectra(A, backend=backend),
        "torch": lambda: torch.linalg.svdvals(few),
        "numpy": lambda: np.linalg.svd(array, compute_uv=False),
    }
    counts = counter(A, tau)
    if counts is not None:
        calls["counts"] = counts
    times = best(calls, seconds)
    values = ek.small_spectra(few, backend=backend).values
    row: dict[str, Any] = {"n": n, "dtype": str(dtype).removeprefix("torch."), "batch": batch}
    for name, taken in times.items():
        row[name] = 1e6 * taken / (len(few) if name in ("torch", "numpy") else batch)
    row["error"] = error(values, few)
    if counts is not None:
        row["wrong"] = int((counts()[: len(few), 0] != (torch.linalg.svdvals(few.double()) > tau).sum(-1)).sum())
    torch.set_num_threads(threads)
    row["threaded"] = 1e6 * best({"engine": calls["engine"]}, seconds / 4)["engine"] / batch
    return row


def print_row(row: dict[str, Any]) -> None:
    counts = f"{row['counts']:>9.2f}" if "counts" in row else f"{'-':>9}"
    wrong = f", {row['wrong']} counts wrong" if row.get("wrong") else ""
    print(
        f"{row['n']:>4} {row['dtype']:<8} {row['engine']:>9.2f}"
        f" {row['torch']:>9.1f} {row['torch'] / row['engine']:>6.1f}"
        f" {row['numpy']:>9.1f} {row['numpy'] / row['engine']:>6.1f} {counts}"
        f" {row['threaded']:>9.2f} {row['engine'] / row['threaded']:>6.2f}  {row['error']:.1f} eps{wrong}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--quick", action="store_true", help="small matrices once, to see that everything runs")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print(
        f"ess-kernels {ek.__version__}, backend {arguments.backend}, "
        f"native library: {library().reason or library().build_info}, "
        f"torch {torch.__version__}, numpy {np.__version__}, {platform.processor() or platform.machine()}\n"
    )
    print(
        f"{'n':>4} {'':<8} {'engine':>9} {'torch':>9} {'ratio':>6} {'numpy':>9} {'ratio':>6} {'counts':>9}"
        f" {f'{threads} threads':>9} {'ratio':>6}  error"
    )
    rows = []
    for n in (8, 33) if arguments.quick else SIZES:
        for dtype in (torch.float32, torch.float64):
            rows.append(measure(n, dtype, arguments.backend, threads, 0.0 if arguments.quick else 3.0))
            print_row(rows[-1])
    if arguments.json:
        report = {"version": ek.__version__, "torch": torch.__version__, "threads": threads, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
