"""`pytest --ptx-emulator`: kernels run as compiled, in the emulator."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import pytest
import triton

from ess_kernels.backends.triton import compilation
from ess_kernels.testing.driver import install, launching_on

from ..plugin import FindingsPlugin
from .machine import Machine


class EmulatorPlugin(FindingsPlugin):
    """Also tells which of the package's kernels with several warps no test has launched with more than one."""

    def __init__(self, config: pytest.Config) -> None:
        self.machine = Machine(config.getoption("ptx_capability"), config.getoption("ptx_backwards"))
        self.title = f"PTX of Triton {triton.__version__} for sm_{self.machine.capability}, emulated"
        self.begin = time.perf_counter()
        super().__init__(self.machine.findings)
        install(self.machine)

    def looking(self, item: pytest.Item) -> AbstractContextManager[Any]:
        return launching_on(self.machine)

    def plain(self) -> dict[str, Any]:
        return {**super().plain(), "warps": self.machine.warps, "executed": self.machine.executed}

    def add_plain(self, plain: dict[str, Any]) -> None:
        super().add_plain(plain)
        self.machine.executed += plain["executed"]
        for kernel, warps in plain["warps"].items():
            self.machine.warps[kernel] = max(self.machine.warps.get(kernel, 0), warps)

    def report(self) -> list[str]:
        several = {variant.kernel.fn.__name__ for variant in compilation.variants() if variant.launch.num_warps > 1}
        missing = sorted(name for name in several if self.machine.warps.get(name, 0) < 2)
        return [
            *self.findings.lines(),
            f"{self.machine.executed} instructions in {time.perf_counter() - self.begin:.0f} s",
            f"kernels with several warps that were not reached: {', '.join(missing) or 'none'}",
        ]
