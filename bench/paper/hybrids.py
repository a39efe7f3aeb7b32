"""Where attention has to sit in a hybrid of GLA and attention that recalls (experiment f).

    OMP_NUM_THREADS=1 python bench/paper/hybrids.py          # ten minutes on one core
    python bench/paper/hybrids.py --quick
    python bench/paper/hybrids.py --size gpu                 # 16 topologies of four mixers, as in the paper

Paper: appendix E.4.2, tables 7 and 8. Keys are not smeared: a layer has to shift keys onto values before another one
can recall. Attention can recall any number of pairs, GLA with head size 4 cannot. Every key is asked twice (small).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import runs
import torch
from correlations import interval, mean_interval, pearson, shown

import ess_kernels as ek
from ess_kernels.analysis.tasks import MQAR
from ess_kernels.analysis.training import Schedule, TaskModel, train

SMALL = {"width": 32, "heads": 8, "kv": 8, "length": 32, "vocab": 48, "asks": 2, "steps": 1500, "rate": 5e-3}
LARGE = {"width": 64, "heads": 4, "kv": 512, "length": 2048, "vocab": 8192, "asks": 1, "steps": 20000, "rate": 2e-3}
TOLERANCE = 1e-1


def do(settings: runs.Run, device: torch.device) -> runs.Run:
    """Trains one topology, and counts ESS above 0.1 in each layer: the mean over heads, and the largest head's."""
    torch.manual_seed(settings["seed"])
    model = TaskModel(settings["kinds"], settings["vocab"], settings["width"], settings["heads"]).to(device)
    task = MQAR(settings["length"], settings["kv"], settings["vocab"], settings["asks"])
    schedule = Schedule(settings["steps"], rate=settings["rate"], checkpoints=6)
    found = train(model, task, schedule, seed=settings["seed"], samples=2)
    tokens = task.draw(8, torch.Generator().manual_seed(9)).tokens.to(device)
    with torch.no_grad():
        counts = [ek.tolerance_ess(op, TOLERANCE).double().mean((0, 2)) for op in model.operators(tokens)]
    return {
        "accuracy": found[-1].accuracy,
        "accuracies": [each.accuracy for each in found],
        "largest_head": [float(c.max()) for c in counts],
        "mean_head": [float(c.mean()) for c in counts],
    }


def largest(run: runs.Run, kind: str) -> float:
    """The largest head's count in the layers of a kind; NaN if there is none."""
    return max((c for c, k in zip(run["largest_head"], run["kinds"]) if k == kind), default=float("nan"))


def report(found: list[runs.Run], folder: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    print("| mixers | runs | accuracy | largest count, SA | largest count, GLA |\n|---|---|---|---|---|")
    topologies = list(dict.fromkeys("-".join(run["kinds"]) for run in found))
    for number, name in enumerate(topologies):
        mine = [run for run in found if "-".join(run["kinds"]) == name]
        accuracy = np.array([run["accuracy"] for run in mine])
        cells = []
        for kind in ("SA", "GLA"):
            counts = np.array([largest(run, kind) for run in mine])
            cells.append("–" if np.isnan(counts).any() else mean_interval(counts))
            right.scatter(counts, accuracy, s=12, color=f"C{number}", marker="o" if kind == "SA" else "x")
        print(f"| {name} | {len(mine)} | {mean_interval(accuracy)} | {' | '.join(cells)} |")
        left.scatter(np.full(len(mine), number), accuracy, s=12, color=f"C{number}")
    for kind in ("SA", "GLA"):
        some = [run for run in found if kind in run["kinds"]]
        counts, accuracy = (np.array(x) for x in zip(*((largest(run, kind), run["accuracy"]) for run in some)))
        print(f"Pearson of accuracy with the largest {kind} count, {len(some)} runs:", end=" ")
        print(shown(interval(pearson, counts, accuracy)))
    left.set_xticks(range(len(topologies)), topologies, rotation=20 if len(topologies) < 9 else 90, fontsize=8)
    left.set(ylabel="accuracy", ylim=(0, 1.03))
    right.set(xlabel="largest count at 0.1 (o SA, x GLA)", ylim=(0, 1.03))
    figure.savefig(folder / "hybrids.png", dpi=90)


def main() -> None:
    parser = runs.parser_of(__doc__)
    parser.add_argument("--steps", type=int, help="steps of training, a multiple of 6; default: the size's own")
    options = parser.parse_args()
    folder, device = runs.prepare(options)
    base, layers = (SMALL, 2) if options.size == "small" else (LARGE, 4)
    steps = 12 if options.quick else options.steps or base["steps"]
    base = base | {"steps": steps}
    wanted = [
        {"kinds": list(kinds), "seed": seed} | base
        for seed in range(options.seeds or (2 if options.quick else 5))
        for kinds in itertools.product(("GLA", "SA"), repeat=layers)
    ]
    path = folder / "hybrids.jsonl"
    minutes = -1.0 if options.report else options.minutes
    found = runs.run_missing(path, wanted, lambda settings: do(settings, device), minutes)
    with runs.written_to(folder / "hybrids.md"):
        report(found, folder)


if __name__ == "__main__":
    main()
