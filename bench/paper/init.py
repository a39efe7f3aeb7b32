"""ESS at initialisation against the state size, on Gaussian noise, without training (experiment c).

    OMP_NUM_THREADS=1 python bench/paper/init.py             # two minutes on one core
    python bench/paper/init.py --quick

Paper: section 5.1, table 2 and figure 8. Width 128; GLA and GLA-S6 with 8 heads, S6 with 16 of its 128 channels
measured, with both ways to start its time steps (`S6` in `analysis/featurizers.py`). Weights: torch's default `Linear`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import runs
from torch import Tensor

from ess_kernels import operators
from ess_kernels.analysis import initialisation
from ess_kernels.analysis.featurizers import GLA, GLAS6, S6

WIDTH, HEADS, CHANNELS = 128, 8, 16
SIZES = (16, 32, 64, 128, 256)


class SomeChannels:
    """The operator of an S6 layer's first channels: there are 128, and they are alike."""

    width = WIDTH

    def __init__(self, mixer: S6):
        self.mixer = mixer

    def operator(self, x: Tensor) -> operators.Operator:
        return self.mixer.operator(x, channels=CHANNELS)


CASES: dict[str, Any] = {
    "GLA": lambda size: GLA(WIDTH, HEADS, state=size),
    "GLA-S6, alpha 1000": lambda size: GLAS6(WIDTH, HEADS, state=size, alpha=1000.0),
    "GLA-S6, alpha 4096": lambda size: GLAS6(WIDTH, HEADS, state=size, alpha=4096.0),
    "GLA-S6, alpha 16384": lambda size: GLAS6(WIDTH, HEADS, state=size, alpha=16384.0),
    "S6, step bias 0": lambda size: SomeChannels(S6(WIDTH, HEADS, state=size, step_bias="zero")),
    "S6, Mamba's step bias": lambda size: SomeChannels(S6(WIDTH, HEADS, state=size, step_bias="mamba")),
}


def do(settings: runs.Run) -> runs.Run:
    found = initialisation(
        CASES[settings["case"]], [settings["state"]], settings["length"], [settings["seed"]], positions=31
    )
    counts = {f"{atol:g}": float(count[0, 0]) for atol, count in found.counts.items()}
    return {"entropy": float(found.entropy[0, 0]), "counts": counts}


def means(found: list[runs.Run], case: str, value: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State sizes, and mean, lowest and highest over seeds of a value of the runs of a case: `[S]`, `[S]`, `[2, S]`."""
    mine = [run for run in found if run["case"] == case]
    sizes = sorted({run["state"] for run in mine})
    by_size = [np.array([value(run) for run in mine if run["state"] == size]) for size in sizes]
    return np.array(sizes), np.array([x.mean() for x in by_size]), np.array([[x.min(), x.max()] for x in by_size]).T


def report(found: list[runs.Run], folder: Path) -> None:
    """Prints the tables, and draws ESS against the state size; bars reach from the lowest to the highest seed."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    values = {"entropy-ESS": lambda run: run["entropy"]}
    for name in found[0]["counts"]:
        values[f"tolerance-ESS, {name}"] = lambda run, name=name: run["counts"][name]
    figure, axes = plt.subplots(1, len(values), figsize=(12, 3.6), layout="constrained")
    for ax, (title, value) in zip(axes, values.items()):
        print(f"\n{title}: mean over seeds [lowest, highest], by state size\n")
        print("| mixer | " + " | ".join(map(str, sorted({run["state"] for run in found}))) + " |")
        print("|---" * (1 + len({run["state"] for run in found})) + "|")
        for case in CASES:
            sizes, mean, ends = means(found, case, value)
            if not len(sizes):
                continue
            print(f"| {case} | " + " | ".join(f"{m:.1f} [{a:.1f}, {b:.1f}]" for m, a, b in zip(mean, *ends)) + " |")
            bars = np.abs(ends - mean)
            ax.errorbar(sizes, mean, bars, marker="o", ms=3, capsize=2, label=case)
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlabel="state size (TSS)", title=title)
    axes[0].set_ylabel("ESS, mean over heads and positions")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=6)
    figure.savefig(folder / "init.png", dpi=90)


def main() -> None:
    options = runs.parser_of(__doc__).parse_args()
    folder, _ = runs.prepare(options)
    length = 64 if options.quick else 1024 if options.size == "small" else 4096
    sizes = SIZES[:2] if options.quick else SIZES
    wanted = [
        {"case": case, "state": size, "seed": seed, "length": length}
        for seed in range(options.seeds or 3)
        for size in sizes
        for case in CASES
    ]
    found = runs.run_missing(folder / "init.jsonl", wanted, do, -1.0 if options.report else options.minutes)
    with runs.written_to(folder / "init.md"):
        report(found, folder)


if __name__ == "__main__":
    main()
