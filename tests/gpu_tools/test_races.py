"""Every kind of fault, planted in a kernel, is found by the watch of the interpreter, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl

if not triton.knobs.runtime.interpret:
    pytest.skip("kernels are not interpreted here", allow_module_level=True)

from gpu_tools.findings import Findings
from gpu_tools.plugin import failing_on_faults
from gpu_tools.races.interpreter import BUILDER, InterpreterBuilder, watching
from gpu_tools.races.poison import POISON64, poisoned_memory
from gpu_tools.races.watch import Watch

PROGRAMS, WIDTH = 3, 128


@triton.jit
def reversed_copy(A, B, BARRIER: tl.constexpr):
    """Lanes store, and load what other lanes have stored."""
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(A + i, i.to(tl.float64))
    if BARRIER:
        tl.debug_barrier()
    tl.store(B + i, tl.load(A + tl.program_id(0) * 128 + 127 - tl.arange(0, 128)))


@triton.jit
def reversed_in_place(A, B):
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(A + i, tl.load(A + tl.program_id(0) * 128 + 127 - tl.arange(0, 128)))


@triton.jit
def one_address(A, B):
    """All lanes store at one address."""
    i = tl.arange(0, 128)
    tl.store(A + tl.program_id(0) + 0 * i, i.to(tl.float64))


@triton.jit
def replicas(A, B):
    """A number is in every thread, and only one of them stores it."""
    p = tl.program_id(0)
    tl.store(A + p, 1.0)
    tl.store(B + p, tl.load(A + p))


@triton.jit
def read_twice(A, B):
    """Every number is read by two positions: one of them is another than the one that stores."""
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    x = tl.load(A + i) + tl.load(A + tl.program_id(0) * 128 + 127 - tl.arange(0, 128))
    tl.store(A + i, x)


@triton.jit
def incremented(A, B):
    """All programs the same numbers."""
    i = tl.arange(0, 128)
    tl.store(A + i, tl.load(A + i) + 1.0)


@triton.jit
def read_by_all(A, B):
    """Every program reads all of A, the last one writes it."""
    i = tl.arange(0, 128)
    tl.store(B + tl.program_id(0) * 128 + i, tl.load(A + i))
    if tl.program_id(0) == 2:
        tl.debug_barrier()
        tl.store(A + i, 0.0 * i)


@triton.jit
def last_program_wins(A, B):
    i = tl.arange(0, 128)
    tl.store(A + i, tl.program_id(0).to(tl.float64) + 0.0 * i)


@triton.jit
def shifted(A, B):
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(B + i, tl.load(A + i + 1))


@triton.jit
def shifted_back(A, B):
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(B + i, tl.load(A + i - 1))


@triton.jit
def same_position(A, B):
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(A + i, 1.0 + 0.0 * i)
    tl.store(B + i, tl.load(A + i))


@triton.jit
def copied(A, B):
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(B + i, tl.load(A + i))


@triton.jit
def counted(A, B):
    tl.atomic_add(A, 1.0)


def found_in(kernel, *constants, A: torch.Tensor | None = None, orders: tuple[str, ...] = (), warps: int = 4) -> Watch:
    """What is found in one launch of three programs, in which each has 128 numbers of A and of B."""
    A = torch.zeros(PROGRAMS * WIDTH, dtype=torch.float64) if A is None else A
    with watching(Watch(orders)) as watch:
        kernel[(PROGRAMS,)](A, torch.zeros(PROGRAMS * WIDTH, dtype=torch.float64), *constants, num_warps=warps)
    return watch


@pytest.mark.parametrize(
    "kernel, constants, expected",
    [
        (reversed_copy, (True,), set()),
        (reversed_copy, (False,), {"race"}),
        (reversed_in_place, (), {"race"}),
        (one_address, (), {"race"}),
        (replicas, (), {"race"}),
        (read_twice, (), {"race"}),
        (incremented, (), {"programs", "same"}),
        (read_by_all, (), {"programs"}),
        (last_program_wins, (), {"programs"}),
        (same_position, (), {"same"}),
        (copied, (), set()),
        (counted, (), {"atomic"}),
    ],
)
def test_what_is_planted_is_found(kernel, constants, expected) -> None:
    watch = found_in(kernel, *constants)
    assert watch.findings.kinds() == expected
    assert watch.findings.launches == {kernel.fn.__name__: 1}


def test_unwritten_memory() -> None:
    with poisoned_memory():
        unwritten = torch.empty(PROGRAMS * WIDTH, dtype=torch.float64)
    unwritten[5] = 0.0
    findings = found_in(copied, A=unwritten).findings
    assert findings.kinds() == {"poison"} and not findings.faults()
    assert findings.counts.total() == PROGRAMS * WIDTH - 1


@pytest.mark.parametrize("kernel, what", [(shifted, "loads 8 bytes behind the end"), (shifted_back, "")])
def test_addresses_out_of_bounds(kernel, what: str) -> None:
    """Of a tensor in the middle of a larger piece of memory, so that nothing crashes."""
    memory = torch.zeros(PROGRAMS * WIDTH + 2, dtype=torch.float64)
    findings = found_in(kernel, A=torch.from_numpy(memory.numpy()[1:-1])).findings
    assert findings.kinds() == {"bounds"} and findings.counts.total() == 1
    assert all(finding.what.startswith(what) for finding in findings.counts)


def test_orders_are_compared_and_the_natural_one_stays() -> None:
    A = torch.zeros(PROGRAMS * WIDTH, dtype=torch.float64)
    findings = found_in(last_program_wins, A=A, orders=("reversed", "shuffled")).findings
    assert {"order", "programs"} == findings.kinds()
    assert (A[:WIDTH] == PROGRAMS - 1).all()
    A.zero_()
    assert not found_in(copied, A=A, orders=("reversed", "shuffled")).findings.counts
    with pytest.raises(ValueError, match="orders: expected some of"):
        Watch(["backwards"])


def test_findings_name_the_lines() -> None:
    (finding,) = found_in(reversed_copy, False, warps=1).findings.counts
    assert finding.kernel == "reversed_copy" and finding.what.endswith("no barrier between (one warp)")
    source = Path(__file__).read_text().splitlines()
    for place, text in ((finding.where, "tl.store(B + i, tl.load(A +"), (finding.before, "tl.store(A + i, i.to")):
        name, line = place.rsplit(":", 1)
        assert name.endswith("test_races.py") and text in source[int(line) - 1]


def test_a_fault_fails_its_test_once() -> None:
    with watching(Watch()) as watch:
        A, B = torch.zeros(2, PROGRAMS * WIDTH, dtype=torch.float64)
        with pytest.raises(pytest.fail.Exception, match=r"race +reversed_copy"), failing_on_faults(watch.findings):
            reversed_copy[(PROGRAMS,)](A, B, False)
        with failing_on_faults(watch.findings):
            same_position[(PROGRAMS,)](A, B)
            reversed_copy[(PROGRAMS,)](A, B, False)
    assert watch.findings.lines()[-1] == "1 faults, 1 remarks"


def test_findings_of_several_processes_are_one_report() -> None:
    found, alone, both = [], Findings({"same"}), Findings({"same"})
    for kernel, constants in ((reversed_copy, (False,)), (same_position, ())):
        found.append(found_in(kernel, *constants).findings)
        both.add_plain(json.loads(json.dumps(found[-1].plain())))
        alone.counts.update(found[-1].counts)
        alone.launches.update(found[-1].launches)
    assert both.lines() == alone.lines()
    assert len(both.faults()) == 1 and both.launches.total() == 2


def test_nothing_stays_behind() -> None:
    before = {name: getattr(InterpreterBuilder, name) for name in BUILDER}
    factory = torch.empty
    with watching(Watch()):
        assert InterpreterBuilder.create_masked_load is not before["create_masked_load"]
        unwritten = torch.empty(3, dtype=torch.int64)
    assert {name: getattr(InterpreterBuilder, name) for name in BUILDER} == before and torch.empty is factory
    assert (unwritten == POISON64).all()
