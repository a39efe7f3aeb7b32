"""The card of the emulator: what Triton hands to CUDA's driver is executed here, instruction by instruction."""

from __future__ import annotations

from typing import Any

from triton.compiler.compiler import CompiledKernel

from ..findings import Findings
from .launch import launch
from .ptx import Code


class Machine:
    """The card: what was launched on it.

    Attributes:
        capability: 90 for sm_90.
        backwards: whether the programs of a launch run from the last to the first.
        findings: of all launches.
        executed: instructions so far.
        warps: the largest number of warps that each kernel was launched with.
    """

    def __init__(self, capability: int, backwards: bool = False) -> None:
        self.capability, self.backwards = capability, backwards
        self.findings = Findings()
        self.executed = 0
        self.warps: dict[str, int] = {}
        self._codes: dict[str, Code] = {}

    def launch(self, source: Any, compiled: CompiledKernel, grid: tuple[int, int, int], given: tuple[Any, ...]) -> None:
        """Launches what was compiled from `source`; constants may be among the arguments."""
        ptx, metadata, name = compiled.asm["ptx"], compiled.metadata, source.fn.__name__
        if ptx not in self._codes:
            self._codes[ptx] = Code(ptx)
        constants = {path[0] for path in source.constants if len(path) == 1}
        if len(given) >= len(source.fn.arg_names):
            given = tuple(x for i, x in enumerate(given) if i not in constants)
        self.warps[name] = max(self.warps.get(name, 0), metadata.num_warps)
        size = metadata.num_warps, metadata.shared, grid
        self.executed += launch(self.findings, name, self._codes[ptx], *size, given, self.backwards)
