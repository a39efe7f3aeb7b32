"""What calls announce before they allocate, and what they then take: a table, a process for each line.

    python bench/memory.py [--length 1024] [--heads 24] [--tasks 'reduce;soft_ess, backward'] [--budgets '1GiB']

The peak is the resident memory at its highest, less what the process had before the call, when the inputs were there
and the libraries loaded.
"""

from __future__ import annotations

import argparse
from typing import Any

from ess_kernels.memory import size_text
from ess_kernels.testing.peak_memory import CASES, FAMILIES, TASKS, Measurements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=";".join(TASKS))
    parser.add_argument("--families", default=";".join(FAMILIES))
    parser.add_argument("--budgets", default="64MiB;256MiB;1GiB;4GiB")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    print(f"{options.heads} heads of {options.length} tokens, backend {options.backend}, one thread\n")
    print("| call | operator | budget | announced | peak | peak / announced | processor seconds |")
    print("|---|---|---|---|---|---|---|")
    with Measurements() as measure:
        for task, family in CASES:
            if task not in options.tasks.split(";") or family not in options.families.split(";"):
                continue
            for budget in options.budgets.split(";"):
                found = measure(
                    task=task,
                    family=family,
                    length=options.length,
                    heads=options.heads,
                    budget=budget,
                    backend=options.backend,
                )
                print(f"| {task} | {family} | {budget} | {row(found)} |", flush=True)


def row(found: dict[str, Any]) -> str:
    """What one measurement has found, as columns of the table."""
    if "died" in found:
        return f"the process ended with {found['died']} | | |"
    announced = found["announced"] or 0
    share = f"{found['peak'] / announced:.2f}" if announced else "-"
    error = f" {found['error']}" if found["error"] else ""
    return f"{size_text(announced)} | {size_text(found['peak'])} | {share} | {found['seconds']:.2f}{error}"


if __name__ == "__main__":
    main()
