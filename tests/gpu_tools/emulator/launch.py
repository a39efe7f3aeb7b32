"""One launch: tensors become memory, programs run one after the other, and memory becomes tensors again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from ..findings import Findings
from .instructions import find
from .memory import Space, Spaces
from .program import Program
from .ptx import Code


def launch(
    findings: Findings,
    kernel: str,
    code: Code,
    warps: int,
    shared: int,
    grid: tuple[int, int, int],
    arguments: Sequence[Any],
    backwards: bool = False,
) -> int:
    """Runs all programs and changes the tensors; returns the number of instructions, one for all threads together.

    Args:
        findings: receives what is found.
        kernel: its name, for the findings.
        code: what was compiled.
        warps, shared: warps a program, and bytes of its shared memory.
        grid: how many programs.
        arguments: tensors on the CPU, integers and floating-point numbers, in the order of the code's parameters.
            Pointers at the end that Triton adds for its own use may be missing.
        backwards: the last program runs first.
    """
    findings.launches[kernel] += 1
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in arguments if isinstance(x, torch.Tensor)}
    memory = [(Space(base, x.nbytes(), code.grain), _bytes(x)) for base, x in storages.items() if x.nbytes()]
    for space, raw in memory:
        space.bytes[: len(raw)] = raw
    spaces = Spaces([space for space, _ in memory])
    numbers = [_number(x) for x in arguments]
    numbers += [0] * (len(code.parameters) - len(numbers))

    def report(kind: str, where: str, before: str, what: str, count: int) -> None:
        findings.add(kind, kernel, where, before, what, count)

    executed, epoch = 0, 1
    with np.errstate(all="ignore"):
        programs = list(product(*map(range, grid)))
        for x, y, z in reversed(programs) if backwards else programs:
            program = Program(code, warps, shared, spaces, numbers, grid, (x, y, z), epoch, report)
            program.run(find)
            executed, epoch = executed + program.executed, program.epoch + 1
    for space, raw in memory:
        raw[:] = space.bytes[: len(raw)]
    return executed


def _bytes(storage: torch.UntypedStorage) -> np.ndarray:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


def _number(argument: Any) -> int:
    """An argument's bits."""
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        return int(np.float32(argument).view(np.uint32))
    return int(argument) & (1 << 64) - 1
