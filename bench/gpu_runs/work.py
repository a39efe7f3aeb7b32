"""What launches cost, as far as it can be said without a GPU: the assumptions, and the sum over the stages of a row.

- A multiprocessor quarter issues one warp instruction a cycle, a float64 matrix instruction m16n8k16 takes it 64
  cycles, a float64 vector instruction 2; of that `EFFICIENCY` is reached, and a lone warp issues every `LONE` cycles,
  so that few or long programs take longer: whole waves of them are counted.
- Memory delivers `ACHIEVED` of its peak. What was factored in a boundary is read again from memory in so far as all
  that is in work at once does not fit the L2.
- Library products run at a fixed rate, smaller ones at a lower one.
- The host needs `HOST` for every operation that it launches; operations a batch and a slice were counted with a
  dispatch mode. A row takes what the longer of device and host takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ess_kernels.backends.triton.launches import Launch
from ess_kernels.backends.triton.staircase import leaf, splits

from . import code
from .code import Count

MULTIPROCESSORS, CLOCK = 132, 1.7e9
MATRIX_CYCLES, VECTOR_CYCLES = 64, 2
EFFICIENCY = 0.40
LONE = 5.0
# warps of 255 registers that a multiprocessor holds
RESIDENT = 8
L2 = 50e6
ACHIEVED = 0.90
PEAK_BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}
# float64 products of a library, in operations a second: many small ones, and large ones
SMALL_PRODUCTS, LARGE_PRODUCTS = 40e12, 45e12
HOST = 6e-6
# operations that the host launches: for every head slice, and for every batch of blocks or nodes beside its kernels
SLICE_OPERATIONS, BATCH_OPERATIONS = 190, 46
# passes over all [heads, positions] in float64 by operations of PyTorch: widths, ties, certificates
BOOKKEEPING = 60
# sweeps of the bisection for random matrices, as the kernel's module says
SWEEPS = {32: 21, 64: 26}
SHIFTS = 16
# share of a recurrence's blocks that are eliminated twice more
REDONE = 0.03


@dataclass
class Stage:
    """What a stage needs, all launches together, in seconds but for bandwidth."""

    compute: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    launches: float = 0.0

    def seconds(self, bandwidth: float) -> float:
        return max(self.compute, self.bytes / bandwidth)


@dataclass
class Work:
    """Stages of a row by name, and operations of the host beside kernels."""

    stages: dict[str, Stage] = field(default_factory=dict)
    host_operations: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    def launch(self, name: str, count: Count, programs: float, rule: Launch, bytes: float, times: float = 1.0) -> None:
        """`times` launches of as many programs, each of whose warps executes `count`; `bytes` a launch."""
        if programs <= 0 or times <= 0:
            return
        warps = rule.num_warps
        cycles = max(count.issued, MATRIX_CYCLES * count.matrix, VECTOR_CYCLES * count.vector)
        throughput = cycles * programs * warps / (4 * MULTIPROCESSORS) / EFFICIENCY
        waves = math.ceil(programs / (MULTIPROCESSORS * RESIDENT / warps))
        seconds = max(throughput, waves * LONE * count.issued) / CLOCK
        self.add(name, seconds * times, bytes * times, count.flops * warps * programs * times, times)

    def products(self, name: str, flops: float, bytes: float, rate: float, launches: float) -> None:
        self.add(name, flops / rate, bytes, flops, launches)

    def copies(self, name: str, bytes: float) -> None:
        self.add(name, 0.0, bytes, 0.0, 0.0)

    def add(self, name: str, compute: float, bytes: float, flops: float, launches: float) -> None:
        stage = self.stages.setdefault(name, Stage())
        stage.compute += compute
        stage.bytes += bytes
        stage.flops += flops
        stage.launches += launches

    def estimate(self, bandwidth: float) -> dict[str, Any]:
        device = sum(stage.seconds(bandwidth) for stage in self.stages.values())
        host = HOST * (self.host_operations + sum(stage.launches for stage in self.stages.values()))
        stages = {
            name: {
                "ms": 1e3 * stage.seconds(bandwidth),
                "bound": "memory" if stage.bytes / bandwidth > stage.compute else "instructions",
                "flops": stage.flops,
                "bytes": stage.bytes,
            }
            for name, stage in self.stages.items()
        }
        return {
            "ms": 1e3 * max(device, host),
            "device_ms": 1e3 * device,
            "host_ms": 1e3 * host,
            "stages": stages,
            **self.notes,
        }


# --- the staircase ----------------------------------------------------------------------------------------------------


def descend(work: Work, nodes: float, m: int, definite: bool, launches: float) -> None:
    """`nodes` of `m` positions down to single ones, in so many batches."""
    kind = "definite" if definite else "counts"
    each = nodes / launches
    while m > 16:
        # both halves read six quarters of a node, and write three
        moved = each * 8 * 4.5 * m * m
        work.launch(f"split{m}", code.unrolled(f"split{m} {kind}"), 2 * each, splits.LAUNCHES[m], moved, launches)
        each, m = 2 * each, m // 2
    if m == 16:
        groups = 2 * math.ceil(each / leaf.NODES)
        node = each * 8 * 64
        for name in leaf.SYMMETRIC_PARTS:
            work.launch("split16", code.unrolled(f"split16 {name}"), groups, leaf.LAUNCH, node * 2 * 4, launches)
        work.launch("split16", code.unrolled("split16 K"), 2 * groups, leaf.LAUNCH, node * 2 * 7, launches)
        work.launch("split16", code.unrolled(f"watch16 {kind}"), groups, leaf.LAUNCH, node * 2 * 3, launches)
        each = 2 * each
    groups = 2 * math.ceil(each / leaf.NODES)
    answers = 8 * 8 * (1 if definite else 3)
    work.launch("leaf8", code.unrolled(f"leaf8 {kind}"), groups, leaf.LAUNCH, each * (8 * 192 + answers), launches)
