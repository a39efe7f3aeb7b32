"""Do regularisers that ask for more memory help a model that underuses its state? (experiment d)

    OMP_NUM_THREADS=1 python bench/paper/regularise.py       # fifteen minutes on one core; run again to go on
    python bench/paper/regularise.py --quick
    python bench/paper/regularise.py --size gpu              # the paper's sizes, but for half of its length

Paper: appendix A, table 5 and figure 10: `weight |A - I|_F` added to the loss, best on the second layer only. Here:
two layers of WLA with head size 16 on 16 pairs, smeared keys, every key asked twice. With smeared keys one layer can
recall, and it may be the first one. Beside the paper's term: the mean entropy-ESS at three positions, with a minus (as
much as there can be), and what it lacks to a floor.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import runs
import torch
from correlations import interval, mean_interval, shown
from torch import Tensor

from ess_kernels.analysis.regularizer import ESSRegularizer, transition_distance
from ess_kernels.analysis.tasks import MQAR
from ess_kernels.analysis.training import Schedule, TaskModel, train

SMALL = {"width": 32, "heads": 2, "kv": 16, "length": 64, "vocab": 48, "asks": 2, "steps": 300, "smeared": True}
LARGE = {
    "width": 128,
    "heads": 8,
    "kv": 128,
    "length": 2048,
    "vocab": 8192,
    "asks": 1,
    "steps": 14000,
    "smeared": False,
}
NONE, DISTANCE, MORE, FLOOR = "none", "norm of A - I", "more entropy-ESS", "floor of entropy-ESS"
FLOOR_AT = 5.0  # the runs without a regulariser end with an entropy-ESS near 3 where 10 was too much
SAMPLES = 8  # sequences of a step that ESS is taken of


def plan(seeds: range, base: runs.Run) -> list[runs.Run]:
    """First what differs most, for all seeds, then the other weights of the paper's term."""
    first = [(NONE, 0, 0.0), (DISTANCE, 0, 1.0), (DISTANCE, 1, 1.0), (MORE, 0, 0.05), (MORE, 1, 0.05)]
    first += [(FLOOR, 0, 0.05), (FLOOR, 1, 0.05)]
    then = [(DISTANCE, layer, weight) for weight in (0.125, 0.25, 0.5, 2.0) for layer in (0, 1)]
    return [
        {"term": term, "layer": layer, "weight": weight, "seed": seed, "kind": "WLA"} | base
        for settings in (first, then)
        for seed in seeds
        for term, layer, weight in settings
    ]


class Penalty:
    """The term of one layer. A hook keeps that layer's input of the forward pass that has just been made."""

    def __init__(self, model: TaskModel, term: str, layer: int, weight: float):
        self.mixer = model.blocks[layer].mixer
        self.mixer.register_forward_pre_hook(self._keep)
        self.term, self.weight = term, weight
        self.size = ESSRegularizer("entropy", floor=FLOOR_AT if term == FLOOR else None, positions=3)

    def _keep(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.x = inputs[0]

    def __call__(self, _model: TaskModel, _tokens: Tensor) -> Tensor:
        if self.term == DISTANCE:  # WLA's gates are the same for all tokens: two tokens of one sequence show them
            return self.weight * transition_distance(self.mixer.operator(self.x[:1, :2])).norm().float()
        value = self.size(self.mixer.operator(self.x[:SAMPLES])).float()
        return self.weight * (-value if self.term == MORE else value)


def do(settings: runs.Run, device: torch.device) -> runs.Run:
    torch.manual_seed(settings["seed"])
    kinds, smeared = [settings["kind"]] * 2, settings["smeared"]
    model = TaskModel(kinds, settings["vocab"], settings["width"], settings["heads"], smeared=smeared).to(device)
    penalty = Penalty(model, *(settings[name] for name in ("term", "layer", "weight")))
    task = MQAR(settings["length"], settings["kv"], settings["vocab"], settings["asks"])
    schedule = Schedule(settings["steps"], rate=1e-2 if settings["width"] == 32 else 2e-3)
    found = train(model, task, schedule, seed=settings["seed"], penalty=None if settings["term"] == NONE else penalty)
    return {"accuracy": found[-1].accuracy, "entropy": found[-1].entropy, "tolerance": found[-1].tolerance}


def report(found: list[runs.Run], folder: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys((run["term"], run["layer"], run["weight"]) for run in found))
    names.sort(key=lambda name: (name[0] != NONE, name[0], name[1], name[2]))
    figure, ax = plt.subplots(figsize=(8, 0.35 * len(names) + 1), layout="constrained")
    plain = {run["seed"]: run["accuracy"] for run in found if run["term"] == NONE}
    print("| term | layer | weight | runs | accuracy | lowest, highest | gain over none, by seed | entropy-ESS |")
    print("|---|---|---|---|---|---|---|---|")
    for number, (term, layer, weight) in enumerate(names):
        mine = [run for run in found if (run["term"], run["layer"], run["weight"]) == (term, layer, weight)]
        accuracy = np.array([run["accuracy"] for run in mine])
        pairs = np.array([run["accuracy"] - plain[run["seed"]] for run in mine if run["seed"] in plain])
        gain = "–" if term == NONE else shown(interval(lambda x: float(x.mean()), pairs))
        sizes = " and ".join(f"{x:.1f}" for x in np.mean([run["entropy"] for run in mine], 0))
        where = "–" if term == NONE else "first" if layer == 0 else "second"
        print(
            f"| {term} | {where} | {weight:g} | {len(mine)} | {mean_interval(accuracy)} |"
            f" {accuracy.min():.2f}, {accuracy.max():.2f} | {gain} | {sizes} |"
        )
        ax.scatter(accuracy, np.full(len(mine), number), s=14, color=f"C{layer}")
    ax.set_yticks(range(len(names)), [f"{term}, layer {layer + 1}, {weight:g}" for term, layer, weight in names])
    ax.set(xlabel="accuracy, a point a seed", xlim=(0, 1.03))
    figure.savefig(folder / "regularise.png", dpi=90)


def main() -> None:
    options = runs.parser_of(__doc__).parse_args()
    folder, device = runs.prepare(options)
    base = SMALL if options.size == "small" else LARGE
    if options.quick:
        base = base | {"steps": 12}
    wanted = plan(range(options.seeds or (1 if options.quick else 5)), base)
    minutes = -1.0 if options.report else options.minutes
    found = runs.run_missing(folder / "regularise.jsonl", wanted, lambda each: do(each, device), minutes)
    with runs.written_to(folder / "regularise.md"):
        report(found, folder)


if __name__ == "__main__":
    main()
