"""ESS at every position: the engine against the paper's program and an informed user's, in one run on the same cores.

    python bench/all_positions.py [--backend native] [--only gla64 mamba] [--quick] [--json FILE]

Peers that would take minutes are sampled evenly over the positions (and heads) and scaled up; the table says so with
"~". Wrong counts and entropy errors are against one float64 `svdvals` per sampled position. Times are medians; compare
ratios, not seconds. "of GEMM" is the share of the rate of torch's matrix product, on the same threads, that the
operations which the algorithm needs (`cpu_work.py`) come to. At full lengths the goals (`cpu_goals.py`) are judged.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ess_kernels as ek

sys.path.insert(0, str(Path(__file__).parent))
import cpu_goals
import cpu_measure
import cpu_packed
import cpu_report
import cpu_work as work
import families
import inputs
from cpu_measure import Case
from peak_memory import peak_memory

from ess_kernels.operators import Operator


def memory_row(length: int, backend: str) -> dict[str, Any]:
    """Peak resident memory of counts and entropy of eight heads of GLA."""
    before, peak = peak_memory("inputs", f"gla({length}, 64, 8)", backend)
    return {"case": f"GLA L={length} n=64, 8 heads", "peak": peak, "before": before}


def cases(quick: bool, samples: int) -> dict[str, Callable[[], Case]]:
    """What is measured, by key; operators are made when their turn comes."""
    L, short, channels = (128, 64, 16) if quick else (2048, 1024, 256)

    def gla(n: int) -> Case:
        counts, entropy = work.recurrence_counts(L, n), work.recurrence_entropy(L, n)
        return Case(f"gla{n}", f"GLA L={L} n={n}", inputs.gla(L, n), counts, entropy, positions=samples)

    def attention() -> Case:
        counts, entropy = work.matrix_counts(L), work.matrix_entropy(L)
        return Case("attention", f"attention L={L}", inputs.attention(L), counts, entropy, positions=samples)

    def mamba() -> Case:
        size = {"length": short, "n": 16, "heads": channels}
        op, title = inputs.mamba(short, channels), f"Mamba D={channels} L={short}"
        counts, entropy = work.recurrence_counts(**size), work.recurrence_entropy(**size)
        return Case("mamba", title, op, counts, entropy, heads=4, positions=max(samples // 3, 4))

    def dense() -> Case:
        size = {"length": L, "n": 64, "dense": True}
        op, title = inputs.dense_recurrence(L, 64), f"dense A L={L} n=64"
        return Case(
            "dense", title, op, work.recurrence_counts(**size), work.recurrence_entropy(**size), positions=samples
        )

    def diagonal(key: str, title: str, op: Operator) -> Case:
        n = op.state_size
        counts, entropy = work.recurrence_counts(L, n), work.recurrence_entropy(L, n)
        return Case(key, f"{title} L={L}", op, counts, entropy, positions=samples)

    def head(key: str, name: str, op: Operator) -> Case:
        counts, entropy = work.matrix_counts(short), work.matrix_entropy(short)
        return Case(key, f"{name} L={short}", op, counts, entropy, positions=max(samples // 3, 4))

    def strong_gates() -> Case:
        counts, entropy = work.recurrence_counts(L, 64), work.recurrence_entropy(L, 64)
        return Case("gates", f"GLA, gates x16 L={L}", inputs.strong_gates(L, 64), counts, entropy, positions=samples)

    def large_steps() -> Case:
        usual = mamba()
        usual.key, usual.title = "steps", f"Mamba, large steps L={short}"
        usual.op = inputs.large_steps(short, channels)
        return usual

    made = {"gla64": lambda: gla(64), "gla128": lambda: gla(128), "gla16": lambda: gla(16)}
    made |= {"attention": attention, "mamba": mamba, "dense": dense}
    for n in (16, 32, 64):
        made[f"complex{n}"] = lambda n=n: diagonal(f"complex{n}", f"complex n={n}", inputs.complex_recurrence(L, n))
        made[f"real{2 * n}"] = lambda n=n: diagonal(f"real{2 * n}", f"real n={2 * n}", inputs.real_recurrence(L, 2 * n))
    made["attention1024"] = lambda: head("attention1024", "attention", inputs.attention(short))
    for name in inputs.HEADS_OF_MODELS:
        made[name.replace(" ", "-")] = lambda name=name: head(
            name.replace(" ", "-"), f"{name} head", inputs.heads_of_models(short)[name]
        )
    return made | {"gates": strong_gates, "steps": large_steps}


def processor() -> str:
    """The model's name, where Linux says it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def run(backend: str, quick: bool, samples: int, only: list[str]) -> dict[str, Any]:
    rate = work.product_rate()
    report: dict[str, Any] = {
        "version": ek.__version__,
        "backend": backend,
        "native": ek.show_config().native,
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "product_rate": rate,
    }
    print(
        f"ess-kernels {ek.__version__}, backend {backend} (native: {report['native']}), torch {torch.__version__}, "
        f"{report['threads']} threads, {report['processor']}\n"
    )
    for name in ("rows", "five", "scaling", "spectra", "growth", "one_position"):
        report[name] = []
    for key, make in cases(quick, samples).items():
        if only and key not in only:
            continue
        # the best that was seen: on a shared machine one look is not enough
        rate = report["product_rate"] = max(rate, work.product_rate())
        case = make()
        found = cpu_measure.compare(case, backend, rate)
        cpu_report.print_rows(found)
        report["rows"] += found
        report["scaling"] += cpu_measure.scaling(case, backend) if report["threads"] > 1 else []
        if key in cpu_goals.FIVE:
            report["five"].append(cpu_measure.five_tolerances(case, backend))
            report["one_position"].append(cpu_measure.one_position(case, backend))
    if backend in ("auto", "torch", "native"):
        for n in (16, 64, 128):
            matrices = 64 if quick else 2**17 // n**2 * 8
            report["spectra"].append(cpu_measure.spectra(backend, rate, matrices, n, work.spectra(matrices, n)))
    lengths = [64, 128, 256] if quick else [512, 1024, 2048, 4096, 8192]
    if not only or "attention" in only:
        report["growth"].append(cpu_measure.growth("attention", inputs.attention, lengths, backend))
    if not only or "gla64" in only:
        report["growth"].append(cpu_measure.growth("GLA n=64", lambda L: inputs.gla(L, 64), lengths, backend))
    report["packed"] = cpu_packed.packed(backend, quick) if not only or "packed" in only else []
    print(f"torch's float64 matrix product, at the best: {rate / 1e9:.0f} GFLOP/s")
    report["memory"] = memory_row(256 if quick else 8192, backend)
    cpu_report.print_rest(report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[*cases(True, 2), "packed"], help="these cases and no others"
    )
    parser.add_argument("--quick", action="store_true", help="short lengths, to see that everything runs")
    parser.add_argument("--samples", type=int, default=25, help="positions at which the answers are checked")
    parser.add_argument(
        "--family",
        nargs="+",
        choices=["all", *families.FAMILIES],
        metavar="NAME",
        help="compare families with GLA and with one SVD per position, and nothing else (families.py)",
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    if arguments.family:
        length, n = (256, 16) if arguments.quick else (families.LENGTH, families.STATE)
        families.report(arguments.family, length, n, arguments.backend, arguments.json)
        return
    torch.manual_seed(0)
    samples = min(arguments.samples, 5) if arguments.quick else arguments.samples
    report = run(arguments.backend, arguments.quick, samples, arguments.only)
    if not arguments.quick:
        cpu_report.print_goals(cpu_goals.judge(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    wrong = sum(row.get("wrong", 0) for row in report["rows"])
    worst = max((row["error"] for row in report["rows"] if "error" in row), default=0.0)
    if wrong or worst > 1e-4:
        sys.exit(f"wrong answers: {wrong} counts, entropy off by up to {worst:.1e}")


if __name__ == "__main__":
    main()
