"""Tables and figures of the runs of `sweep.py`, in Markdown on the standard output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import runs
from correlations import interval, mean_interval, partial, pearson, shown, spearman

MOVES = 0.02  # within a run, a standard deviation of accuracy over checkpoints below this is no movement


def value(found: list[runs.Run], name: str) -> np.ndarray:
    return np.array([run[name] for run in found], dtype=float)


def ess_of(found: list[runs.Run], metric: str, over_layers: Callable[..., Any] = np.mean) -> np.ndarray:
    """At the last checkpoint, mean (or another function) over layers."""
    return np.array([over_layers(run["checkpoints"][-1][metric]) for run in found])


def predictors(found: list[runs.Run]) -> dict[str, np.ndarray]:
    """What might say how accurate a run is, one number a run. TSS is the head size, for SA too."""
    kv, size = value(found, "kv"), value(found, "head_size")
    return {
        "entropy-ESS/kv": ess_of(found, "entropy") / kv,
        "entropy-ESS/kv, larger layer": ess_of(found, "entropy", max) / kv,
        "tolerance-ESS/kv": ess_of(found, "tolerance") / kv,
        "TSS/kv": size / kv,
        "log TSS/kv": np.log(size / kv),
        "entropy-ESS": ess_of(found, "entropy"),
        "TSS": size,
    }


def kinds_of(found: list[runs.Run]) -> list[str]:
    return list(dict.fromkeys(run["kind"] for run in found))


def report_correlations(found: list[runs.Run]) -> None:
    """a: over runs, which number goes with accuracy; and what ESS adds once TSS is known."""
    for name, statistic in (("Pearson", pearson), ("Spearman", spearman)):
        print(f"\na: {name} with accuracy over runs\n\n| predictor | " + " | ".join(kinds_of(found)) + " |")
        print("|---" * (len(kinds_of(found)) + 1) + "|")
        rows: dict[str, list[str]] = {}
        for kind in kinds_of(found):
            mine = [run for run in found if run["kind"] == kind]
            accuracy = value(mine, "accuracy")
            by_name = predictors(mine)
            for label, x in by_name.items():
                rows.setdefault(label, []).append(shown(interval(statistic, accuracy, x)))
            log = by_name["log TSS/kv"]
            for label in ("entropy-ESS/kv", "tolerance-ESS/kv"):

                def gain(y, x, t, statistic=statistic):
                    return statistic(y, x) - statistic(y, t)

                found_gain = interval(gain, accuracy, by_name[label], by_name["TSS/kv"])
                rows.setdefault(f"{label} minus TSS/kv", []).append(shown(found_gain))
                if statistic is pearson:
                    left = interval(partial, by_name[label], accuracy, log)
                    rows.setdefault(f"{label}, log TSS/kv taken out", []).append(shown(left))
        for label, cells in rows.items():
            print(f"| {label} | " + " | ".join(cells) + " |")
    print("\nruns and accuracy: ", end="")
    for kind in kinds_of(found):
        accuracy = value([run for run in found if run["kind"] == kind], "accuracy")
        print(f"{kind} {len(accuracy)} runs, {accuracy.min():.2f} to {accuracy.max():.2f}; ", end="")
    counts = np.unique(value(found, "seed"), return_counts=True)
    print("; ".join(f"seed {seed:.0f}: {count} runs" for seed, count in zip(*counts)))


def report_within(found: list[runs.Run]) -> None:
    """b: within a run, Pearson of ESS and accuracy over the checkpoints after step 0; and how full states are."""
    print("\nb: within runs, mean Pearson of ESS and accuracy over checkpoints [bootstrap over runs], and runs\n")
    print(
        "| mixer | head size | entropy-ESS | above 0 | tolerance-ESS | above 0 | runs |\n|---|---|---|---|---|---|---|"
    )
    for kind in kinds_of(found):
        for size in sorted({run["head_size"] for run in found}):
            correlations: dict[str, list[float]] = {"entropy": [], "tolerance": []}
            for run in found:
                later = run["checkpoints"][1:]
                accuracy = value(later, "accuracy")
                if run["kind"] != kind or run["head_size"] != size or accuracy.std() < MOVES:
                    continue
                for metric, listed in correlations.items():
                    listed.append(pearson(np.array([np.mean(c[metric]) for c in later]), accuracy))
            cells = []
            for listed in correlations.values():
                usable = np.array([x for x in listed if np.isfinite(x)])
                cells.append(
                    f"{mean_interval(usable)} | {(usable > 0).sum()} of {len(usable)}" if len(usable) else "– | –"
                )
            if correlations["entropy"]:
                print(f"| {kind} | {size} | " + " | ".join(cells) + f" | {len(correlations['entropy'])} |")
    print("\nb: share of the state that is used, tolerance-ESS (1e-3) over TSS, and accuracy; means over seeds\n")
    pairs = sorted({run["kv"] for run in found})
    print("| mixer | TSS | " + " | ".join(f"kv {kv}" for kv in pairs) + " |\n|---|---" + "|---" * len(pairs) + "|")
    for kind in kinds_of(found):
        for size in sorted({run["head_size"] for run in found}):
            cells = []
            for kv in pairs:
                mine = [r for r in found if (r["kind"], r["head_size"], r["kv"]) == (kind, size, kv)]
                full = ess_of(mine, "tolerance").mean() / size if mine else np.nan
                cells.append(f"{full:.2f}, {value(mine, 'accuracy').mean():.2f} ({len(mine)})" if mine else "–")
            print(f"| {kind} | {size} | " + " | ".join(cells) + " |")


def report_fixed(found: list[runs.Run]) -> None:
    """a2: models of one TSS that differ in how fast they forget."""
    print("\na2: TSS fixed, gates sigmoid^(1/beta); means over seeds [bootstrap]\n")
    print("| mixer | TSS = kv | beta | runs | accuracy | entropy-ESS | tolerance-ESS |\n|---|---|---|---|---|---|---|")
    for kind in kinds_of(found):
        cells = dict.fromkeys((r["head_size"], r["beta"]) for r in found if r["kind"] == kind)
        for size, beta in sorted(cells):
            mine = [r for r in found if (r["kind"], r["head_size"], r["beta"]) == (kind, size, beta)]
            shown_cells = [mean_interval(value(mine, "accuracy"))]
            shown_cells += [mean_interval(ess_of(mine, metric)) for metric in ("entropy", "tolerance")]
            print(f"| {kind} | {size} | {beta:g} | {len(mine)} | " + " | ".join(shown_cells) + " |")
    print("\na2: correlation of accuracy with entropy-ESS and with tolerance-ESS over the runs of one TSS\n")
    print("| mixer | TSS = kv | Pearson, entropy | Spearman | Pearson, tolerance | Spearman | runs |")
    print("|---|---|---|---|---|---|---|")
    for kind in kinds_of(found):
        for size in sorted({r["head_size"] for r in found}):
            mine = [r for r in found if r["kind"] == kind and r["head_size"] == size]
            if len(mine) < 4:
                continue
            accuracy = value(mine, "accuracy")
            cells = [
                shown(interval(statistic, accuracy, ess_of(mine, metric)))
                for metric in ("entropy", "tolerance")
                for statistic in (pearson, spearman)
            ]
            print(f"| {kind} | {size} | " + " | ".join(cells) + f" | {len(mine)} |")


def draw(found: list[runs.Run], fixed: list[runs.Run], folder: Path) -> None:
    """Accuracy against ESS/kv and TSS/kv (a), and against ESS at a fixed TSS (a2)."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = kinds_of(found)
    if found:
        figure, axes = plt.subplots(2, len(kinds), figsize=(3 * len(kinds), 5), layout="constrained", squeeze=False)
        for column, kind in enumerate(kinds):
            mine = [run for run in found if run["kind"] == kind]
            for ax, name in zip(axes[:, column], ("entropy-ESS/kv", "TSS/kv")):
                ax.scatter(predictors(mine)[name], value(mine, "accuracy"), c=value(mine, "kv"), s=12, cmap="viridis")
                ax.set_xscale("log", base=2)
                ax.set(xlabel=name, ylim=(0, 1.03))
            axes[0, column].set_title(kind)
        axes[0, 0].set_ylabel("accuracy (colour: kv)")
        figure.savefig(folder / "sweep.png", dpi=80)
    if fixed:
        figure, ax = plt.subplots(figsize=(4.5, 3.4), layout="constrained")
        for marker, kind in zip("ox", kinds_of(fixed)):
            for colour, size in enumerate(sorted({run["head_size"] for run in fixed})):
                mine = [run for run in fixed if run["kind"] == kind and run["head_size"] == size]
                label = f"{kind}, TSS = kv = {size}"
                ess = ess_of(mine, "entropy")
                ax.scatter(ess, value(mine, "accuracy"), s=14, marker=marker, color=f"C{colour}", label=label)
        ax.set(xlabel="entropy-ESS, mean of layers", ylabel="accuracy", ylim=(0, 1.03))
        ax.legend(fontsize=7)
        figure.savefig(folder / "fixed_tss.png", dpi=90)


def report(found: list[runs.Run], fixed: list[runs.Run], folder: Path) -> None:
    if found:
        report_correlations(found)
        report_within(found)
    if fixed:
        report_fixed(fixed)
    draw(found, fixed, folder)
