"""Does a model let go of its state at delimiters? The demo's byte-level model on Python source (experiment g).

    OMP_NUM_THREADS=1 python bench/paper/delimiters.py       # half a minute
    python bench/paper/delimiters.py --quick
    python bench/paper/delimiters.py --orders --share 0.3    # trains four models: a quarter of an hour on a quiet core
    python bench/paper/delimiters.py --orders                # for as many steps as the demo's: three quarters

Paper: section 5.3, figures 9 and 35 to 46. The text is held out: the model has not been trained on these files. An
event is the position after a delimiter: `H_i` has the delimiter as its last input. The shipped model is one model of
one training seed, whose four layers are four kinds of mixer: kind and depth cannot be told apart in it. `--orders`
trains models with the mixers in each cyclic order, so that every kind stands in every layer once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import runs
import torch
from correlations import DRAWS, mean_interval

import ess_kernels as ek
from ess_kernels.analysis.modulation import Modulation, modulation
from ess_kernels.demo.measure import load_model
from ess_kernels.demo.model import MIXERS, ByteLM, Config

sys.path.insert(0, str(Path(__file__).parents[1]))
import train_demo

TOLERANCES = (1e-1, 1e-2, 1e-3)
REACH = 6
EVENTS: dict[str, Callable[[int, int], bool]] = {  # of the byte before the position, and the one before that
    "line end": lambda last, before: last == 10 and before != 10,
    "blank line": lambda last, before: last == 10 and before == 10,
    "space in a line": lambda last, before: last == 32 and before not in (32, 10),
    "letter": lambda last, before: chr(last).isalpha() and chr(before).isalpha(),
}


def windows_of_text(count: int, length: int) -> list[bytes]:
    """Pieces of the held-out files, evenly spread."""
    text = b"\n".join(train_demo.read(train_demo.HELD_OUT_FILES))
    step = len(text) // (count + 1)
    return [text[n * step : n * step + length] for n in range(count)]


@torch.no_grad()
def curves_of(model: ByteLM, pieces: list[bytes]) -> dict[tuple[int, str, str], np.ndarray]:
    """Total ESS, summed over heads, by layer, mixer and metric: float64 `[windows, P]`."""
    found: dict[tuple[int, str, str], list[np.ndarray]] = {}
    for piece in pieces:
        for layer, (mixer, op) in enumerate(model.operators(torch.tensor(list(piece))[None])):
            metrics = {"entropy": ek.entropy_ess(op)}
            metrics |= {f"{t:g}": c for t, c in zip(TOLERANCES, ek.tolerance_ess(op, atol=list(TOLERANCES)))}
            kind = next(name for name, each in MIXERS.items() if isinstance(mixer, each))
            for metric, ess in metrics.items():
                found.setdefault((layer, kind, metric), []).append(ess[0].double().sum(0).numpy())
    return {key: np.stack(curves) for key, curves in found.items()}


def measure(model: ByteLM, pieces: list[bytes], name: str) -> list[runs.Run]:
    """Modulation of every layer and metric at every kind of event, with intervals over windows."""
    rows = []
    length = len(pieces[0])
    at = {
        event: [[i for i in range(32, length - 32) if test(piece[i - 1], piece[i - 2])] for piece in pieces]
        for event, test in EVENTS.items()
    }
    for (layer, kind, metric), curves in curves_of(model, pieces).items():
        for event, marks in at.items():
            if not any(marks):
                continue
            pooled = modulation_if_any(curves, marks)
            if pooled is None:
                continue
            low, high = interval_over_windows(curves, marks)
            rows.append(
                {
                    "model": name, "layer": layer, "mixer": kind, "metric": metric, "event": event,
                    "events": pooled.events, "aligned": pooled.aligned.tolist(), "low": low, "high": high,
                    "z": pooled.z.tolist(), "depth": pooled.depth, "lowest": pooled.lowest, "depth_z": pooled.depth_z,
                }
            )  # fmt: skip
    return rows


def modulation_if_any(curves: np.ndarray, marks: list, draws: int = 200) -> Modulation | None:
    """None where no event has a neighbourhood with any ESS above 0."""
    try:
        return modulation(curves, marks, REACH, draws=draws)
    except ValueError:
        return None


def interval_over_windows(curves: np.ndarray, marks: list[list[int]]) -> tuple[float, float]:
    """The 95 % bootstrap interval of `aligned` right at the event: windows are drawn again, not single events."""
    tried = [modulation_if_any(c, m, draws=2) for c, m in zip(curves, marks)]
    found = [each for each in tried if each is not None]
    at_event, weight = np.array([f.aligned[REACH] for f in found]), np.array([f.events for f in found])
    pick = np.random.default_rng(0).integers(len(found), size=(DRAWS, len(found)))
    means = (at_event[pick] * weight[pick]).sum(1) / weight[pick].sum(1)
    return tuple(np.quantile(means, [0.025, 0.975]).tolist())


def do_order(settings: runs.Run, pieces: list[bytes]) -> runs.Run:
    """Trains a model whose mixers are turned by some layers, as the demo's is, and measures it."""
    kinds, turn = Config().layers, settings["turn"]
    torch.manual_seed(turn)
    model = ByteLM(Config(layers=kinds[turn:] + kinds[:turn]))
    stages = tuple((max(1, round(settings["share"] * steps)), *sizes) for steps, *sizes in train_demo.STAGES)
    train_demo.train(model, b"\n".join(train_demo.read(train_demo.TRAINING_FILES)), stages, turn)
    return {"rows": measure(model.eval(), pieces, f"order {turn}")}


def report(rows: list[runs.Run], folder: Path) -> None:
    """The state after a delimiter, in percent of its neighbourhood's mean, and curves for line ends."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    print("| model | layer | mixer | metric | event | events | at the event | z | deepest at | depth z |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        here = f"{100 * row['aligned'][REACH]:+.1f} % [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        print(
            f"| {row['model']} | {row['layer']} | {row['mixer']} | {row['metric']} | {row['event']} | {row['events']} |"
            f" {here} | {row['z'][REACH]:+.1f} | {row['lowest']:+d} | {row['depth_z']:+.1f} |"
        )
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    figure, axes = plt.subplots(1, len(metrics), figsize=(12, 3.2), layout="constrained", sharey=True)
    for ax, metric in zip(axes, metrics):
        for row in rows:
            if row["metric"] == metric and row["event"] == "line end" and row["model"] == rows[0]["model"]:
                percent = 100 * np.array(row["aligned"])
                ax.plot(range(-REACH, REACH + 1), percent, marker=".", label=f"{row['layer']} {row['mixer']}")
        ax.axhline(0, color="grey", lw=0.5)
        ax.set(title=metric, xlabel="positions after a line end")
    axes[0].set_ylabel("ESS against its neighbourhood, %")
    axes[0].legend(fontsize=7)
    figure.savefig(folder / "delimiters.png", dpi=90)


def report_orders(found: list[runs.Run], folder: Path) -> None:
    """The state at line ends by kind of mixer, over the layers in which it stood, and layer by layer in a figure."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for run in found for row in run["rows"] if row["event"] == "line end"]
    metrics, kinds = (list(dict.fromkeys(row[name] for row in rows)) for name in ("metric", "mixer"))
    print(f"At line ends, {len(found)} models; mean over the layers in which the mixer stood [bootstrap over models]\n")
    print("| mixer | metric | models | at the event, % | by layer, % | z below -3 |\n|---|---|---|---|---|---|")
    figure, axes = plt.subplots(1, len(metrics), figsize=(12, 3.2), layout="constrained", sharey=True)
    for kind in sorted(kinds):
        for ax, metric in zip(axes, metrics):
            mine = sorted((r for r in rows if (r["mixer"], r["metric"]) == (kind, metric)), key=lambda r: r["layer"])
            if not mine:
                continue
            percent = 100 * np.array([row["aligned"][REACH] for row in mine])
            layers = ", ".join(f"{row['layer']}: {p:+.1f}" for row, p in zip(mine, percent))
            far = sum(row["z"][REACH] < -3 for row in mine)
            print(f"| {kind} | {metric} | {len(mine)} | {mean_interval(percent)} | {layers} | {far} of {len(mine)} |")
            ax.plot([row["layer"] for row in mine], percent, marker="o", label=kind)
            ax.axhline(0, color="grey", lw=0.5)
            ax.set(title=metric, xlabel="layer", xticks=range(len(kinds)))
    axes[0].set_ylabel("ESS at a line end, % off")
    axes[0].legend(fontsize=7)
    figure.savefig(folder / "delimiters_orders.png", dpi=90)


def of_the_demo(options: argparse.Namespace, folder: Path, pieces: list[bytes]) -> None:
    path = folder / "delimiters.json"
    if not options.report:
        rows = measure(load_model()[0].eval(), pieces, "shipped")
        path.write_text("[\n" + ",\n".join(json.dumps(runs.rounded(row)) for row in rows) + "\n]\n")
    with runs.written_to(folder / "delimiters.md"):
        report(json.loads(path.read_text()), folder)


def of_orders(options: argparse.Namespace, folder: Path, pieces: list[bytes]) -> None:
    turns = range(2 if options.quick else len(Config().layers))
    wanted = [{"turn": turn, "share": 0.001 if options.quick else options.share} for turn in turns]
    minutes = -1.0 if options.report else options.minutes
    path = folder / "delimiters_orders.jsonl"
    found = runs.run_missing(path, wanted, lambda settings: do_order(settings, pieces), minutes)
    if found:
        with runs.written_to(folder / "delimiters_orders.md"):
            report_orders(found, folder)


def main() -> None:
    parser = runs.parser_of(__doc__)
    parser.add_argument("--orders", action="store_true", help="train models with the mixers in each cyclic order")
    parser.add_argument("--share", type=float, default=1.0, help="of the demo's training steps; with --orders")
    options = parser.parse_args()
    folder, _ = runs.prepare(options)
    pieces = windows_of_text(*((2, 160) if options.quick else (10, 512)))
    if options.orders or options.size == "gpu":
        of_orders(options, folder, pieces)
    else:
        of_the_demo(options, folder, pieces)


if __name__ == "__main__":
    main()
