"""All threads of one program in lockstep: their registers, their branches, their barriers.

A value is an array with one number a thread. Arrays are never changed in place, so that registers may share them.
Where threads have taken different branches, those that are behind go first, until all have met again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .memory import Moment, Space, Spaces
from .ptx import TYPES, Code, Instruction

# where shared memory begins, and parameters, between whose addresses kernels may choose
SHARED_BASE, PARAMETER_BASE = 1 << 20, 1 << 16
REGISTERS: dict[str, type] = {"pred": bool, **TYPES}
AXES = ("x", "y", "z")
Report = Callable[[str, str, str, str, int], None]


class Program:
    """One program of a launch.

    Args:
        code: the kernel.
        warps: how many of 32 threads.
        shared: bytes of shared memory.
        spaces: the launch's tensors.
        arguments: numbers, in the order of the parameters.
        grid, index: programs in the launch, and which one this is, `(x, y, z)`.
        epoch: its first one, see `memory`; when it has ended, `epoch` is its last one.
        report: called with kind, line, earlier line, description and count of what is found.
    """

    def __init__(
        self, code: Code, warps: int, shared: int, spaces: Spaces, arguments: Sequence[int],
        grid: tuple[int, int, int], index: tuple[int, int, int], epoch: int, report: Report,
    ) -> None:  # fmt: skip
        self.code, self.spaces, self.report = code, spaces, report
        self.threads = 32 * warps
        self.lane = np.arange(self.threads)
        self.shared = Spaces([Space(SHARED_BASE, shared, code.grain, shared=True)])
        self.arguments = dict(zip(code.parameters, arguments))
        self.registers: dict[str, np.ndarray] = {
            name: np.zeros(self.threads, REGISTERS[kind]) for name, kind in code.registers.items()
        }
        self.constants: dict[tuple[str, Any], np.ndarray] = {}
        zero = np.zeros(self.threads, np.int64)
        self.special = {"%tid.x": self.lane, "%laneid": self.lane % 32, "%ntid.x": zero + self.threads}
        self.special |= {"%tid.y": zero, "%tid.z": zero}
        self.special |= {f"%ctaid.{axis}": zero + i for axis, i in zip(AXES, index)}
        self.special |= {f"%nctaid.{axis}": zero + i for axis, i in zip(AXES, grid)}
        self.epoch = self.start = epoch
        self.warp_epoch = np.zeros(self.threads, np.int32)
        # lines of the kernel by number; 0 is none
        self.lines, self.line_numbers = [""], {"": 0}
        # asynchronous copies that were not waited for, by group, the last of which is still open
        self.copies: list[list[Any]] = [[]]
        self.executed = 0
        self.end = len(code.instructions)
        self.pc = np.zeros(self.threads, np.int64)
        # threads that wait for the rest of their warp or of the program
        self.waiting = np.zeros(self.threads, bool)

    # --- operands -----------------------------------------------------------------------------------------------------

    def value(self, operand: str, dtype: Any) -> np.ndarray:
        """An operand as numbers of a type; bits are taken as they are, those of a wider register cut off."""
        register = self.registers.get(operand)
        if register is None:
            known = self.constants.get((operand, dtype))
            if known is None:
                known = self.constants[operand, dtype] = self._constant(operand, np.dtype(dtype))
            return known
        if register.dtype == dtype:
            return register
        size = np.dtype(dtype).itemsize
        if register.dtype.itemsize == size:
            return register.view(dtype)
        return register.view(f"u{register.dtype.itemsize}").astype(f"u{size}").view(dtype)

    def predicate(self, operand: str) -> np.ndarray:
        """A predicate, a negated one, or a constant in its place."""
        if operand.startswith("!"):
            return ~self.predicate(operand[1:])
        return self.registers[operand] if operand in self.registers else np.full(self.threads, int(operand) != 0)

    def _constant(self, operand: str, dtype: np.dtype) -> np.ndarray:
        if operand in self.special:
            return self.special[operand].astype(dtype)
        bits: int | None = None
        if operand[:2] in ("0d", "0D", "0f", "0F"):
            bits = int(operand[2:], 16)
        elif operand == "global_smem":
            bits = SHARED_BASE
        elif operand in self.arguments:
            bits = PARAMETER_BASE + 8 * list(self.arguments).index(operand)
        elif dtype.kind in "ui":
            bits = int(operand.rstrip("U"), 0)
        else:
            return np.full(self.threads, float(operand), dtype)
        size = dtype.itemsize
        return np.full(self.threads, bits & (1 << 8 * size) - 1, f"u{size}").view(dtype)

    def set(self, name: str, value: np.ndarray, mask: np.ndarray | None) -> None:
        """Gives a register a value, for the threads of the mask only; a wider one gets the sign or zeros above it."""
        if name == "_":
            return
        target = self.registers[name]
        if target.dtype != value.dtype and target.dtype != bool:
            size = target.dtype.itemsize
            if value.dtype.itemsize != size:
                value = value.astype(f"{'i' if value.dtype.kind == 'i' else 'u'}{size}")
            value = value.view(target.dtype)
        self.registers[name] = value if mask is None else np.where(mask, value, target)

    def address(self, operand: str) -> np.ndarray:
        """Addresses from `[register]`, `[register+offset]` or a name in their place."""
        base, _, offset = operand.strip("[] ").partition("+")
        base = base.strip()
        narrow = base in self.registers and self.registers[base].dtype.itemsize == 4
        start = self.value(base, np.uint32 if narrow else np.uint64).astype(np.int64)
        return start + int(offset, 0) if offset.strip() else start

    # --- memory -------------------------------------------------------------------------------------------------------

    def touch(
        self, x: Instruction, addresses: np.ndarray, threads: np.ndarray, width: int, storing: bool, shared: bool
    ) -> Iterator[tuple[Space, np.ndarray, np.ndarray]]:
        """Checks an access of `width` bytes by some threads; gives spaces, offsets in them, indices of who is there."""
        misaligned = addresses % width != 0
        if misaligned.any():
            what = f"{x.name} at an address that is no multiple of {width}"
            self.report("alignment", x.source, "", what, int(misaligned.sum()))
        if x.source not in self.line_numbers:
            self.line_numbers[x.source] = len(self.lines)
            self.lines.append(x.source)
        line = self.line_numbers[x.source]
        moment = Moment(self.epoch, self.start, self.warp_epoch, self.threads > 32)
        for space, here in (self.shared if shared else self.spaces).holding(addresses, width):
            if space is None:
                self.report("bounds", x.source, "", f"{x.name} outside of everything", len(here))
                continue
            offsets = addresses[here] - space.base
            for kind, before, what, count in space.access(offsets, threads[here], width, line, moment, storing):
                self.report(kind, x.source, self.lines[before], what, count)
            yield space, offsets, here

    def barrier(self, mask: np.ndarray | None, x: Instruction) -> None:
        """All threads are here, or ought to be."""
        if mask is not None and ((self.pc < self.end) & ~mask).any():
            self.report("barrier", x.source, "", "not all threads are here", int((~mask).sum()))
        self.epoch += 1
        self.warp_epoch = self.warp_epoch + 1

    def warp_barrier(self) -> None:
        self.warp_epoch = self.warp_epoch + 1
        if self.threads == 32:
            self.epoch += 1

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, find: Callable[[Instruction], Callable[..., None]]) -> None:
        """Runs the program to its end; `find` gives what executes an instruction: `execute(program, x, mask)`."""
        at, mask = 0, None
        while at < self.end:
            x = self.code.instructions[at]
            self.executed += 1
            following: Any = at + 1
            if x.target is None:
                self._execute(x, mask, find)
            elif x.guard is None:
                following = x.target
            else:
                taken = self._guard(x)
                if mask is None and taken.all():
                    following = x.target
                elif mask is not None or taken.any():
                    following = np.where(taken, x.target, at + 1)
            if mask is None and isinstance(following, int):
                at = following
            else:
                self.pc = np.where(True if mask is None else mask, following, self.pc)
                at, mask = self._meet()

    def _guard(self, x: Instruction) -> np.ndarray:
        assert x.guard is not None
        return ~self.registers[x.guard] if x.unless else self.registers[x.guard]

    def _execute(
        self, x: Instruction, mask: np.ndarray | None, find: Callable[[Instruction], Callable[..., None]]
    ) -> None:
        if x.guard is not None:
            mask = self._guard(x) if mask is None else mask & self._guard(x)
            if not mask.any() and not x.together:
                return
            if mask.all():
                mask = None
        if x.run is None:
            x.run = find(x)
        x.run(self, x, mask)

    def _meet(self) -> tuple[int, np.ndarray | None]:
        """The next instruction, and the threads that execute it, `None` for all; the end when all have ended."""
        while True:
            ready = (self.pc < self.end) & ~self.waiting
            stuck = not ready.any()
            if stuck:
                # they wait for each other for ever: whoever is behind goes on alone, and a barrier tells about it
                ready = self.pc < self.end
                if not ready.any():
                    return self.end, None
            at = int(self.pc[ready].min())
            here = self.pc == at
            if here.all():
                self.waiting[:] = False
                return at, None
            x = self.code.instructions[at]
            if x.together:
                complete = self._complete(x, here)
                self.waiting |= here
                if complete.any():
                    here = complete
                elif not stuck:
                    continue
            self.waiting &= ~here
            return at, here

    def _complete(self, x: Instruction, here: np.ndarray) -> np.ndarray:
        """Of the threads that are here, those whose warp (for a barrier of the program: all of whom) has come."""
        if x.parts[0] in ("bar", "barrier") and "warp" not in x.parts:
            late = ((self.pc < self.end) & ~here).any()
            return here & ~late
        return np.repeat(here.reshape(-1, 32).all(1), 32)
