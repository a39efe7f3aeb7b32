"""Does ESS say how well a model recalls? Many small models on MQAR, measured while they train (experiments a, a2, b).

    OMP_NUM_THREADS=1 python bench/paper/sweep.py            # half an hour or so on one core; run again to go on
    python bench/paper/sweep.py --quick
    python bench/paper/sweep.py --size gpu                   # near the paper's sizes

a: featurizers x head sizes x pairs x seeds, accuracy beside ESS and TSS (paper: section 4, figures 3, 11 to 13).
a2: TSS fixed, gates that forget faster or slower: only ESS can tell these models apart. Not in the paper.
b: ESS and accuracy within each run of a, over its checkpoints (paper: figures 4, 23, 26).

Two departures from the paper make the small size trainable in seconds: every key is asked twice, and keys are smeared
(`analysis/featurizers.py`). `--size gpu` has neither.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import runs
import sweep_report
import torch

from ess_kernels.analysis.tasks import MQAR
from ess_kernels.analysis.training import Schedule, TaskModel, train

KINDS = ("GLA", "LA", "WLA", "SA")
SMALL: dict[str, Any] = {"width": 32, "vocab": 48, "steps": 300, "rate": 1e-2, "smeared": True, "asks": 2}
# The paper trains four widths for 70 epochs of 2000 steps with batches of 64; this is one width, and a twentieth.
LARGE: dict[str, Any] = {"width": 256, "vocab": 8192, "steps": 14000, "rate": 2e-3, "smeared": False, "asks": 1}
QUICK = SMALL | {"steps": 12}


def plan(options: argparse.Namespace) -> tuple[list[runs.Run], list[runs.Run]]:
    """The settings of the runs of a (and b), and of those of a2."""
    seeds = range(options.seeds or (1 if options.quick else 3))
    if options.quick:
        first = list(_recall(QUICK, seeds, KINDS, (4, 8), (4,), (16.0,)))
        return first, list(_recall(QUICK, seeds, ("GLA",), (8,), (4,), (1.0, 64.0)))
    if options.size == "gpu":
        first = list(_recall(LARGE, seeds, KINDS, (8, 16, 32, 64), (8, 16, 32, 64, 128), (16.0,)))
        return first, list(_recall(LARGE, seeds, ("GLA", "WLA"), (32,), (32, 64, 128), (1.0, 4.0, 16.0, 64.0)))
    betas = (1.0, 2.0, 4.0, 16.0, 64.0)
    fixed = [run for size in (8, 4, 16) for run in _recall(SMALL, seeds, ("GLA", "WLA"), (size,), (size,), betas)]
    return list(_recall(SMALL, seeds, KINDS, (16, 4, 8, 2), (16, 8, 4), (16.0,))), fixed


def _recall(base: dict[str, Any], seeds, kinds, head_sizes, pairs, betas) -> Iterator[runs.Run]:
    for seed, head_size, kv, kind, beta in itertools.product(seeds, head_sizes, pairs, kinds, betas):
        settings = {"kind": kind, "head_size": head_size, "kv": kv, "beta": beta, "seed": seed}
        length = 4 * kv if base["asks"] == 2 else 1024
        yield settings | base | {"length": length}


def do(settings: runs.Run, device: torch.device) -> runs.Run:
    """Trains one model; its checkpoints are what was found."""
    torch.manual_seed(settings["seed"])
    kind, width = settings["kind"], settings["width"]
    heads = width // settings["head_size"]
    model = TaskModel(
        [kind, kind], settings["vocab"], width, heads, smeared=settings["smeared"], beta=settings["beta"]
    ).to(device)
    task = MQAR(settings["length"], settings["kv"], settings["vocab"], settings["asks"])
    schedule = Schedule(settings["steps"], rate=settings["rate"])
    found = train(model, task, schedule, seed=settings["seed"])
    return {"accuracy": found[-1].accuracy, "checkpoints": [each.to_dict() for each in found]}


def main() -> None:
    parser = runs.parser_of(__doc__)
    parser.add_argument("--part", choices=("a", "a2"), help="default: both")
    options = parser.parse_args()
    folder, device = runs.prepare(options)
    minutes = -1.0 if options.report else options.minutes
    found = {}
    for part, wanted, name in zip(("a", "a2"), plan(options), ("sweep.jsonl", "fixed_tss.jsonl")):
        of_part = minutes if options.part in (None, part) else -1.0
        found[part] = runs.run_missing(folder / name, wanted, lambda settings: do(settings, device), of_part)
    with runs.written_to(folder / "sweep.md"):
        sweep_report.report(found["a"], found["a2"], folder)


if __name__ == "__main__":
    main()
