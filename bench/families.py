"""Every family with a finite state: its time beside GLA's, and beside one SVD per position.

    python bench/families.py [--family kda rwkv7 ...] [--length 2048] [--state 64] [--backend native] [--json FILE]

A family and GLA are called in turn, and their medians compared; the paper's program is sampled over the positions and
scaled up. Families with rank-one transitions are also compared with the same operator given as matrices. Processor time
is beside wall time, since machines are shared: compare ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ess_kernels as ek

sys.path.insert(0, str(Path(__file__).parent))
import cpu_measure
import peers
from family_inputs import FAMILIES
from peak_memory import peak_memory

from ess_kernels.operators import Operator, StateSpace

LENGTH, STATE = 2048, 64
METRICS: dict[str, Callable[..., Any]] = {"counts": ek.tolerance_ess, "entropy": ek.entropy_ess}


def in_turn(calls: Sequence[Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """Median wall and processor seconds of each call, made one after the other in every round."""
    times: list[list[tuple[float, float]]] = [[] for _ in calls]
    for round_ in range(rounds + 1):
        for call, mine in zip(calls, times, strict=True):
            wall, busy = time.perf_counter(), time.process_time()
            call()
            if round_:
                mine.append((time.perf_counter() - wall, time.process_time() - busy))
    return [
        {"seconds": statistics.median(w for w, _ in mine), "processor": statistics.median(p for _, p in mine)}
        for mine in times
    ]


def as_matrices(op: StateSpace) -> Operator:
    """The same recurrence with its transitions as matrices, in the convention of `recurrence`: reads come before."""
    tokens = op.tokens(op.all_heads())
    A = tokens.matrices()
    read = tokens.read if tokens.reads_before else (tokens.read[..., None, :] @ A)[..., 0, :]
    return ek.operators.recurrence(A, tokens.write, read, diagonal=False)


def compare(name: str, length: int, n: int, backend: str, samples: int, rounds: int) -> dict[str, Any]:
    """A row of plain values."""
    op, gla = FAMILIES[name](length, n), FAMILIES["gla"](length, n)
    positions = peers.sample(length - 1, samples, first=1)
    paper = peers.paper_program(op, [0], positions)
    row: dict[str, Any] = {"family": name, "length": length, "n": op.state_size, "paper_seconds": paper.seconds}
    others = {"gla": gla}
    if isinstance(op, StateSpace) and op.rank_one:
        others["matrices"] = as_matrices(op)
    for metric, call in METRICS.items():
        calls = [lambda call=call, x=x: call(x, backend=backend) for x in (op, *others.values())]
        mine, *rest = in_turn(calls, rounds)
        row[metric] = mine
        for other, theirs in zip(others, rest, strict=True):
            row[metric][other] = {key: mine[key] / theirs[key] for key in ("seconds", "processor")}
        row[metric]["paper"] = paper.seconds / mine["seconds"]
    row["wrong"], row["error"] = _check(op, paper.values, backend)
    return row


def _check(op: Operator, truth: dict[tuple[int, int], Tensor], backend: str) -> tuple[int, float]:
    """Wrong counts at 1e-1 to 1e-7 of the largest value, and the worst relative error of the entropy."""
    at = [i for _, i in truth]
    largest = max(float(s.max()) for s in truth.values())
    tolerances = [largest * 10.0**-k for k in range(1, 8)]
    counts = ek.tolerance_ess(op, tolerances, positions=at, backend=backend).reshape(len(tolerances), -1)
    wanted = torch.tensor([[int((s > tau).sum()) for s in truth.values()] for tau in tolerances])
    ess = ek.entropy_ess(op, positions=at, backend=backend).reshape(-1)
    errors = [abs(float(ess[p]) / cpu_measure.entropy_of(s) - 1) for p, s in enumerate(truth.values())]
    return int((counts != wanted).sum()), max(errors)


def print_row(row: dict[str, Any]) -> None:
    line = f"{row['family']:26} n={row['n']:<4}"
    for metric in METRICS:
        mine = row[metric]
        line += (
            f" {metric} {1e3 * mine['seconds']:7.1f} ms (x GLA {mine['gla']['seconds']:.2f}, processor "
            f"{mine['gla']['processor']:.2f}; SVDs x {mine['paper']:,.0f})"
        )
        if "matrices" in mine:
            line += f", matrices x {1 / mine['matrices']['seconds']:.1f}"
    print(f"{line}; wrong {row['wrong']}, entropy {row['error']:.0e}", flush=True)


def run(
    names: Sequence[str], length: int, n: int, backend: str, samples: int = 25, rounds: int = 7
) -> list[dict[str, Any]]:
    """A row a family, printed as they come."""
    rows = []
    for name in names:
        rows.append(compare(name, length, n, backend, samples, rounds))
        print_row(rows[-1])
    return rows


def report(chosen: Sequence[str], length: int, n: int, backend: str, file: Path | None = None, rounds: int = 7) -> None:
    """Prints the rows of the chosen families, or of "all", and one figure of memory; exits with 1 if any is wrong."""
    names = list(FAMILIES) if "all" in chosen else chosen
    rows = run(names, length, n, backend, rounds=rounds)
    if Path("/proc/self/status").exists() and "kda" in names:
        kda = "FAMILIES['kda']({}, {})".format
        before, peak = peak_memory("family_inputs", kda(4 * length, 2 * n), backend, warm_up=kda(64, 2 * n))
        print(
            f"peak memory above the inputs, kda, one head, L={4 * length} n={2 * n}: {(peak - before) / 2**20:.0f} MB"
        )
    if file:
        file.write_text(json.dumps(rows, indent=1))
    wrong, worst = sum(row["wrong"] for row in rows), max(row["error"] for row in rows)
    if wrong or worst > 1e-4:
        sys.exit(f"wrong answers: {wrong} counts, entropy off by up to {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=["all"], choices=["all", *FAMILIES], metavar="NAME")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--state", type=int, default=STATE, help="the state size, where a family can choose it")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    report(arguments.family, arguments.length, arguments.state, arguments.backend, arguments.json, arguments.rounds)


if __name__ == "__main__":
    main()
