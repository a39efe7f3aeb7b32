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
# of what is announced at least so much is taken
LEAST_SHARE = 0.25

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
        "compress": lambda: ek.compress(op, 1e-3),
        "token_influence": lambda: ek.token_influence(op),
        "bounded_ess": lambda: ek.bounded_ess(op, method="exact"),
    }


def recurrence(length, heads=2):
    q, k, g = randn(3, 1, length, heads, 8)
    return ek.operators.gla(q, k, -g.abs())


@pytest.fixture
def nothing_free(monkeypatch):
    library()  # it tries itself out before its first use, and needs memory for that
    monkeypatch.setattr(memory, "NOT_ASKED", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 100)


@pytest.mark.parametrize("name", calls(attention(8)))
def test_an_error_names_need_and_what_is_free(name, nothing_free):
    with pytest.raises(MemoryError, match=r"needs \d.*, and 100 B are free on cpu\. What takes less: \w") as caught:
        calls(attention(40))[name]()
    assert "GiB" not in str(caught.value)


def test_reduce_announces_its_result_when_it_knows_the_ranks(nothing_free):
    q, k, g = randn(3, 1, 12, 2, 4)
    with pytest.raises(MemoryError, match=r"the result, 2 recurrences of 12 tokens with 4 states, needs .*atol"):
        ek.reduce(ek.operators.gla(q, k, g.abs().neg()))


@pytest.mark.parametrize("line", ["std::bad_alloc", "DefaultCPUAllocator: can't allocate memory: you tried"])
def test_dense_is_out_of_memory_by_name(line, monkeypatch):
    def fail(*_):
        raise RuntimeError(line)

    op = attention(40)
    monkeypatch.setattr(type(op), "rows", fail)
    with pytest.raises(MemoryError):
        op.dense()


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_nothing_is_allocated_before_the_error(backend, nothing_free, monkeypatch):
    op = attention(40)
    monkeypatch.setattr(type(op), "rows", lambda *_: pytest.fail("rows were made"))
    monkeypatch.setattr(type(op), "finite", lambda *_: pytest.fail("numbers were read"))
    with pytest.raises(MemoryError, match=r"one head of 40 tokens.*positions=\.\.\., window_size, bounded_ess"):
        ek.tolerance_ess(op, backend=backend)


def test_recurrences_say_so_too(nothing_free):
    with pytest.raises(MemoryError, match=r"one head of 40 tokens.*smaller state"):
        ek.tolerance_ess(recurrence(40))


@pytest.mark.parametrize("metric", [ek.causal_ess, ek.observable_ess, ek.state_spectra, ek.token_influence])
def test_companions_say_so_too(metric, nothing_free):
    with pytest.raises(MemoryError, match=r"one head of 40 tokens needs.*What takes less: .*shorter sequences"):
        metric(recurrence(40))


def test_slices_of_processes_say_so_too(nothing_free):
    from ess_kernels.distributed.sequence_parallel import _summary

    with pytest.raises(MemoryError, match=r"one head of 40 tokens of this process.*What takes less: more processes"):
        _summary(recurrence(40), (0, 40))


@pytest.mark.parametrize(
    "metric", [ek.entropy_ess, lambda op: ek.soft_ess(op, 1e-2), ek.nuclear_norm], ids=["entropy", "soft", "nuclear"]
)
@pytest.mark.parametrize("make", [attention, recurrence])
def test_gradients_say_so_too(metric, make, nothing_free):
    op = make(40, 2)
    next(iter(op.inputs)).requires_grad_()
    with pytest.raises(MemoryError, match=r"the gradient of 2 heads of 40 tokens.*What takes less: fewer positions"):
        metric(op)


def test_a_compressed_operator_says_so_too(monkeypatch):
    op = ek.compress(attention(40), 1e-2)
    monkeypatch.setattr(memory, "NOT_ASKED", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 100)
    with pytest.raises(MemoryError, match=r"one head of 40 tokens.*What takes less: a larger error"):
        ek.tolerance_ess(op)


def test_small_states_need_no_more_than_they_take():
    """The kernels for many heads with small states keep no parts of blocks, which would be ten times as much."""
    if library().handle is None:
        pytest.skip("there is no compiled library")
    with memory.needs_of_calls() as needs:
        ek.tolerance_ess(peak_memory.operator("mamba", 512, 32))
    (need,) = needs
    tokens = 32 * 512
    assert need.most < 8 * tokens * 40


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


@pytest.fixture(scope="module")
def measure():
    with peak_memory.Measurements() as process:
        yield process


def check(measure, **options):
    found = measure(**options)
    assert "died" not in found, found
    assert found["error"] is None
    assert found["peak"] <= 1.2 * found["announced"] + SLACK, found
    # far too much would refuse calls that fit
    assert found["peak"] >= LEAST_SHARE * found["announced"] - SLACK, found


@on_linux
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_one_large_head_stays_below_16_of_its_square(backend, measure):
    if backend == "native" and library().handle is None:
        pytest.skip("there is no compiled library")
    length = 1600
    found = measure(task="tolerance_ess", family="attention", length=length, budget="1MiB", backend=backend)
    assert found["peak"] <= 16 * length**2 + SLACK, found
    assert found["peak"] <= 1.2 * found["announced"] + SLACK, found


@on_linux
def test_a_limit_of_addresses_is_an_error(measure):
    found = measure(task="tolerance_ess", family="attention", length=3000, limit=memory.ADDRESSES_LEFT + 40 * MIB)
    assert "of memory beside the inputs" in found["error"]


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("budget", ["64MiB", "256MiB", "1GiB", "4GiB"])
@pytest.mark.parametrize(("task", "family"), peak_memory.CASES)
def test_what_is_announced_is_taken(task, family, budget, measure):
    check(measure, task=task, family=family, length=1024, heads=24, budget=budget)


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), peak_memory.CASES)
def test_no_limit_of_addresses_kills_the_process(task, family, measure):
    for mib in (8, 64, 96, 128, 192, 256, 384):
        found = measure(task=task, family=family, length=768, heads=4, limit=mib * MIB)
        assert "died" not in found, found
