"""Is a layer with more ESS harder to distil into a smaller state? (experiment e)

    OMP_NUM_THREADS=1 python bench/paper/distil.py           # three minutes on one core
    python bench/paper/distil.py --quick
    python bench/paper/distil.py --size gpu                  # the paper's sizes

Paper: section 5.2, table 6 and figure 31. Teachers are two layers of GLA, trained to recall, and untrained ones; a
student is one GLA layer with a smaller state, fitted to a teacher layer's operator,
`|T_student - T_teacher|_F^2 / |T_teacher|_F^2`. Beside it stands what no recurrence of that size can beat by much: the
error of `reduce` at the same state size, whose recurrence may even depend on later tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import runs
import torch
from correlations import interval, pearson, shown, spearman
from torch import Tensor

import ess_kernels as ek
from ess_kernels.analysis.featurizers import GLA
from ess_kernels.analysis.tasks import MQAR, Task
from ess_kernels.analysis.training import Schedule, TaskModel, train
from ess_kernels.reduction import reduce

SMALL: dict[str, Any] = {
    "width": 32, "heads": 2, "state": 16, "vocab": 48, "asks": 2, "fit_steps": 250, "sizes": [2, 4, 8], "batch": 16,
    "smeared": True, "rate": 1e-2,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "width": 128, "heads": 8, "state": 256, "vocab": 8192, "asks": 1, "fit_steps": 800, "sizes": [16, 32, 64, 128],
    "batch": 1, "smeared": False, "rate": 1e-3,
}  # fmt: skip


def plan(options: Any) -> Iterator[runs.Run]:
    seeds = range(options.seeds or (1 if options.quick else 3))
    if options.size == "gpu":
        tasks = [(kv, length, 14000) for kv in (64, 128) for length in (512, 1024, 2048)]
    else:
        tasks = [(16, 64, 300), (8, 32, 300), (4, 16, 300), (16, 64, 0)]
    if options.quick:
        tasks = [(4, 16, 6), (4, 16, 0)]
    for seed in seeds:
        for kv, length, steps in tasks:
            settings = {"kv": kv, "length": length, "steps": steps, "seed": seed}
            yield settings | (LARGE if options.size == "gpu" else SMALL) | ({"fit_steps": 5} if options.quick else {})


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over sequences and heads of the squared relative error."""
    return ((found - wanted).square().sum((-2, -1)) / wanted.square().sum((-2, -1))).mean()


def fit(student: GLA, data: list[tuple[Tensor, Tensor]], steps: int, rate: float) -> None:
    """Fits a student's operators to those of the teacher, `(x, T)` a batch."""
    optimizer = torch.optim.Adam(student.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - 0.95 * step / steps)
        x, wanted = data[step % len(data)]
        optimizer.zero_grad()
        relative_error(student.matrix(x), wanted).backward()
        optimizer.step()


def do(settings: runs.Run, device: torch.device) -> runs.Run:
    """One teacher, and a student of every size for each of its layers."""
    torch.manual_seed(settings["seed"])
    width, heads, smeared = settings["width"], settings["heads"], settings["smeared"]
    shape = {"state": settings["state"], "smeared": smeared}
    teacher = TaskModel(["GLA", "GLA"], settings["vocab"], width, heads, **shape).to(device)
    task = MQAR(settings["length"], settings["kv"], settings["vocab"], settings["asks"])
    accuracy = float("nan")
    if settings["steps"]:
        schedule = Schedule(settings["steps"], rate=1e-2 if width == 32 else 2e-3, checkpoints=1)
        accuracy = train(teacher, task, schedule, seed=settings["seed"], samples=1)[-1].accuracy
    teacher.requires_grad_(False)
    data = layers_on(teacher, task, settings["batch"], device)
    layers = []
    for number, (train_data, (x, wanted)) in enumerate(data):
        mixer = teacher.blocks[number].mixer
        op = mixer.operator(x)
        middle = ek.entropy_ess(op, [settings["length"] // 2])
        norm = wanted.double().square().sum((-2, -1))
        floor, loss = {}, {}
        for size in settings["sizes"]:
            floor[str(size)] = float((reduce(op, rank=size).error_bound.square() / norm).mean())
            torch.manual_seed(100 + settings["seed"])
            student = GLA(width, heads, state=size, smeared=smeared).to(device)
            fit(student, train_data, settings["fit_steps"], settings["rate"])
            with torch.no_grad():
                loss[str(size)] = float(relative_error(student.matrix(x), wanted))
        layers.append({"ess": float(middle.mean()), "least": float(middle.min()), "loss": loss, "floor": floor})
    return {"accuracy": None if np.isnan(accuracy) else accuracy, "layers": layers}


@torch.no_grad()
def layers_on(teacher: TaskModel, task: Task, batch: int, device: torch.device) -> list[Any]:
    """For each layer: sixteen batches of inputs and operators to fit on, and one to test on."""
    generator = torch.Generator().manual_seed(5)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in teacher.blocks]
    for _ in range(17):
        tokens = task.draw(batch, generator).tokens.to(device)
        for part, (mixer, x) in zip(found, teacher.mixer_inputs(tokens)):
            part.append((x, mixer.matrix(x)))
    return [(part[:-1], tuple(t[:8] for t in part[-1])) for part in found]


def report(found: list[runs.Run], folder: Path) -> None:
    """Correlations over teacher layers; trained and untrained ones are told apart in the figure."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    layers = [(layer, run["steps"] > 0) for run in found for layer in run["layers"]]
    lengths = np.array([run["length"] for run in found for _ in run["layers"]])
    ess, trained = np.array([layer["ess"] for layer, _ in layers]), np.array([t for _, t in layers])
    sizes = list(layers[0][0]["loss"])
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3.2), layout="constrained")
    print(
        f"{len(layers)} layers of {len(found)} teachers, entropy-ESS at the middle {ess.min():.1f} to {ess.max():.1f}"
    )
    print("| state | Pearson, loss | Spearman, loss | Pearson, longest task | Pearson, floor | loss below floor |")
    print("|---|---|---|---|---|---|")
    for ax, size in zip(axes, sizes):
        loss, floor = (np.array([layer[name][size] for layer, _ in layers]) for name in ("loss", "floor"))
        cells = [interval(pearson, ess, loss), interval(spearman, ess, loss)]
        longest = lengths == lengths.max()  # a longer task has more ESS and is harder to fit: one length alone
        cells += [interval(pearson, ess[longest], loss[longest]), interval(pearson, ess, floor)]
        below = int((loss < floor).sum())
        print(f"| {size} | " + " | ".join(shown(cell) for cell in cells) + f" | {below} of {len(loss)} |")
        for some, marker in ((trained, "o"), (~trained, "x")):
            ax.scatter(
                ess[some], loss[some], s=14, marker=marker, color="C0", label="student" if some is trained else None
            )
            ax.scatter(
                ess[some], floor[some], s=14, marker=marker, color="C1", label="reduce" if some is trained else None
            )
        ax.set(title=f"state {size}", xlabel="teacher's entropy-ESS (x: untrained)")
    axes[0].set_ylabel("squared relative error")
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "distil.png", dpi=90)


def main() -> None:
    options = runs.parser_of(__doc__).parse_args()
    folder, device = runs.prepare(options)
    wanted = list(plan(options))
    minutes = -1.0 if options.report else options.minutes
    found = runs.run_missing(folder / "distil.jsonl", wanted, lambda each: do(each, device), minutes)
    with runs.written_to(folder / "distil.md"):
        report(found, folder)


if __name__ == "__main__":
    main()
