"""What an unkind input costs, against the typical one of its shape, in one run on the same cores.

    python bench/cliffs.py [--backends native torch] [--length 512] [--threads 1] [--quick] [--json FILE]

Counts and entropies at every position, certainty switched on. Wrong is a count that differs from one float64 `svdvals`
a position, at sampled positions, although no singular value lies within the width of the tolerance (or within
rounding error of it), and `unresolved` is false. Times are medians; compare ratios, not milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ess_kernels as ek
from ess_kernels.operators import Operator

sys.path.insert(0, str(Path(__file__).parent))
import inputs
import peers
from cpu_measure import measure

EPS = torch.finfo(torch.float64).eps
SAMPLED = 9

Call = tuple[str, Operator, dict[str, float]]
TYPICAL = {"atol": 1e-3}


def cases(L: int) -> list[tuple[Call, list[Call]]]:
    """Typical calls, each with the unkind ones of its shape: title, operator, tolerance (none: the entropy)."""
    attention, gla, mamba = inputs.attention(L), inputs.gla(L, 64), inputs.mamba(L, 32)
    models = inputs.heads_of_models(L)
    strong, steps, growing = inputs.strong_gates(L, 64), inputs.large_steps(L, 32), inputs.growing_gates(L, 64)
    ties, noise = inputs.shift(L), inputs.one_and_many(L, 1e-7)
    hollow, falling = inputs.one_and_many(L, 1e-9), inputs.falling_rows(L)

    def of(title: str, op: Operator, *tolerances: dict[str, float]) -> list[Call]:
        return [(title, op, tolerance) for tolerance in tolerances]

    entropy: dict[str, float] = {}
    far = [{"atol": 1e-9}, {"rtol": 1e-2}, {"atol": 0.0}]
    dense = of("attention", attention, *far) + of("shift", ties, {"atol": 1.0})
    for name, op in models.items():
        dense += of(name, op, TYPICAL, {"atol": 1e-5})
    entropies = [(name, op, entropy) for name, op in models.items()]
    entropies += [("one and 1e-7 many", noise, entropy), ("one and 1e-9 many", hollow, entropy)]
    entropies += of("rows to 1e-64", falling, entropy)
    states = of("GLA", gla, {"rtol": 1e-2}, {"atol": 1e-12}, {"atol": 0.0})
    states += of("GLA, strong gates", strong, TYPICAL, {"atol": 1e-5}) + of("GLA, growing gates", growing, TYPICAL)
    return [
        (("attention", attention, TYPICAL), dense),
        (("attention", attention, entropy), entropies),
        (("GLA", gla, TYPICAL), states),
        (("GLA", gla, entropy), of("GLA, strong gates", strong, entropy)),
        (("Mamba", mamba, TYPICAL), of("Mamba, large steps", steps, TYPICAL)),
        (("Mamba", mamba, entropy), of("Mamba, large steps", steps, entropy)),
        (("GLA, n = 256", inputs.gla(L, 256), TYPICAL), of("GLA, n = 257", inputs.gla(L, 257), TYPICAL)),
    ]


def silent(op: Operator, tolerance: dict[str, float], found: Any) -> int:
    """Wrong counts of the first head that nothing in their certificate warns of, at sampled positions."""
    counts, certificate = found
    counts, width, unresolved = (
        x.reshape(op.num_heads, -1)[0] for x in (counts, certificate.width, certificate.unresolved)
    )
    positions = peers.sample(op.length - 1, SAMPLED, first=1)
    wrong = 0
    for (_, i), s in peers.paper_program(op, [0], positions).values.items():
        tau = float(s[0]) * tolerance["rtol"] if "rtol" in tolerance else tolerance["atol"]
        reach = 2 * tau * float(width[i - 1]) + 100 * EPS * float(s[0])
        near = bool(((s - tau).abs() <= reach).any())
        wrong += int((s > tau).sum()) != int(counts[i - 1]) and not near and not bool(unresolved[i - 1])
    return wrong


def timed(call: Call, backend: str) -> dict[str, Any]:
    title, op, tolerance = call
    if not tolerance:
        seconds, _ = measure(lambda: ek.entropy_ess(op, backend=backend), 1.0)
        return {"case": title, "metric": "entropy", "seconds": seconds}
    seconds, found = measure(lambda: ek.tolerance_ess(op, **tolerance, certificate=True, backend=backend), 1.0)
    (name, value) = next(iter(tolerance.items()))
    return {
        "case": title,
        "metric": f"counts {name} {value:g}",
        "seconds": seconds,
        "unresolved": float(found[1].unresolved.double().mean()),
        "silent": silent(op, tolerance, found),
    }


def run(backends: list[str], length: int, show: Callable[[str], None] = print) -> list[dict[str, Any]]:
    show("| backend | typical | ms | unkind | ms | times | unresolved |\n|---|---|---|---|---|---|---|")
    rows = []
    for backend in backends:
        for usual, unkind in cases(length):
            typical = timed(usual, backend)
            for call in unkind:
                row = timed(call, backend)
                times = row["seconds"] / typical["seconds"]
                rows.append(row | {"backend": backend, "typical": typical, "times": times})
                unresolved = f"{row['unresolved']:.0%}" if "unresolved" in row else ""
                show(
                    f"| {backend} | {typical['case']}, {typical['metric']} | {typical['seconds'] * 1e3:.1f} "
                    f"| {row['case']}, {row['metric']} | {row['seconds'] * 1e3:.1f} | {times:.1f} | {unresolved} |"
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["native", "torch"])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a short length, to see that everything runs")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = run(arguments.backends, 64 if arguments.quick else arguments.length)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    wrong = sum(row.get("silent", 0) for row in rows)
    if wrong:
        sys.exit(f"wrong answers: {wrong} counts without a warning")


if __name__ == "__main__":
    main()
