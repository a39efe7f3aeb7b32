"""What we aim at on two cores with AVX-512, at full lengths, against what a run of `all_positions.py` measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# case, metric, times faster than one svdvals per position, times faster than informed torch (None: no goal)
SPEED = (
    ("gla64", "counts 0.001", 25_000, 120),
    ("gla64", "entropy", 12_000, 60),
    ("gla128", "counts 0.001", 7_000, None),
    ("gla128", "entropy", 3_500, None),
    ("mamba", "counts 0.001", 50_000, None),
    ("mamba", "entropy", 15_000, None),
    ("attention", "counts 0.001", 2_000, None),
    ("attention", "entropy", 180, None),
    ("dense", "counts 0.001", 3_000, None),
)
# what trained models have, against the usual input of its shape: at most so many times as slow, at any tolerance
UNKIND = {
    "plain": "attention1024",
    "sink": "attention1024",
    "local": "attention1024",
    "sink-and-local": "attention1024",
    "gates": "gla64",
    "steps": "mamba",
}
UNKIND_TIMES = 3.0
# complex states, against twice as many real ones
COMPLEX = {"complex16": "real32", "complex32": "real64", "complex64": "real128"}
COMPLEX_TIMES = 1.5
# five tolerances at once, over one
FIVE = {"attention": 3.7, "gla64": 3.0}
# packed sequences, over what they are compared with
PACKED = 1.3
# speed at small tolerances, over that at 1e-3
SMALL_TOLERANCES = ("counts 1e-05", "counts 1e-06")
SMALL_SPEED = 0.25


@dataclass
class Judged:
    what: str
    measured: float
    goal: float
    met: bool


def judge(report: dict[str, Any]) -> list[Judged]:
    """Every goal of whose case there are rows in the report."""
    rows = {(row["key"], row["metric"]): row for row in report["rows"]}
    judged = []

    def at_least(what: str, measured: float, goal: float) -> None:
        judged.append(Judged(what, measured, goal, measured >= goal))

    for key, metric, paper, informed in SPEED:
        row = rows.get((key, metric))
        if row is None:
            continue
        name = f"{row['case']}, {metric}"
        at_least(f"{name}: times one svdvals per position", row["paper_seconds"] / row["seconds"], paper)
        if informed is not None:
            at_least(f"{name}: times informed torch", row["informed_seconds"] / row["seconds"], informed)
    for row in report["five"]:
        if row["key"] in FIVE:
            goal = FIVE[row["key"]]
            judged.append(
                Judged(f"{row['case']}: five tolerances, at most times one", row["ratio"], goal, row["ratio"] <= goal)
            )
    for row in report["packed"]:
        if row["kind"] == "equal" or row["case"] == "attention":
            what = f"{row['case']}, {row['metric']}, {row['title']}: at most times {row['against']}"
            judged.append(Judged(what, row["ratio"], PACKED, row["ratio"] <= PACKED))
    for pairs, most in ((UNKIND, UNKIND_TIMES), (COMPLEX, COMPLEX_TIMES)):
        for (key, metric), row in rows.items():
            usual = rows.get((pairs.get(key, ""), metric))
            if usual is not None:
                times = row["seconds"] / usual["seconds"]
                what = f"{row['case']}, {metric}: at most times {usual['case']}"
                judged.append(Judged(what, times, most, times <= most))
    for (key, metric), row in rows.items():
        if metric in SMALL_TOLERANCES:
            speed = rows[key, "counts 0.001"]["seconds"] / row["seconds"]
            at_least(f"{row['case']}, {metric}: of the speed at 1e-3", speed, SMALL_SPEED)
    return judged
