"""From the text of PTX to a list of instructions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TYPES: dict[str, type] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
}  # fmt: skip
# instructions that threads execute together, all of the program or of a warp
TOGETHER = ("bar", "barrier", "shfl", "mma", "ldmatrix", "stmatrix", "redux", "vote")
MEMORY = ("ld", "st")


class Instruction:
    """One instruction.

    Attributes:
        source: file and line of the kernel that it comes from.
        guard, unless: the predicate that it is executed under, or None, and whether that must be false.
        name, parts: for instance `"ld.global.b64"`, and the same cut at the dots.
        type: of its operands (the last one that its name tells), or None.
        operands: text as it stands; a list of texts where it is a vector in braces.
        together: whether threads must have come here together.
        target: where it jumps to, an index of an instruction, if it is a jump or the end.
        run: what executes it, set when it is first needed.
    """

    __slots__ = ("guard", "name", "operands", "parts", "run", "source", "target", "together", "type", "unless")

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.guard: str | None = None
        self.unless = False
        if match := re.match(r"@(!?)(%\w+)\s+(.*)", text, re.S):
            self.unless, self.guard, text = bool(match[1]), match[2], match[3]
        self.name, _, rest = text.partition(" ")
        self.parts = self.name.split(".")
        self.type: Any = next((TYPES[part] for part in reversed(self.parts) if part in TYPES), None)
        self.operands = list(_operands(rest))
        self.together = self.parts[0] in TOGETHER
        self.target: int | None = None
        self.run: Callable[..., None] | None = None


def _operands(text: str) -> Iterator[Any]:
    for group, inner, plain in re.findall(r"(\{([^}]*)\})|([^,{}]+(?:\[[^\]]*\])?)", text):
        if group:
            yield [x.strip() for x in inner.split(",") if x.strip()]
        elif plain.strip():
            yield plain.strip()


class Code:
    """One kernel.

    Attributes:
        instructions: in their order.
        labels: the index of the instruction that a label stands before.
        registers: kind of every register by its name, for instance `"b64"` or `"pred"`.
        parameters: names in their order.
        grain: bytes of the narrowest number that it loads or stores, at most 4.
    """

    def __init__(self, ptx: str) -> None:
        files = {int(number): Path(name).name for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', ptx)}
        entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)[^{]*\{(.*)\}", ptx, re.S)
        if entry is None:
            raise ValueError("ptx: no kernel in it")
        self.parameters = re.findall(r"\.param\s+\.\w+(?:\s+\.ptr[^,]*?)?\s+(\w+)\s*(?:,|$)", entry[1])
        self.registers: dict[str, str] = {}
        self.labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        for text, source in _statements(entry[2], files):
            self._add(text, source)
        for x in self.instructions:
            if x.parts[0] == "bra":
                x.target = self.labels[x.operands[0]]
            elif x.parts[0] in ("ret", "exit"):
                x.target = len(self.instructions)
        accesses = (x for x in self.instructions if x.parts[0] in MEMORY and "param" not in x.parts)
        self.grain = min([4, *(np.dtype(x.type).itemsize for x in accesses)])

    def _add(self, text: str, source: str) -> None:
        # labels, and braces around a scope, may stand before an instruction
        while match := re.match(r"([$\w]+):\s*|\}\s*|\{\s*(?=[.@a-z]|$)", text):
            if match[1]:
                self.labels[match[1]] = len(self.instructions)
            text = text[match.end() :]
        if match := re.match(r"\.reg\s+\.(\w+)\s+(.*)", text):
            self._declare(match[1], match[2])
        elif text and not text.startswith("."):
            self.instructions.append(Instruction(text, source))

    def _declare(self, kind: str, names: str) -> None:
        for name in names.split(","):
            if many := re.match(r"\s*(%\w+)<(\d+)>", name):
                self.registers |= {f"{many[1]}{k}": kind for k in range(int(many[2]))}
            else:
                self.registers[name.strip()] = kind


def _statements(body: str, files: dict[int, str]) -> Iterator[tuple[str, str]]:
    """Every statement in one line, with the kernel's line that it comes from; `.loc 1 0` belongs to the line before."""
    source = "?"
    body = re.sub(r"//[^\n]*", "", body.split(".section")[0])
    for statement in re.split(r";|(?<=:)\s*\n", body):
        lines = []
        for line in map(str.strip, statement.split("\n")):
            if match := re.match(r"\.loc\s+(\d+)\s+(\d+)", line):
                if match[2] != "0":
                    source = f"{files.get(int(match[1]), '?')}:{match[2]}"
            elif line and not line.startswith(".pragma"):
                lines.append(line)
        yield " ".join(" ".join(lines).split()), source
