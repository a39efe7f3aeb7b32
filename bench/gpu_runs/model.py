"""Estimates of every row of `gpu.py` without a GPU: compiled code for sm_90, bytes counted by hand, stated assumptions.

    python bench/gpu_model.py [--rows WORDS] [--output FOLDER]

No number here was measured. Instructions come from the machine code of the variants that the launch rules choose
(`code.py`), batches and slices from the package's own rules, library products from running its code on tensors
without data; what they cost is assumed in `work.py`.

Of a recurrence's blocks a share is eliminated at two tolerances, on both sides of the one asked for: those whose widths
are known to be too large, which is computed for one head of the same kind of inputs, and `REDONE` of them, assumed,
where a value of an eliminated block is near the tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import inputs
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ess_kernels.backends.triton.attention.logits import NO_MASK
from ess_kernels.backends.triton.attention.products import for_products
from ess_kernels.backends.triton.attention.softmax import for_whole_tiles
from ess_kernels.backends.triton.launches import Launch
from ess_kernels.backends.triton.matrix import elimination as panel_kernels
from ess_kernels.backends.triton.matrix import engine as matrix
from ess_kernels.backends.triton.matrix import halves
from ess_kernels.backends.triton.recurrence import boundary as boundaries
from ess_kernels.backends.triton.recurrence import engine as recurrence
from ess_kernels.backends.triton.recurrence import parts, passes, roots, scans
from ess_kernels.backends.triton.recurrence import small as small_states
from ess_kernels.engine import tiled
from ess_kernels.engine.certainty import EPS, SURE
from ess_kernels.environment import DEFAULT_MEMORY_BUDGET
from ess_kernels.operators.structure import StateSpace

from . import code, rank_one_work
from . import inputs as gpu_inputs
from .cases import ATOL, ROWS, Row, chosen
from .jobs import BENCH
from .work import (
    ACHIEVED,
    BATCH_OPERATIONS,
    BOOKKEEPING,
    CLOCK,
    EFFICIENCY,
    HOST,
    L2,
    LARGE_PRODUCTS,
    LONE,
    MULTIPROCESSORS,
    PEAK_BANDWIDTH,
    REDONE,
    RESIDENT,
    SHIFTS,
    SLICE_OPERATIONS,
    SMALL_PRODUCTS,
    SWEEPS,
    Work,
    descend,
)

# --- recurrences ------------------------------------------------------------------------------------------------------


def recurrence_row(row: Row) -> Work:
    work = Work()
    length, heads = row.sizes["length"], row.sizes["heads"]
    N, c = parts.padded(row.sizes["n"]), recurrence.block_length(row.sizes["n"])
    definite = row.metric == "entropy"
    kind = row.family
    rank_one = kind in rank_one_work.FAMILIES
    at_once = max(1, min(heads, DEFAULT_MEMORY_BUDGET // recurrence.bytes_per_head(length, N, rank_one)))
    blocks = math.ceil(length / c)
    small = c == 16 and not rank_one
    twice = 0.0 if definite else share_counted_twice(row)
    # shifts of every block: where the width is foreseen two eliminations take the place of one
    shifts = SHIFTS if definite else 1 + (2 if small else 1) * twice + 2 * REDONE
    for first in range(0, heads, at_once):
        some = min(at_once, heads - first)
        items = some * blocks
        tokens = some * length
        # reads and writes that heads share are read once
        read = 4 * tokens * 3 * N if kind == "gla" else 4 * (tokens + 2 * N * length)
        if small:
            for direction in ("forward", "backward"):
                work.launch(
                    "scan", code.scan16(kind, direction, blocks), some, small_states.LAUNCH, items * 256 * 8 + read
                )
            fused(work, kind, items, shifts, definite, read)
        else:
            chain(work, kind, N, c, some, blocks, shifts, definite, read)
        work.copies("everything else", 8 * tokens * BOOKKEEPING * (SHIFTS / 4 if definite else 1))
        work.host_operations += SLICE_OPERATIONS * (1 if definite else 2)
    work.notes = {
        "shifts_a_block": shifts,
        "slices": math.ceil(heads / at_once),
        "heads_a_slice": at_once,
        "tokens_a_block": c,
    }
    return work


def fused(work: Work, kind: str, items: int, shifts: float, definite: bool, read: float) -> None:
    """States of at most 16: from tokens to nodes in one kernel, then the staircase."""
    each = max(1, passes.NODE_WORKSPACE // (8 * 6 * 256 * round(shifts)))
    batches = math.ceil(items / each)
    moved = read + items * 8 * (512 + 768 * shifts)
    count = code.block16(kind, definite, shifts)
    work.launch("boundary", count, items / batches, small_states.LAUNCH, moved / batches, batches)
    descend(work, items * shifts, 16, definite, batches)
    work.host_operations += batches * BATCH_OPERATIONS


def chain(
    work: Work, kind: str, n: int, c: int, heads: int, blocks: int, shifts: float, definite: bool, read: float
) -> None:
    """Larger states: parts, scans, then for batches of blocks roots, products, boundaries and staircases."""
    items = heads * blocks
    written = 8 * items * (2 * c * n + 2 * c * c + n)
    # rows carried along are read and written once for every later sub-block
    carried = 8 * items * (2 * c * n * (c / 16 - 1) / 2) * 2
    rank_one = kind in rank_one_work.FAMILIES
    if rank_one:
        rank_one_work.blocks_of(work, n, c, heads, blocks)
    else:
        work.launch("parts", code.parts(kind, n, c), items, parts.launch(n, False), read + written + carried)
        width, scan_rule = scans.launch(n, heads)
        tiles = (n // width) ** 2
        reread = 8 * items * 2 * c * n * (n // width)
        moved = 8 * items * 2 * n * n + reread
        work.launch("scan", code.scan(n, c, width, blocks), 2 * heads * tiles, scan_rule, moved)
    # as in PartsEngine._blocks
    batches = math.ceil(items / passes.blocks_at_once(n, c))
    some = items / batches
    cuts = math.ceil(some * shifts / passes.pairs_at_once(c))
    if not definite:
        # blocks that are done again are gathered
        work.copies("everything else", REDONE * 2 * 8 * items * (2 * n * n + 2 * c * n + c * c))
    work.launch("root", code.root(n), some, roots.launch(n)[1], 8 * some * 2.5 * n * n, batches)
    # where `Phi` is a matrix, the root and the Gramian are also multiplied with it
    cubes, squares = (8, 14) if rank_one else (4, 9)
    flops = items * (1.0 * cubes * n**3 + 6 * n * n * c + 2 * n * c * c)
    moved = 8 * items * (squares * n * n + 7 * n * c + 3 * c * c)
    work.products("products", flops, moved, SMALL_PRODUCTS, 8 * batches)
    tile, rule = boundaries.launch(n, c)
    slots = MULTIPROCESSORS * (RESIDENT // rule.num_warps)
    factored = 8 * n * (n / 2 + 2 * c)
    missed = max(0.0, 1 - L2 / (8 * slots * n * (n + 2 * c)))
    moved = 8 * (n * n / 2 + 2 * c * n + 2 * c * c + 3 * c * c) + factored + missed * reads_of_factored(n, c, tile)
    pairs = some * shifts / cuts
    count = code.boundary(n, c, tile, definite)
    work.launch("boundary", count, pairs, rule, pairs * moved, batches * cuts)
    descend(work, items * shifts, c, definite, batches * cuts)
    work.host_operations += batches * (BATCH_OPERATIONS + (cuts - 1) * 10)


def reads_of_factored(n: int, c: int, width: int) -> float:
    """Bytes of factored rows that one boundary reads again."""
    panels = range(0, n, 16)
    strips = sum((len(range((p + 16) // width * width, n, width)) + 2 * c / width) * p * (width + 16) for p in panels)
    return 8 * (strips + (c // 16) * (c // width) * n * 2 * (16 + width))


def share_counted_twice(row: Row) -> float:
    """Share of blocks whose width at `ATOL` is foreseen, or known after one elimination, to be too large."""
    n = row.sizes["n"]
    length, heads = min(row.sizes["length"], 1024), 8 if row.family == "mamba" else 1
    sizes = {"length": length, "n": n, "heads": heads}
    if row.family == "mamba":
        op = inputs.mamba(length, heads, n)
    else:
        op = inputs.gla(length, n, heads) if row.family == "gla" else gpu_inputs.operator(row, sizes)
    assert isinstance(op, StateSpace)
    c = recurrence.block_length(n)
    built = parts.build_in_torch(op.tokens(op.all_heads()), c)
    P, Q = scans.gramians_in_torch(built, heads)
    if built.Phi.dim() == 2:
        mass = built.Phi.square() * Q.diagonal(dim1=1, dim2=2)
    else:
        mass = torch.einsum("bij,bij->bj", built.Phi, Q @ built.Phi)
    reached = (P.diagonal(dim1=1, dim2=2) * mass).sum(1)
    corner = (built.Z.square() @ Q.diagonal(dim1=1, dim2=2)[..., None])[..., 0].amax(1)
    width = EPS * recurrence._root_error(reached, parts.padded(n)) / ATOL**2
    if c == 16:
        width = width + EPS * corner / ATOL**2
    return float((width > SURE).double().mean())


# --- attention --------------------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts operations and bytes of batched products, and everything that would be launched."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0.0
        self.launches = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        if name in ("bmm", "baddbmm", "baddbmm_"):
            A, B = arguments[-2:]
            batch, rows, inner = A.shape
            columns = B.shape[-1]
            self.flops += 2.0 * batch * rows * inner * columns
            self.bytes += 8.0 * batch * (rows * inner + inner * columns + 2 * rows * columns)
            self.launches += 1
        elif name in ("copy_", "clone", "zero_", "fill_"):
            self.launches += 1
        return function(*arguments, **(options or {}))


@contextmanager
def without_kernels(calls: list[tuple[str, torch.Size, int]]) -> Iterator[None]:
    """`panel_kernels.eliminate` on tensors without data: its kernels are only taken note of."""
    kept = panel_kernels.diagonal, panel_kernels.rows

    def note(name: str) -> Callable[..., None]:
        def call(M: torch.Tensor, size: int, *others: Any) -> None:
            calls.append((name, M.shape, M.shape[-1] - others[-2] - size))

        return call

    panel_kernels.diagonal, panel_kernels.rows = note("diagonal"), note("rows")
    try:
        yield
    finally:
        panel_kernels.diagonal, panel_kernels.rows = kept


def elimination(work: Work, count: int, h: int, definite: bool, times: float) -> None:
    """`count` nodes of a level eliminated at once, `times` times: `[E | V1 | V2]`, `h x 3h`."""
    calls: list[tuple[str, torch.Size, int]] = []
    M = torch.empty(count, h, 3 * h, dtype=torch.float64, device="meta")
    out = torch.empty(count, 3, h, h, dtype=torch.float64, device="meta")
    value = torch.empty(count, dtype=torch.float64, device="meta")
    with without_kernels(calls), Products() as products:
        done = panel_kernels.eliminate(M, value, value, definite)
        for part, rows, columns in ((0, 0, 0), (1, 0, h), (2, h, h)):
            matrix.lower_product(out[:, part], done.scaled[..., rows : rows + h], done.rows[..., columns : columns + h])
    panel = panel_kernels.PANEL
    for name, _, right in calls:
        if name == "diagonal":
            moved = 8 * count * panel * panel * 4
            work.launch("panels", code.diagonal(definite), count, panel_kernels.DIAGONAL_LAUNCH, moved, times)
        elif right > 0:
            programs = count * math.ceil(right / panel_kernels.ROWS_WIDTH)
            kind = "log-determinants" if definite else "counts"
            moved = 8 * count * panel * right * 3
            work.launch("panels", code.unrolled(f"rows 64 {kind}"), programs, panel_kernels.ROWS_LAUNCH, moved, times)
    rate = LARGE_PRODUCTS if h >= 512 else SMALL_PRODUCTS
    work.products("products", products.flops * times, products.bytes * times, rate, products.launches * times)
    layout(work, count, h, definite, times)
    work.host_operations += times * 40


def layout(work: Work, count: int, h: int, definite: bool, times: float) -> None:
    kind = "log-determinants" if definite else "counts"
    programs = count * 6 * math.ceil(h / 32) ** 2
    moved = 8 * count * h * h * 6 * 3
    work.launch("halves", code.unrolled(f"children halves {kind}"), programs, halves.LAUNCH, moved, times)


def tiles_launch() -> Launch:
    return for_whole_tiles(NO_MASK).launch


def attention_row(row: Row) -> Work:
    work = Work()
    length, heads, n = row.sizes["length"], row.sizes["heads"], row.sizes["n"]
    definite = row.metric == "entropy"
    shifts = SHIFTS if definite else 1
    at_once = max(1, min(heads, DEFAULT_MEMORY_BUDGET // tiled.bytes_per_head(length)))
    slices = math.ceil(heads / at_once)
    some = heads / slices
    # scores of every tile twice: for the sums, and when they are written; half of the tiles hold nothing
    across = math.ceil(length / 64)
    rule = tiles_launch()
    work.launch("tiles", code.attention_rows(n, (across + 1) / 2), some * across, rule, some * 8 * length * n, slices)
    half = some * across * across / 2
    work.launch("tiles", code.attention_tile(n), half, rule, 8 * some * length**2 / 2, slices)
    # T is copied, scaled and looked at
    work.copies("everything else", heads * 8 * length**2 * 7 + heads * length * 8 * BOOKKEEPING * shifts / 4)
    if definite:
        # bounds of the norm, by Schur's test
        work.copies("everything else", heads * 8 * length**2 * 2 * 8)
    sizes = []
    size = length
    while size > matrix.LEAF:
        size = matrix.half(size)
        sizes.append(size)
    grams(work, length, sizes, max(1, round(some)), slices)
    for level, h in enumerate(sizes[1:], start=1):
        nodes = max(1, round(some * shifts * (2 ** (level + 1) - 2)))
        limit = max(1, DEFAULT_MEMORY_BUDGET // (matrix.ELIMINATION_BYTES * h * h))
        cuts = math.ceil(nodes / limit)
        elimination(work, math.ceil(nodes / cuts), h, definite, cuts * slices)
    leaves = heads * shifts * length / matrix.LEAF
    work.copies("halves", leaves * 8 * 3 * matrix.LEAF**2 * 3)
    descend(work, leaves, matrix.LEAF, definite, slices * math.ceil(leaves / slices * 8 * 18 * 512 / 2**30))
    work.host_operations += SLICE_OPERATIONS * slices
    work.notes = {"slices": slices, "heads_a_slice": at_once}
    return work


def grams(work: Work, length: int, sizes: list[int], heads: int, slices: int) -> None:
    """Gram matrices of both edges, level by level, shared by all shifts."""
    with Products() as products:
        above = length
        for size in sizes:
            for _ in range(2):
                gram = torch.empty(heads, size, size, dtype=torch.float64, device="meta")
                A = torch.empty(heads, above - size, size, dtype=torch.float64, device="meta")
                matrix.lower_product(gram, A, A, beta=1.0)
            above = size
    work.products(
        "Gram matrices", products.flops * slices, products.bytes * slices, LARGE_PRODUCTS, products.launches * slices
    )


def randomized_row(row: Row) -> Work:
    work = Work()
    sizes = row.sizes
    length, heads, n, rank = sizes["length"], sizes["heads"], sizes["n"], sizes["rank"]
    positions = [round((k + 1) * length / (sizes["positions"] + 1)) for k in range(sizes["positions"])]
    plain = transposed = sizes["iterations"] + 1
    times = plain + transposed
    stored = 8 * length**2 <= DEFAULT_MEMORY_BUDGET // 2
    if stored:
        # as in `TritonBackend.thin_products`: T is formed once a head
        tiles = heads * (length / 64) ** 2 / 2
        work.launch("tiles", code.attention_tile(n), tiles, tiles_launch(), heads * 8.0 * length**2)
        flops = sum(2.0 * i * (length - i) * (times * rank + 16) for i in positions)
        moved = sum(8.0 * i * (length - i) * (times + 1) for i in positions)
        calls = heads * len(positions) * (times + 1)
        work.products("products", heads * flops, heads * moved, SMALL_PRODUCTS, calls)
    for i in positions:
        kinds = () if stored else ((rank, False, plain), (rank, True, transposed), (16, False, 1))
        for width, flipped, launches in kinds:
            kept, passed = (i, length - i) if flipped else (length - i, i)
            count = code.attention_product(n, width, flipped, passed / 32)
            moved = heads * 8 * length * width * 2 + heads * 4 * length * n * 2
            rule = for_products(width, NO_MASK).launch
            work.launch("products", count, heads * kept / 64, rule, moved, launches)
        # orthonormalised by Cholesky factors of Gram matrices, three passes each: five products with r columns
        flops = heads * times * 3 * 3 * 2.0 * length * rank * rank
        work.products("orthonormal", flops, heads * times * 3 * 5 * 8.0 * length * rank, SMALL_PRODUCTS, times * 3 * 12)
    work.host_operations += 400
    return work


def spectra_row(row: Row) -> Work:
    from ess_kernels.backends.triton.spectra.sturm import LANES, LAUNCH, VALUES, padded_length

    work = Work()
    batch, n, bits = row.sizes["batch"], row.sizes["n"], row.sizes["bits"]
    dtype = torch.float32 if bits == 32 else torch.float64
    size = bits // 8
    rule = code.variant_named(f"bidiagonal_fp{bits}_64").launch
    squares = padded_length(n) * size
    work.launch("bidiagonal form", code.bidiagonal(bits), batch, rule, batch * (n * n * size + squares))
    lanes_each = math.ceil(n / VALUES[dtype])
    programs = math.ceil(batch * lanes_each / LANES)
    work.launch("bisection", code.sturm(bits, SWEEPS[bits]), programs, LAUNCH, batch * (squares + n * size))
    # looked at for numbers that are not finite, and copied without them; values in order
    work.copies("everything else", batch * n * n * size * 4 + batch * n * size * 10)
    work.host_operations += 40
    return work


def work_of(row: Row) -> Work:
    if row.metric == "randomized":
        return randomized_row(row)
    if row.family == "spectra":
        return spectra_row(row)
    return attention_row(row) if row.family == "attention" else recurrence_row(row)


# --- the report -------------------------------------------------------------------------------------------------------


def assumptions() -> dict[str, Any]:
    return {
        "instructions": f"sm_{code.CAPABILITY}, {MULTIPROCESSORS} multiprocessors at {CLOCK / 1e9:g} GHz, "
        f"{EFFICIENCY:.0%} of one issue a cycle and quarter, a lone warp every {LONE:g} cycles",
        "bandwidth": f"{ACHIEVED:.0%} of the peak, "
        + ", ".join(f"{card} {peak / 1e12:g} TB/s" for card, peak in PEAK_BANDWIDTH.items()),
        "products": f"{SMALL_PRODUCTS / 1e12:g} (small) and {LARGE_PRODUCTS / 1e12:g} (large) TFLOP/s in float64",
        "host": f"{1e6 * HOST:g} us an operation, {BATCH_OPERATIONS} a batch and {SLICE_OPERATIONS} a slice",
    }


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Estimates, not measurements", ""]
    lines += ["No GPU was used: compiled code, counted bytes and assumptions (`bench/gpu_model.py`).", ""]
    for name, value in report["assumptions"].items():
        lines.append(f"- {name}: {value}")
    cards = list(report["cards"])
    head = ["work", *(f"{card}, estimate" for card in cards), "device, host (first card)", "largest stages"]
    lines += ["", "| " + " | ".join(head) + " |"]
    lines += ["|---|" + "---|" * (len(cards) + 2)]
    for row in ROWS:
        found = [report["cards"][card].get(row.key, {}) for card in cards]
        if not found[0]:
            continue
        if "problem" in found[0]:
            lines.append(f"| {row.title} | " + "— | " * len(cards) + f" | {found[0]['problem']} |")
            continue
        times = " | ".join(f"{x['ms']:.3g} ms" for x in found)
        stages = sorted(found[0]["stages"].items(), key=lambda stage: -stage[1]["ms"])[:5]
        largest = ", ".join(f"{name} {stage['ms']:.2g} ({stage['bound']})" for name, stage in stages)
        where = f"{found[0]['device_ms']:.3g}, {found[0]['host_ms']:.3g} ms"
        shifts = found[0].get("shifts_a_block")
        note = f"; {shifts:.2f} shifts a block" if shifts is not None else ""
        lines.append(f"| {row.title} | {times} | {where} | {largest}{note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="words of rows' keys")
    parser.add_argument("--output", type=Path, default=BENCH / "results")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"estimates": "no measurements", "assumptions": assumptions(), "cards": {}}
    for key in chosen(arguments.rows):
        row = next(row for row in ROWS if row.key == key)
        for card, peak in PEAK_BANDWIDTH.items():
            rows = report["cards"].setdefault(card, {})
            try:
                rows[key] = work_of(row).estimate(ACHIEVED * peak)
            except LookupError as problem:
                # a kernel that has changed needs its loops described again
                rows[key] = {"problem": str(problem)}
        print(f"{key}: {rows[key].get('ms', rows[key].get('problem'))}", file=sys.stderr, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "gpu-estimates.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.output / "gpu-estimates.md").write_text(markdown(report))
    print(markdown(report))
