"""ESS at every position: the engine against the paper's program and an informed user's, in one run on the same cores.

    python bench/all_positions.py [--backend torch] [--quick] [--json FILE]

Peers that would take minutes are sampled evenly over the positions and scaled up; the table says so with "~". Wrong
counts and entropy errors are against one float64 `svdvals` per sampled position. Times are medians; compare ratios, not
seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ess_kernels as ek

sys.path.insert(0, str(Path(__file__).parent))
import inputs
import peers

TOLERANCES = (1e-3, 1e-1, 1e-5, 1e-6)


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


def compare(title: str, op: ek.operators.Operator, backend: str, samples: int) -> list[dict[str, Any]]:
    """A row a tolerance and one for entropy."""
    where = peers.sample(op.length, samples)
    paper = peers.paper_program(op, where)
    best = peers.informed(op, where)[0]
    rows = []
    for tau in TOLERANCES:
        seconds, (counts, certificate) = measure(
            lambda tau=tau: ek.tolerance_ess(op, atol=tau, backend=backend, certificate=True)
        )
        counts = counts.reshape(-1)
        truth = [int((s > tau).sum()) for s in paper.values]
        theirs = dict(zip(best.positions.tolist(), best.values, strict=True))
        rows.append(
            {
                "case": title,
                "metric": f"counts {tau:g}",
                "seconds": seconds,
                "wrong": sum(int(counts[i - 1]) != c for i, c in zip(where.tolist(), truth, strict=True)),
                "informed_wrong": sum(
                    int((theirs[i] > tau).sum()) != c for i, c in zip(where.tolist(), truth, strict=True)
                ),
                "sampled": len(where),
                "redone": float(certificate.redone.double().mean()),
                "unresolved": int(certificate.unresolved.sum()),
            }
        )
    seconds, ess = measure(lambda: ek.entropy_ess(op, backend=backend))
    ess = ess.reshape(-1)
    errors = [abs(float(ess[i - 1]) / entropy_of(s) - 1) for i, s in zip(where.tolist(), paper.values, strict=True)]
    rows.append({"case": title, "metric": "entropy", "seconds": seconds, "error": max(errors), "sampled": len(where)})
    for row in rows:
        row |= {
            "paper_seconds": paper.seconds,
            "informed": best.name,
            "informed_seconds": best.seconds,
            "informed_sampled": best.sampled,
        }
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'case':<24} {'metric':<13} {'engine':>9} {'paper':>9} {'ratio':>7} {'informed':>10} {'ratio':>6}  checks")
    for row in rows:
        checks = f"entropy error {row['error']:.1e}" if "error" in row else f"wrong {row['wrong']} of {row['sampled']}"
        if "redone" in row:
            checks += f" (informed {row['informed_wrong']}), redone {row['redone']:.1%}, unresolved {row['unresolved']}"
        paper = f"~{row['paper_seconds']:.1f}"
        best = f"{'~' if row['informed_sampled'] else ''}{1e3 * row['informed_seconds']:.0f}"
        print(
            f"{row['case']:<24} {row['metric']:<13} {1e3 * row['seconds']:>6.1f} ms {paper:>7} s"
            f" {row['paper_seconds'] / row['seconds']:>7.0f} {best:>7} ms"
            f" {row['informed_seconds'] / row['seconds']:>6.1f}  {checks}"
        )
    print()


def growth(
    title: str, make: Callable[[int], ek.operators.Operator], lengths: list[int], backend: str
) -> dict[str, Any]:
    """Exponent of the time in L, fitted over the upper half of the lengths."""
    times = {}
    for length in lengths:
        op = make(length)
        times[length] = measure(lambda op=op: ek.tolerance_ess(op, atol=1e-3, backend=backend), seconds=1.0)[0]
    upper = lengths[len(lengths) // 2 :]
    x = [math.log(length) for length in upper]
    y = [math.log(times[length]) for length in upper]
    exponent = statistics.linear_regression(x, y).slope
    listed = ", ".join(f"{length}: {1e3 * seconds:.0f} ms" for length, seconds in times.items())
    print(f"{title}: time ~ L^{exponent:.2f} over L = {upper[0]}..{upper[-1]}  ({listed})")
    return {"case": title, "exponent": exponent, "upper": upper, "seconds": times}


def one_position(title: str, op: ek.operators.Operator, backend: str) -> dict[str, Any]:
    """What the middle position alone costs, as a share of all positions."""
    middle = [op.length // 2]
    one, _ = measure(lambda: ek.tolerance_ess(op, positions=middle, backend=backend), seconds=1.0)
    every, _ = measure(lambda: ek.tolerance_ess(op, backend=backend), seconds=1.0)
    print(f"{title}: the middle position alone takes {1e3 * one:.1f} ms, 1/{every / one:.1f} of all positions")
    return {"case": title, "seconds": one, "share": one / every}


PEAK = """
import re, sys
sys.path.insert(0, {here!r})
import inputs, ess_kernels as ek
op = inputs.gla({length}, 64, 8)
def peak():
    # ru_maxrss would start from the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
ek.tolerance_ess(op, backend={backend!r})
ek.entropy_ess(op, backend={backend!r})
print(before, peak())
"""


def peak_memory(length: int, backend: str) -> dict[str, Any]:
    """Peak resident memory of counts and entropy in a process of their own."""
    script = PEAK.format(here=str(Path(__file__).parent), length=length, backend=backend)
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    before, peak = (int(x) * 1024 for x in out.split())
    print(f"peak memory, GLA L={length} n=64, 8 heads: {peak / 1e9:.2f} GB ({before / 1e9:.2f} GB before the call)")
    return {"case": f"GLA L={length} n=64, 8 heads", "peak": peak, "before": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--quick", action="store_true", help="short lengths, to see that everything runs")
    parser.add_argument("--samples", type=int, default=25, help="positions at which the answers are checked")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    backend, quick = arguments.backend, arguments.quick
    torch.manual_seed(0)
    print(
        f"ess-kernels {ek.__version__}, backend {backend}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}\n"
    )

    L = 256 if quick else 2048
    cases = [
        (f"attention L={L}", inputs.attention(L)),
        (f"GLA L={L} n=64", inputs.gla(L, 64)),
        (f"GLA L={L} n=128", inputs.gla(L, 128)),
        (f"GLA L={L} n=16", inputs.gla(L, 16)),
    ]
    rows = []
    for title, op in cases:
        found = compare(title, op, backend, arguments.samples)
        print_rows(found)
        rows += found
    lengths = [64, 128, 256] if quick else [512, 1024, 2048, 4096, 8192]
    report = {
        "version": ek.__version__,
        "backend": backend,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "growth": [
            growth("attention", inputs.attention, lengths, backend),
            growth("GLA n=64", lambda length: inputs.gla(length, 64), lengths, backend),
        ],
        "one_position": [one_position(title, op, backend) for title, op in cases[:2]],
        "memory": peak_memory(256 if quick else 8192, backend),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
