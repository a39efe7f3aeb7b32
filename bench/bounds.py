"""Bounds against exact answers: how fast, how many positions are closed, and ranks by length, tolerance and kind.

    python bench/bounds.py                     # times against exact answers, in one run
    python bench/bounds.py --quick             # the same at small lengths, to see that it runs
    python bench/bounds.py --long              # L = 32768: seconds and memory, each in a process of its own
    python bench/bounds.py --ranks 1024 4096   # ranks of compressed operators, the tables of docs/scale.md

Times are processor seconds of this process (`--threads`, one by default), so that other work on the machine matters
little; medians where a call is short. Every bound is compared with the exact count in the same run, where there is one.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import operators as ops
from ess_kernels.bounds import choice, counts
from ess_kernels.compressing import one_head
from ess_kernels.engine.compression import TooWide
from ess_kernels.operators import Operator
from ess_kernels.operators.tile_sources import tile_source

ATOL = 1e-3
SIZE = 64


def queries_and_keys(length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, length, SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    return q, k


def slowly_moving(length: int) -> Tensor:
    x = queries_and_keys(length, 1)[0].cumsum(2)
    return x / x.norm(dim=-1, keepdim=True) * SIZE**0.5


def damped_modes(length: int) -> Tensor:
    t, generator = torch.arange(length, dtype=torch.float64), torch.Generator().manual_seed(0)
    draw = torch.rand(3, 32, generator=generator, dtype=torch.float64)
    decay = torch.exp(-t[:, None] * 10 ** (-1 - 2.5 * draw[1]))
    return ((draw[0] - 0.5) * decay * torch.cos(3 * t[:, None] * draw[2])).sum(1) / 8


def alibi(length: int, slope: float) -> Operator:
    return ops.attention(*queries_and_keys(length), alibi_slopes=torch.tensor([slope], dtype=torch.float64))


def noise(length: int) -> Operator:
    t, generator = torch.arange(length), torch.Generator().manual_seed(0)
    kernel = torch.randn(length, generator=generator, dtype=torch.float64) * torch.exp(-t / 64) / 8
    return ops.convolution(kernel[None])


def power(length: int, exponent: float) -> Operator:
    return ops.convolution(((1.0 + torch.arange(length, dtype=torch.float64)) ** -exponent)[None])


def scaled(factor: float) -> Callable[[int], Operator]:
    return lambda length: ops.attention(factor * queries_and_keys(length)[0], queries_and_keys(length)[1])


KINDS: dict[str, Callable[[int], Operator]] = {
    "attention, random q and k": scaled(1.0),
    "attention, sharp (logits x 4)": scaled(4.0),
    "attention, flat (logits / 4)": scaled(0.25),
    "attention, slowly moving q = k": lambda length: ops.attention(slowly_moving(length), slowly_moving(length)),
    "attention, ALiBi slope 1/16": lambda length: alibi(length, 1 / 16),
    "attention, ALiBi slope 1/64": lambda length: alibi(length, 1 / 64),
    "convolution, 32 damped modes": lambda length: ops.convolution(damped_modes(length)[None]),
    "convolution, 1 / (1 + lag)": lambda length: power(length, 1.0),
    "convolution, (1 + lag)^-1/2": lambda length: power(length, 0.5),
    "convolution, noise exp(-lag / 64)": noise,
}
FULL_RANK = ("attention, random q and k", "attention, sharp (logits x 4)", "attention, flat (logits / 4)")
LONG = {
    "attention, ALiBi slope 1/16": "windowed",
    "convolution, 32 damped modes": "compressed",
    "convolution, 1 / (1 + lag)": "compressed",
}


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        found.append(time.process_time() - begin)
    return sorted(found)[len(found) // 2]


def against_exact(name: str, length: int, method: str) -> None:
    op = KINDS[name](length)
    results: dict[str, Tensor] = {}

    def exact() -> None:
        results["exact"] = ek.tolerance_ess(op, atol=ATOL)

    def bounds() -> None:
        found = ek.bounded_ess(op, ATOL, method=method)
        results["lower"], results["upper"], results["why"] = found.lower, found.upper, found.why  # type: ignore[assignment]

    slow, fast = seconds(exact), seconds(bounds)
    wrong = (results["exact"] < results["lower"]) | (results["exact"] > results["upper"])
    closed = 100 * float((results["lower"] == results["upper"]).double().mean())
    assert not bool(wrong.any()), name
    print(f"| {name} | {length} | {method} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {closed:.2f} |", flush=True)


def one_position(length: int) -> None:
    op = ops.dense(KINDS["attention, random q and k"](length).dense())
    every = ek.tolerance_ess(op, atol=ATOL)
    slow = seconds(lambda: ek.tolerance_ess(op, atol=ATOL), 3)
    for position in (length // 2, length // 10):
        found = ek.tolerance_ess(op, atol=ATOL, positions=[position])
        assert torch.equal(found, every[..., position - 1 : position])
        fast = seconds(lambda position=position: ek.tolerance_ess(op, atol=ATOL, positions=[position]), 5)
        print(f"| dense head, position {position} | {length} | exact | {slow:.3f} | {fast:.3f} | {slow / fast:.1f} | |")


def deciding(length: int) -> None:
    for name in FULL_RANK:
        op = KINDS[name](length)
        exact = seconds(lambda op=op: ek.tolerance_ess(op, atol=ATOL), 3)

        def decide(op: Operator = op) -> None:
            one = counts.Question(op, torch.arange(1, length), [ATOL]).of_heads(op.all_heads())
            assert choice.choose(one, 1e-4 * ATOL).method == "exact"

        taken = seconds(decide, 3)
        print(f"| deciding: {name} | {length} | auto | {exact:.3f} | {taken:.3f} | {100 * taken / exact:.1f} % | |")


def entropies(length: int) -> None:
    for name, method in (("attention, ALiBi slope 1/16", "windowed"), ("convolution, 32 damped modes", "compressed")):
        op = KINDS[name](length)
        found = ek.bounded_entropy_ess(op, method=method)
        exact = ek.entropy_ess(op)
        assert ((found.lower <= exact * 1.0001) & (exact <= found.upper * 1.0001)).all()
        radius = (found.upper.log() - found.lower.log()).flatten() / 2
        print(
            f"| entropy: {name} | {length} | {method} | median radius {float(radius.median()):.1e} | {found.why[0]} |"
        )


def long_one(name: str, length: int) -> None:
    begin = time.perf_counter()
    found = ek.bounded_ess(KINDS[name](length), ATOL, method=LONG[name])
    wall = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    closed = 100 * float((found.lower == found.upper).double().mean())
    print(f"| {name} | {length} | {LONG[name]} | {wall:.0f} | {peak:.2f} | {closed:.2f} | {found.why[0]} |", flush=True)


def ranks(lengths: list[int]) -> None:
    print("| kind | L | rank for tolerance 1e-1 | 1e-2 | 1e-3 | 1e-4 |\n|---|---|---|---|---|---|")
    for name, make in KINDS.items():
        for length in lengths:
            op, cells = make(length), []
            for tau in (1e-1, 1e-2, 1e-3, 1e-4):
                try:
                    source = tile_source(op, op.all_heads())
                    walked = one_head(source, 1e-4 * tau, None, 64, choice.PACE * choice.exact_work(length, 1))[1]
                    assert walked is not None
                    cells.append(str(max(walked.ranks)))
                except TooWide as wide:
                    cells.append(f"given up ({wide.rank} at {wide.edge})")
            print(f"| {name} | {length} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small lengths, to see that it runs")
    parser.add_argument("--ranks", type=int, nargs="+", metavar="L")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--one", metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=32768, help="of --long")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        long_one(options.one, options.length)
    elif options.ranks:
        ranks(options.ranks)
    elif options.long:
        print(
            "| kind | L | method | s | GiB, all of the process | closed % | |\n|---|---|---|---|---|---|---|",
            flush=True,
        )
        for name in LONG:
            own = [sys.executable, __file__, "--one", name, "--length", str(options.length)]
            subprocess.run([*own, "--threads", str(options.threads)], check=True)
    else:
        print(
            "| kind | L | method | exact s | bounds s | times faster | closed % |\n|---|---|---|---|---|---|---|",
            flush=True,
        )
        share = 8 if options.quick else 1
        one_position(2048 // share)
        against_exact("attention, ALiBi slope 1/16", 4096 // share, "windowed")
        against_exact("convolution, 32 damped modes", 8192 // share, "compressed")
        against_exact("convolution, 1 / (1 + lag)", 8192 // share, "compressed")
        deciding(2048 // share)
        deciding(4096 // share)
        entropies(1024 // share)


if __name__ == "__main__":
    main()
