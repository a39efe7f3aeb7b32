"""What calls announce before they allocate, what they then take, and the error where less is free."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

import ess_kernels as ek
from ess_kernels import memory
from ess_kernels.backends.native import library
from ess_kernels.testing import peak_memory
from ess_kernels.testing.cases import randn

MIB = 2**20
# pages of libraries, caches of small pieces, and what the allocator keeps
SLACK = 24 * MIB

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def attention(length, heads=1):
    return ek.operators.attention(*randn(2, 1, heads, length, 8))


def calls(op):
    return {
        "tolerance_ess": lambda: ek.tolerance_ess(op),
        "entropy_ess": lambda: ek.entropy_ess(op),
        "soft_ess": lambda: ek.soft_ess(op, 1e-2),
        "nuclear_norm": lambda: ek.nuclear_norm(op),
        "singular_values": lambda: ek.singular_values(op, [3]),
        "randomized_ess": lambda: ek.randomized_ess(op, [3], rank=4),
        "reduce": lambda: ek.reduce(op),
        "dense": lambda: op.dense(),
        "reference": lambda: ek.tolerance_ess(op, backend="reference"),
        "small_spectra": lambda: ek.small_spectra(torch.rand(op.length, 8, 8)),
    }


@pytest.fixture
def nothing_free(monkeypatch):
    monkeypatch.setattr(memory, "NOT_ASKED", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 100)


@pytest.mark.parametrize("name", calls(attention(8)))
def test_an_error_names_need_and_what_is_free(name, nothing_free):
    with pytest.raises(MemoryError, match=r"needs \d.*, and 100 B are free on cpu\. What takes less: \w") as caught:
        calls(attention(40))[name]()
    assert "GiB" not in str(caught.value)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_nothing_is_allocated_before_the_error(backend, nothing_free, monkeypatch):
    op = attention(40)
    monkeypatch.setattr(type(op), "rows", lambda *_: pytest.fail("rows were made"))
    monkeypatch.setattr(type(op), "finite", lambda *_: pytest.fail("numbers were read"))
    with pytest.raises(MemoryError, match=r"one head of 40 tokens.*positions=\.\.\., window_size, bounded_ess"):
        ek.tolerance_ess(op, backend=backend)


def test_recurrences_say_so_too(nothing_free):
    q, k, g = randn(3, 1, 40, 2, 8)
    with pytest.raises(MemoryError, match=r"one head of 40 tokens.*smaller state"):
        ek.tolerance_ess(ek.operators.gla(q, k, -g.abs()))


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_what_is_free_is_a_budget(backend, monkeypatch):
    """Less than the budget: heads are taken one by one, without ever being whole, and the answer is the same."""
    op = attention(200, heads=3)
    wanted = ek.tolerance_ess(op, [1e-1, 1e-3], backend=backend)
    with memory.needs_of_calls() as needs, ek.memory_budget(1):
        assert torch.equal(ek.tolerance_ess(op, [1e-1, 1e-3], backend=backend), wanted)
    monkeypatch.setattr(memory, "NOT_ASKED", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: max(need.least for need in needs))
    assert torch.equal(ek.tolerance_ess(op, [1e-1, 1e-3], backend=backend), wanted)


def test_a_budget_too_small_for_one_head_is_exceeded_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr(memory, "NOT_ASKED", 0)
    op = attention(60, heads=3)
    with caplog.at_level(logging.WARNING, "ess_kernels"), ek.memory_budget("1KiB"):
        ek.tolerance_ess(op, backend="torch")
    (line,) = caplog.messages
    assert "one head of 60 tokens needs" in line and "more than the memory budget of 1.0 KiB" in line
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ess_kernels"), ek.memory_budget("1GiB"):
        ek.tolerance_ess(op, backend="torch")
    assert not caplog.messages


def test_errors_of_allocators_are_memory_errors():
    @memory.out_of_memory_as_memory_error
    def fails(message):
        raise RuntimeError(message)

    with pytest.raises(MemoryError, match="DefaultCPUAllocator: can't allocate memory"):
        fails("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.\nand more")
    with pytest.raises(RuntimeError, match="something else"):
        fails("something else")


def check(**options):
    found = peak_memory.measure(**options)
    assert found["error"] is None
    assert found["peak"] <= 1.2 * found["announced"] + SLACK, found


@on_linux
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_one_large_head_stays_below_16_of_its_square(backend):
    if backend == "native" and library().handle is None:
        pytest.skip("there is no compiled library")
    length = 1600
    found = peak_memory.measure(task="tolerance_ess", family="attention", length=length, budget="1MiB", backend=backend)
    assert found["peak"] <= 16 * length**2 + SLACK, found
    assert found["peak"] <= 1.2 * found["announced"] + SLACK, found


@on_linux
def test_a_limit_of_addresses_is_an_error():
    found = peak_memory.measure(
        task="tolerance_ess", family="attention", length=3000, limit=memory.ADDRESSES_LEFT + 40 * MIB
    )
    assert "of memory beside the inputs" in found["error"]


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("budget", ["64MiB", "256MiB", "1GiB", "4GiB"])
@pytest.mark.parametrize("family", peak_memory.FAMILIES)
@pytest.mark.parametrize("task", peak_memory.TASKS)
def test_what_is_announced_is_taken(task, family, budget):
    check(task=task, family=family, length=1024, heads=24, budget=budget)


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("task", ["tolerance_ess", "entropy_ess", "singular_values", "dense"])
@pytest.mark.parametrize("family", peak_memory.FAMILIES)
def test_no_limit_of_addresses_kills_the_process(task, family):
    for mib in (8, 64, 96, 128, 192, 256, 384):
        found = peak_memory.measure(task=task, family=family, length=2048, heads=4, limit=mib * MIB)
        assert found["error"] is None or found["error"], found
