"""What stands in for CUDA's driver, so that Triton compiles and launches kernels as on a card that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver

from ..backends.triton import runtime


class Machine(Protocol):
    """A card that stands in for a GPU: `capability` is 90 for sm_90."""

    capability: int

    def launch(self, source: Any, compiled: CompiledKernel, grid: tuple[int, int, int], given: tuple[Any, ...]) -> None:
        """Launches what was compiled from `source`; constants may be among the arguments `given`."""


class Launcher:
    """Takes the place of what Triton would compile from C to hand the arguments of one kernel to CUDA."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.source = source

    def __call__(self, x: int, y: int, z: int, stream: Any, compiled: CompiledKernel, *rest: Any) -> None:
        # metadata, in two forms, and two hooks come before the arguments
        Driver.machine.launch(self.source, compiled, (x, y, z), rest[4:])


class Driver:
    """What Triton asks CUDA's driver. All launches go to `machine`."""

    machine: Machine
    launcher_cls = Launcher
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232448, "warpSize": 32, "multiprocessor_count": 4}
    )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.machine.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def set_current_device(self, device: int) -> None: ...

    @classmethod
    def is_active(cls) -> bool:
        return True


def _initialise(compiled: CompiledKernel) -> None:
    if compiled.module is None:
        compiled._run = Launcher(compiled.src, compiled.metadata)
        compiled.module, compiled.function = SimpleNamespace(), compiled
        compiled.n_regs, compiled.n_spills, compiled.n_max_threads = 32, 0, 1024


def install(machine: Machine) -> None:
    """From now on, in this process, kernels go to a machine that takes tensors on the CPU."""
    Driver.machine = machine
    driver.set_active(Driver())
    CompiledKernel._init_handles = _initialise
    # as it does in Triton's interpreter, the package takes CPU tensors
    runtime.interpreting = lambda: True


@contextmanager
def launching_on(machine: Machine) -> Iterator[Machine]:
    """Inside, after `install`, kernels go to this machine."""
    before, Driver.machine = Driver.machine, machine
    try:
        yield machine
    finally:
        Driver.machine = before
