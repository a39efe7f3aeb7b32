"""What `gpu.py` checks and measures: groups of checks; one row a goal, its sizes, what it is held against.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Sizes = Mapping[str, int]

ATOL = 1e-3


@dataclass(frozen=True)
class Goal:
    """A limit for one figure of a row: `ms`, `us_per_matrix`, `peak_gb`, `per_product_time`, `times_svdvals`."""

    figure: str
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{self.figure} {'>=' if self.at_least else '<='} {self.limit:g}"


# what the kernels are written for, on one H100 or H200, by the key of a row
GOALS: Mapping[str, tuple[Goal, ...]] = {
    "gla-128-counts": (Goal("ms", 15), Goal("peak_gb", 2)),
    "gla-128-entropy": (Goal("ms", 90),),
    "ssd-128-counts": (Goal("ms", 15),),
    "ssd-128-entropy": (Goal("ms", 90),),
    "gla-64-counts": (Goal("ms", 7),),
    "gla-256-counts": (Goal("ms", 45),),
    "gated_delta_rule-128-counts": (Goal("ms", 50),),
    "mamba-counts": (Goal("ms", 16),),
    "mamba-entropy": (Goal("ms", 120),),
    "attention-2048-counts": (Goal("ms", 12),),
    "attention-2048-entropy": (Goal("ms", 100),),
    "attention-8192-counts": (Goal("ms", 20),),
    "attention-32768-counts": (Goal("ms", 1000),),
    "randomized": (Goal("per_product_time", 3),),
    "spectra-float32": (Goal("times_svdvals", 5, at_least=True),),
    "spectra-float64": (Goal("times_svdvals", 5, at_least=True),),
}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        key: for `--rows`.
        title: for people.
        family: which inputs, see `inputs.py`.
        metric: `counts` (one tolerance, `ATOL`), `entropy`, `randomized` or `values`.
        sizes: the goal's.
        warm: shorter ones, for which the same kernels are compiled.
        peer: sizes at which the engine in PyTorch is measured on the same GPU, beside the kernels at the same sizes.
        toy: for the interpreter.
    """

    key: str
    title: str
    family: str
    metric: str
    sizes: Sizes
    warm: Sizes
    peer: Sizes
    toy: Sizes

    @property
    def goals(self) -> tuple[Goal, ...]:
        return GOALS.get(self.key, ())


def _recurrence(family: str, name: str, n: int, metric: str, toy_n: int = 8) -> Row:
    title = f"{name}, 64 heads, L = 8192, n = {n}, {'one tolerance' if metric == 'counts' else 'entropy'}"
    sizes = {"length": 8192, "n": n, "heads": 64}
    toy = {"length": 20, "n": toy_n, "heads": 1}
    warm, peer = {"length": 1024}, {"length": 1024, "heads": 8}
    return Row(f"{family}-{n}-{metric}", title, family, metric, sizes, sizes | warm, sizes | peer, toy)


def _mamba(metric: str) -> Row:
    title = f"Mamba-1, 4096 channels, L = 2048, n = 16, {'one tolerance' if metric == 'counts' else 'entropy'}"
    sizes = {"length": 2048, "n": 16, "heads": 4096}
    peer = sizes | {"length": 512, "heads": 256}
    return Row(
        f"mamba-{metric}",
        title,
        "mamba",
        metric,
        sizes,
        sizes | {"length": 256},
        peer,
        sizes | {"length": 18, "heads": 2},
    )


def _attention(heads: int, length: int, metric: str) -> Row:
    what = "one tolerance" if metric == "counts" else "entropy"
    title = f"attention, {heads} head{'s' * (heads > 1)}, L = {length}, {what}"
    sizes = {"length": length, "n": 64, "heads": heads}
    toy = {"length": 40, "n": 8, "heads": 1}
    peer = sizes | {"length": min(length, 2048), "heads": min(heads, 4)}
    return Row(f"attention-{length}-{metric}", title, "attention", metric, sizes, sizes | {"length": 512}, peer, toy)


def _spectra(bits: int) -> Row:
    sizes = {"batch": 100_000, "n": 64, "bits": bits}
    title = f"singular values of 100 000 matrices 64 x 64, float{bits}"
    toy = {"batch": 4, "n": 8, "bits": bits}
    peer = sizes | {"batch": 200}
    return Row(f"spectra-float{bits}", title, "spectra", "values", sizes, sizes | {"batch": 1000}, peer, toy)


_RANDOMIZED = {"length": 8192, "n": 64, "heads": 32, "rank": 64, "positions": 16, "iterations": 2}

ROWS = (
    _recurrence("gla", "GLA", 128, "counts", toy_n=20),
    _recurrence("gla", "GLA", 128, "entropy"),
    _recurrence("ssd", "Mamba-2", 128, "counts"),
    _recurrence("ssd", "Mamba-2", 128, "entropy"),
    _recurrence("gla", "GLA", 64, "counts"),
    _recurrence("gla", "GLA", 256, "counts"),
    _recurrence("gated_delta_rule", "gated delta rule", 128, "counts"),
    _recurrence("kda", "KDA", 128, "counts"),
    _mamba("counts"),
    _mamba("entropy"),
    _attention(32, 2048, "counts"),
    _attention(32, 2048, "entropy"),
    _attention(1, 8192, "counts"),
    Row(
        "randomized",
        "attention, 32 heads, L = 8192, randomized, rank 64, 16 positions, one tolerance",
        "attention",
        "randomized",
        _RANDOMIZED,
        _RANDOMIZED | {"length": 512},
        _RANDOMIZED | {"heads": 4, "positions": 2},
        {"length": 40, "n": 8, "heads": 1, "rank": 8, "positions": 2, "iterations": 1},
    ),
    _spectra(32),
    _spectra(64),
    _attention(1, 32768, "counts"),
)

# groups of checks.py: those of a lane launch the same kernels, and run one after the other in one process
CHECK_LANES = (
    ("parts and scans", "boundaries", "poison", "hard recurrences n=64", "typical inputs"),
    ("rank-one parts", "hard delta rules"),
    ("small states", "hard recurrences n=16", "hard cases gla"),
    ("staircases", "dense kernels", "attention kernels", "hard cases attention and dense"),
    ("spectra", "shifts"),
)
# enough to see that all of it works
TOY_CHECK_LANES = (("parts and scans", "rank-one parts", "poison"), ("staircases", "dense kernels"), ("shifts",))

# the row that is also taken apart, kernel by kernel, and whose memory is watched
FIRST = ROWS[0].key


def row(key: str) -> Row:
    return next(row for row in ROWS if row.key == key)


def by_family(keys: Sequence[str]) -> list[list[str]]:
    """Rows that launch the same kernels side by side; what is no row's key is left alone."""
    families: dict[str, list[str]] = {}
    for key in keys:
        families.setdefault(next((row.family for row in ROWS if row.key == key), key), []).append(key)
    return list(families.values())


def chosen(keys: str) -> list[str]:
    """The keys of the rows asked for: all, or those that contain one of the comma-separated words."""
    words = [word for word in keys.split(",") if word]
    found = [row.key for row in ROWS if not words or any(word in row.key for word in words)]
    if not found:
        raise SystemExit(f"--rows: no row contains one of {words}; there are {', '.join(row.key for row in ROWS)}")
    return found
