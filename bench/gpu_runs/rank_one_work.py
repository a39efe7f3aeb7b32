"""What the blocks of rank-one transitions cost, as far as it can be said without a GPU: see `work.py`.

From tokens in float64, made by operations of PyTorch, to block parts and Gramians; what comes after them is that of
other recurrences, but for `Phi`, which is a matrix.
"""

from __future__ import annotations

import math

from ess_kernels.backends.triton.recurrence import engine, parts, rank_one, scans

from . import code
from .code import Count
from .work import SMALL_PRODUCTS, Work

# the families whose transitions are diagonal plus a rank-one term that takes away what the token looks up
FAMILIES = ("gated_delta_rule", "kda")
# reads and writes of an array [heads, positions, n] in float64 until there are scaled tokens, counted in the source
TOKEN_PASSES = 46
# operations that the host launches for the tokens of some heads
TOKEN_OPERATIONS = 60


def substitution(n: int, c: int) -> Count:
    panels = c / 16
    # of two panels the loop over earlier ones is unrolled
    earlier = [(panels * (panels - 1) / 2, [])] if panels > 2 else []
    name = f"substitution n={n} c={c}"
    return code.executed(code.code_of(name), [(panels, [*earlier, code.solves(panels)])], name)


def blocks_of(work: Work, n: int, c: int, heads: int, number: int) -> None:
    """Parts and Gramians of `number` blocks of each head."""
    items = heads * number
    of_tokens = 8 * items * c * n
    work.copies("tokens", TOKEN_PASSES * of_tokens)
    each = max(1, engine.TOKEN_WORKSPACE // rank_one.scratch_bytes(number * c, n))
    slices = math.ceil(heads / each)
    work.host_operations += slices * TOKEN_OPERATIONS
    written = 8 * items * (2 * c * n + 2 * c * c + n)
    # rows carried along are read and written once for every later sub-block
    carried = 8 * items * c * n * (c / 16 - 1) * 2
    for kind, heavy in (("factors, read after", False), ("factors", True)):
        moved = (3 * of_tokens + written + carried) / slices
        work.launch("parts", code.parts(kind, n, c), items / slices, parts.launch(n, heavy), moved, slices)
    width, rule = rank_one.launch(n, c)
    programs = items * (n + c) / width
    # every strip reads the triangle; a strip's rows stay in the cache
    moved = programs * 8 * (c * c / 2 + 2 * c * width)
    work.launch("substitution", substitution(n, c), programs / slices, rule, moved / slices, slices)
    flops = items * 2.0 * c * n * (n + c)
    work.products("parts", flops, 8 * items * (2 * n * n + 5 * c * n + c * c), SMALL_PRODUCTS, 4 * slices)
    scan(work, n, c, heads, number)


def dense_step(n: int, c: int, width: int) -> Count:
    """Of 64 tokens the loop over them is unrolled."""
    tiles = n / width
    name = f"dense step n={n} c={c} W={width}"
    return code.executed(code.code_of(name), [(tiles, [(tiles * n / 16, [])])], name)


def scan(work: Work, n: int, c: int, heads: int, number: int) -> None:
    """One launch a block, for both directions."""
    width, rule = scans.launch(n, heads)
    tiles = (n // width) ** 2
    # most of what tiles read again stays in the cache
    moved = 2 * heads * 8 * (3 * n * n + c * n)
    work.launch("scan", dense_step(n, c, width), 2 * heads * tiles, rule, moved, number - 1)
