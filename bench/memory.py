"""What calls announce before they allocate, and what they then take: a table, a process for each line.

    python bench/memory.py [--length 1024] [--heads 24] [--tasks tolerance_ess,entropy_ess] [--budgets 64MiB,4GiB]

The peak is the resident memory at its highest, less what the process had before the call, when the inputs were there
and the libraries loaded.
"""

from __future__ import annotations

import argparse

from ess_kernels.memory import size_text
from ess_kernels.testing.peak_memory import FAMILIES, TASKS, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--budgets", default="64MiB,256MiB,1GiB,4GiB")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.heads} heads of {options.length} tokens, backend {options.backend}, threads {options.threads}\n")
    print("| call | operator | budget | announced | peak | peak / announced | processor seconds |")
    print("|---|---|---|---|---|---|---|")
    for task in options.tasks.split(","):
        for family in options.families.split(","):
            for budget in options.budgets.split(","):
                found = measure(
                    task=task,
                    family=family,
                    length=options.length,
                    heads=options.heads,
                    budget=budget,
                    backend=options.backend,
                    threads=options.threads,
                )
                announced = found["announced"] or 0
                share = f"{found['peak'] / announced:.2f}" if announced else "-"
                sizes = f"{size_text(announced)} | {size_text(found['peak'])} | {share}"
                print(f"| {task} | {family} | {budget} | {sizes} | {found['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
