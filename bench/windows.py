"""Operators with a window: the same answers as from the whole operator, in how much less time and memory.

    python bench/windows.py                      # a table; three minutes on two cores
    python bench/windows.py --quick              # smaller, to see that it runs
    python bench/windows.py --output FILE        # the figures as JSON too

Both ways of answering are timed in one run, in turn; the figures are medians, with the least and the largest time. The
whole operator is what a call takes where the chunks of `ess_kernels.backends.windowed` are switched off.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peak_memory import peak_memory
from torch import Tensor

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.backends import chunks, windowed
from ess_kernels.operators import Operator
from ess_kernels.reference import reference_entropy_ess, reference_tolerance_ess

TOLERANCES = [1e-1, 1e-2, 1e-4]
SIZE = 64
METRICS: dict[str, Callable[[Operator], Tensor]] = {
    "counts 0.001": lambda op: ek.tolerance_ess(op),
    "entropy": lambda op: ek.entropy_ess(op),
}


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def attention(length: int, window: int, heads: int = 1) -> Operator:
    return operators.attention(randn(1, heads, length, SIZE), randn(1, heads, length, SIZE), window_size=window)


def band(length: int, window: int, first: int = 0) -> Tensor:
    """bool `[L, L]`: the last `window` columns of every row, and the first ones of all."""
    column = torch.arange(length)
    row = column[:, None]
    return (column <= row) & ((column > row - window) | (column < first))


def masked(length: int, window: int, first: int = 0) -> Operator:
    q, k = randn(1, 1, length, SIZE), randn(1, 1, length, SIZE)
    return operators.attention(q, k, attn_mask=band(length, window, first))


def kernel(length: int, window: int) -> Tensor:
    k = randn(2, length) / window**0.5
    k[:, window:] = 0
    return k


KINDS: dict[str, Callable[[int, int], Operator]] = {
    "attention": attention,
    "forgetting attention": lambda L, w: operators.attention(
        randn(1, 2, L, 8), randn(1, 1, L, 8), window_size=w, g=-randn(1, 2, L).abs(), sinks=randn(2)
    ),
    "ALiBi": lambda L, w: operators.attention(
        randn(1, 2, L, 8), randn(1, 2, L, 8), window_size=w, alibi_slopes=torch.tensor([0.25, 0.06])
    ),
    "bool mask": masked,
    "mask of -inf": lambda L, w: operators.attention(
        randn(1, 1, L, 8), randn(1, 1, L, 8), attn_mask=torch.where(band(L, w), 0.0, -torch.inf)
    ),
    "bool mask, 2 first columns": lambda L, w: masked(L, w, 2),
    "convolution": lambda L, w: operators.convolution(kernel(L, w)),
    "gated convolution": lambda L, w: operators.gated_convolution(randn(1, 2, L), kernel(L, w), randn(1, 2, L)),
    "dense": lambda L, w: operators.dense(randn(1, L, L).double() * band(L, w)),
    "Parallax": lambda L, w: operators.parallax(
        randn(1, L, 1, 8), 0.1 * randn(1, L, 1, 8), randn(1, L, 1, 8), window_size=w
    ),
}


@contextmanager
def always() -> Iterator[None]:
    """Windows are answered by chunks, small ones too, whatever that costs."""
    with (
        mock.patch.object(windowed, "SHORTEST", 2),
        mock.patch.object(chunks, "WORTHWHILE", 1e9),
        mock.patch.object(chunks, "MORE", 1),
    ):
        yield


def never() -> Any:
    """The whole operator answers."""
    return mock.patch.object(windowed, "SHORTEST", float("inf"))


def agreement(length: int) -> list[dict[str, Any]]:
    """Every operator with every window against one singular value decomposition a position."""
    rows = []
    for name, make in KINDS.items():
        compared = wrong = 0
        error = 0.0
        for window in range(1, length + 1):
            op = make(length, window)
            truth = torch.stack([reference_tolerance_ess(op, atol) for atol in TOLERANCES])
            entropy = reference_entropy_ess(op)
            with always():
                counts, found = ek.tolerance_ess(op, TOLERANCES), ek.entropy_ess(op)
            compared += counts.numel()
            wrong += int((counts != truth).sum())
            error = max(error, float(((found - entropy).abs() / entropy.clamp_min(1)).amax()))
        rows.append({"operator": name, "length": length, "compared": compared, "wrong": wrong, "entropy_error": error})
    return rows


def times(make: Callable[[], Operator], title: str, length: int, window: int, repeats: int) -> list[dict[str, Any]]:
    """By chunks and whole, in turn, and whether the answers are the same."""
    op, rows = make(), []
    for metric, call in METRICS.items():
        seconds: dict[str, list[float]] = {"chunks": [], "whole": []}
        answers: dict[str, Tensor] = {}
        for repeat in range(repeats + 1):
            for way in seconds:
                with never() if way == "whole" else mock.patch.object(windowed, "SHORTEST", windowed.SHORTEST):
                    start = time.perf_counter()
                    answers[way] = call(op)
                    took = time.perf_counter() - start
                if repeat:  # the first one warms up
                    seconds[way].append(took)
        row: dict[str, Any] = {"operator": title, "length": length, "window": window, "metric": metric}
        for way, each in seconds.items():
            row |= {f"{way}_seconds": statistics.median(each), f"{way}_spread": [min(each), max(each)]}
        row["ratio"] = row["whole_seconds"] / row["chunks_seconds"]
        difference = (answers["chunks"] - answers["whole"]).abs()
        row["different"] = int((difference > (0 if metric != "entropy" else 1e-4 * answers["whole"])).sum())
        rows.append(row)
    return rows


def long(length: int, window: int, repeats: int) -> dict[str, Any]:
    """One tolerance at all positions of one long head, and the memory beside its inputs, in a process of its own."""
    op = attention(length, window)
    each = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        counts = ek.tolerance_ess(op)
        if repeat:
            each.append(time.perf_counter() - start)
    start = time.perf_counter()
    ek.entropy_ess(op)
    entropy = time.perf_counter() - start
    before, peak = peak_memory("windows", f"attention({length}, {window})", "native", warm_up="attention(256, 16)")
    return {
        "length": length,
        "window": window,
        "seconds": statistics.median(each),
        "spread": [min(each), max(each)],
        "entropy_seconds": entropy,
        "peak_bytes": peak - before,
        "largest_count": int(counts.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--output", type=Path, help="also write the figures to this file, as JSON")
    options = parser.parse_args()
    small, length, longest, repeats = (5, 512, 1024, 1) if options.quick else (24, 2048, 32768, 5)
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ess_kernels": ek.__version__,
    }
    result["agreement"] = agreement(small)
    print(f"| L = {small}, windows 1..{small} | counts compared | wrong | largest relative error of the entropy |")
    print("|---|---|---|---|")
    for row in result["agreement"]:
        print(f"| {row['operator']} | {row['compared']} | {row['wrong']} | {row['entropy_error']:.1e} |", flush=True)
    result["times"] = []
    print("\n| operator | L | w | metric | by chunks, ms | whole, ms | ratio | different |")
    print("|---|---|---|---|---|---|---|---|")
    cases = [("attention", attention, length, length // share) for share in (128, 32, 16, 8, 7)]
    others = ("bool mask, 2 first columns", "convolution", "dense")
    cases += [(name, KINDS[name], length, length // 16) for name in others]
    for name, make, L, w in cases:
        for row in times(lambda make=make, L=L, w=w: make(L, w), name, L, w, repeats):
            result["times"].append(row)
            print(
                f"| {name} | {L} | {w} | {row['metric']} | {1e3 * row['chunks_seconds']:.1f} | "
                f"{1e3 * row['whole_seconds']:.1f} | {row['ratio']:.1f} | {row['different']} |",
                flush=True,
            )
    result["long"] = row = long(longest, 128, repeats)
    print(
        f"\nL = {longest}, w = 128, one head, all positions: one tolerance {row['seconds']:.2f} s, entropy "
        f"{row['entropy_seconds']:.2f} s, {row['peak_bytes'] / 2**20:.0f} MiB beside the inputs"
    )
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
