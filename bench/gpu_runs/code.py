"""Instructions that compiled kernels execute: loops found in the machine code, times how often each is passed.

Every kernel is compiled as its launch rule chooses it, without a GPU. What a program executes is the code outside of
loops once, and the body of each natural loop as often as the kernel's source says, `trips`, a tree of the same shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ess_kernels.backends.triton import compilation
from ess_kernels.backends.triton.compilation import DOUBLE_PRECISION, Variant

CAPABILITY = 90
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")


@dataclass(frozen=True)
class Count:
    """What one warp executes: all instructions, float64 matrix and vector instructions, float64 operations."""

    issued: float = 0.0
    matrix: float = 0.0
    vector: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Count) -> Count:
        return Count(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def __mul__(self, times: float) -> Count:
        return Count(*(a * times for a in self._all()))

    def __sub__(self, other: Count) -> Count:
        return self + other * -1.0

    def _all(self) -> tuple[float, ...]:
        return self.issued, self.matrix, self.vector, self.flops


@dataclass
class Loop:
    """A natural loop: its first and last address, all that lies between, and the loops inside."""

    first: int
    last: int
    whole: Count
    inside: list[Loop] = field(default_factory=list)

    @property
    def own(self) -> Count:
        return sum((loop.whole * -1.0 for loop in self.inside), self.whole)


# how often the body of a loop is passed, all its passes together, and the same of the loops inside
Trips = tuple[float, "Sequence[Trips]"]


def counted(operations: Iterable[str]) -> Count:
    count = Count()
    issued = matrix = vector = fused = 0
    for name in operations:
        kind = name.split(".")[0]
        issued += 1
        matrix += kind == "DMMA"
        vector += kind in DOUBLE_PRECISION
        fused += kind == "DFMA"
    # m16n8k16: 2 x 16 x 8 x 16 operations; a vector instruction has 32 lanes
    return count + Count(issued, matrix, vector, 4096.0 * matrix + 32.0 * (vector + fused))


@cache
def code_of(name: str, constants: tuple[tuple[str, Any], ...] = (), types: tuple[tuple[str, str], ...] = ()) -> Loop:
    """A variant's machine code as one loop that is passed once, with the loops in it."""
    variant = variant_named(name)
    variant = replace(
        variant, constants={**variant.constants, **dict(constants)}, arguments={**variant.arguments, **dict(types)}
    )
    _, _, text = compilation.machine_code(variant, CAPABILITY)
    return loops_of(text)


@cache
def _variants() -> dict[str, Variant]:
    return {variant.name: variant for variant in compilation.variants()}


def variant_named(name: str) -> Variant:
    if name not in _variants():
        raise LookupError(f"no kernel variant is called {name!r}")
    return _variants()[name]


def loops_of(text: str) -> Loop:
    """Natural loops by backward branches; the branch to itself that ends every kernel is none."""
    code = [(int(m[1], 16), m[2], m[3]) for m in _INSTRUCTION.finditer(text)]
    spans = set()
    for address, operation, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if operation.startswith("BRA") and target and int(target[1], 16) < address:
            spans.add((int(target[1], 16), address))
    # several branches back to one place are one loop
    ends: dict[int, int] = {}
    for first, last in spans:
        ends[first] = max(last, ends.get(first, 0))

    def loop(first: int, last: int) -> Loop:
        return Loop(first, last, counted(name for address, name, _ in code if first <= address <= last))

    root = Loop(-1, 1 << 62, counted(name for _, name, _ in code if name != "NOP"))
    for first, last in sorted(ends.items(), key=lambda span: (span[0], -span[1])):
        at = root
        while inner := next((x for x in at.inside if x.first <= first and last <= x.last), None):
            at = inner
        at.inside.append(loop(first, last))
    return root


def executed(code: Loop, trips: Sequence[Trips] = (), what: str = "") -> Count:
    """What one warp of a program executes.

    Raises:
        LookupError: if the code has other loops than `trips` says.
    """

    def total(loop: Loop, times: float, inside: Sequence[Trips]) -> Count:
        if len(inside) != len(loop.inside):
            raise LookupError(f"{what}: {len(loop.inside)} loops where {len(inside)} were expected: the kernel changed")
        parts = [total(inner, *trip) for inner, trip in zip(loop.inside, inside, strict=True)]
        return sum(parts, loop.own * times)

    return total(code, 1.0, trips)


# --- how often the loops of each kernel are passed --------------------------------------------------------------------


def solves(times: float) -> Trips:
    """`tiles.solve16`, so many of them: two halves of a tile, of which the second passes over the first, unrolled."""
    return (2 * times, [(2 * times, []), (0, [])])


def parts(kind: str, n: int, c: int) -> Count:
    code = code_of(f"parts {kind} n={n} c={c}")
    tiles, rows = n / 16, c / 16
    pairs = tiles * rows * (rows - 1) / 2
    # of two rows of tiles the loop over earlier rows is unrolled
    loops = code.inside[0].inside[0].inside if code.inside and code.inside[0].inside else []
    return executed(code, [(tiles, [(tiles * rows, [(pairs, [])] if loops else [])])], f"parts {kind} n={n}")


def scan(n: int, c: int, width: int, blocks: int) -> Count:
    sizes = (("n", n), ("c", c), ("W", width))
    return executed(code_of(f"scan n=128 c=64 W={width}", sizes), [(blocks, [])], "scan")


def root(n: int) -> Count:
    panels = range(0, n, 16)
    width = variant_named(f"root n={n}").constants["W"]
    tiles = [sum(j + width > p for j in range(0, n, width)) for p in panels]
    inner = sum(t * p / 16 for t, p in zip(tiles, panels, strict=True))
    diagonal = (sum(p / 16 for p in panels), [])
    strips = (len(panels) * n / width, [(inner, []), solves(sum(tiles))])
    return executed(code_of(f"root n={n}"), [(len(panels), [diagonal, strips])], "root")


def boundary(n: int, c: int, width: int, definite: bool) -> Count:
    """A pair of a block and a shift."""
    panels = range(0, n, 16)
    tiles = [len(range((p + 16) // width * width, n, width)) for p in panels]
    earlier = [p / 16 for p in panels]
    right = 2 * c / width
    inner = [
        (sum(earlier), []),
        (sum(tiles), [(sum(t * e for t, e in zip(tiles, earlier, strict=True)), []), solves(sum(tiles))]),
        (len(panels) * right, [(right * sum(earlier), []), solves(len(panels) * right)]),
    ]
    products = (c / 16) * (c / width)
    loops = [(1.0, [(len(panels), inner), (products, [(products * n / 16, [])])])]
    kind = "log-determinants" if definite else "counts"
    return executed(code_of(f"boundary {kind} n={n} c={c}"), loops, "boundary")


def unrolled(name: str) -> Count:
    """A kernel without loops but those of `solve16`."""
    code = code_of(name)
    return executed(code, [solves(1)] * len(code.inside), name)


def scan16(kind: str, direction: str, blocks: int) -> Count:
    return executed(code_of(f"scan16 {kind} {direction}"), [(blocks, [])], "scan16")


def block16(kind: str, definite: bool, shifts: float) -> Count:
    name = f"block16 {kind} {'log-determinants' if definite else 'counts'}"
    return executed(code_of(name), [(shifts, [])], name)


FLOAT32 = (("Q", "*fp32"), ("K", "*fp32"))


def attention_rows(n: int, tiles: float) -> Count:
    """Row sums of a block of rows that passes over so many tiles of columns."""
    loops = [(tiles, [(tiles * n / 16, [])])]
    return executed(code_of("attention row sums", (), FLOAT32), loops, "row sums")


def attention_tile(n: int) -> Count:
    return executed(code_of("attention tiles", (), FLOAT32), [(n / 16, [])], "tiles")


def attention_product(n: int, width: int, transposed: bool, tiles: float) -> Count:
    name = f"attention product {width}{' transposed' * transposed}"
    return executed(code_of(name, (), FLOAT32), [(tiles, [(tiles * n / 16, [])])], name)


def diagonal(definite: bool) -> Count:
    """A panel of 64 pivots."""
    p = range(4)
    q_loop = (sum(p), [])
    right = sum(3 - k for k in p), [(sum((3 - k) * k for k in p), [])]
    kind = "log-determinants" if definite else "counts"
    return executed(code_of(f"diagonal 64 {kind}"), [(4, [q_loop, right])], "diagonal")


def bidiagonal(bits: int) -> Count:
    """Matrices of 64 x 64: one loop a block of columns, all together 64 steps."""
    code = code_of(f"bidiagonal_fp{bits}_64")
    return executed(code, [(64 / len(code.inside), [])] * len(code.inside), "bidiagonal")


def sturm(bits: int, sweeps: float) -> Count:
    """128 squares: two loops for the bound, four of them a pass and what is left; then sweeps, eight squares a pass."""
    return executed(code_of(f"sturm_values_fp{bits}"), [(32, []), (3, []), (sweeps, [(16 * sweeps, [])])], "sturm")
