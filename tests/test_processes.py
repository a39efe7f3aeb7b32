"""Forked processes: whatever their parent did with threads, they answer, on one thread, and answer the same.

Every case is a program of its own, for its history decides: what it has imported, and who has used threads. Whatever
hangs is ended by a time limit, and fails.
"""

import os
import subprocess
import sys

import pytest

from ess_kernels import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

LIMIT = 300  # seconds; a case takes a few

PRELUDE = """
import functools, multiprocessing, os, sys, threading
import torch

context = multiprocessing.get_context("fork")

def use_torchs_threads():
    return float((torch.ones(700, 700) @ torch.ones(700, 700)).exp().sum())

def answers():
    # enough heads and positions for two threads: compiled kernels, PyTorch's engine, its pool of workers, and sketches
    import ess_kernels as ek
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 200, 8, 16, generator=g, dtype=torch.float64)
    gla = ek.operators.gla(q, k, -torch.rand(1, 200, 8, 16, generator=g, dtype=torch.float64) / 16)
    T = torch.randn(8, 80, 80, generator=g, dtype=torch.float64)
    found = [ek.tolerance_ess(op, 1e-3, backend=name) for op in (gla, T) for name in ("auto", "torch")]
    found += [ek.tolerance_ess(gla, rtol=1e-12, backend="torch"), ek.entropy_ess(T), ek.entropy_ess(gla)]
    found += [ek.small_spectra(T, backend=name).values for name in ("auto", "torch")]
    found += [ek.singular_values(T, [30, 40, 50]), *ek.randomized_ess(T, [40], atol=1e-3, rank=50)]
    # a graph calls the custom ops
    found += torch.ops.ess_kernels.tolerance_ess([T], "('Dense', {}, None)", 80, [1e-3], [0.0], None, "auto")
    return [x.double() for x in found]

def threads_alive():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0

def kernel_threads():
    # by the settings, and with two threads pinned, whatever is set
    import ess_kernels.backends.native.call as call, ess_kernels.backends.native.choice as choice
    with call.pinned(None, 2, 0):
        return [choice.allowed_threads(), call.current()[1].threads]

def same(found, expected):
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True) for a, b in zip(found, expected, strict=True))

def child(expected=None, alone=True):
    before = threads_alive()
    found = answers()
    assert not alone or threads_alive() == before
    assert expected is None or same(found, expected)
    assert kernel_threads() == [1, 1]

def check(function, *arguments, start=context):
    process = start.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        sys.exit("a child hangs")
    if process.exitcode:
        sys.exit(f"a child failed: {process.exitcode}")
"""


def run(code: str, tmp_path, **settings: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PRELUDE + code)
    # threads wait asleep: spinning, they would keep other tests off processors that several processes share
    threads = {"OMP_NUM_THREADS": "2", environment.NUM_THREADS: "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, **threads, **settings, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "imported, setting", [("before the fork", "2"), ("after the fork", "2"), ("after the fork", "")]
)
def test_first_use_in_the_child(tmp_path, imported, setting):
    first = "import ess_kernels\n" if imported == "before the fork" else ""
    run(first + "use_torchs_threads()\ncheck(child)", tmp_path, **{environment.NUM_THREADS: setting})


def test_use_in_the_parent_then_in_the_child(tmp_path):
    code = """
expected = answers()
import ess_kernels.engine.parallel as parallel
assert kernel_threads() == [2, 2] and parallel.thread_pool.cache_info().currsize == 1
check(child, expected)

def grandchild():
    child(expected)
    check(child, expected)
check(grandchild)

# the fork may happen while other threads are in the middle of calls
stop = threading.Event()
def busy():
    while not stop.is_set():
        answers()
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
try:
    for _ in range(10):
        check(child, expected)
finally:
    stop.set()
for thread in threads:
    thread.join()

# the parent is what it was
assert same(answers(), expected) and kernel_threads() == [2, 2]

# and what a child does in threads of its own
def threaded():
    found = []
    thread = threading.Thread(target=lambda: found.extend(answers()))
    thread.start()
    thread.join()
    assert same(found, expected)
check(threaded)
"""
    run(code, tmp_path)


@pytest.mark.parametrize("first", ["", "expected = answers()"], ids=["first use in a worker", "used before"])
def test_workers_of_a_data_loader(tmp_path, first):
    code = """
from torch.utils.data import DataLoader, Dataset

class Answers(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        child(expected, alone=False)  # queues have threads in the worker
        return index

expected = None
use_torchs_threads()
FIRST
for persistent in (False, True):
    options = {"num_workers": 2, "multiprocessing_context": "fork", "timeout": 120}
    loader = DataLoader(Answers(), persistent_workers=persistent, **options)
    for epoch in range(2 if persistent else 1):  # without persistence a second epoch has fresh workers, as the first
        assert sorted(x for batch in loader for x in batch.tolist()) == [0, 1, 2, 3]
"""
    run(code.replace("FIRST", first), tmp_path)


def test_a_process_that_was_not_forked_keeps_its_threads(tmp_path):
    code = """
def fresh(expected):
    assert same(answers(), expected)
    assert kernel_threads() == [2, 2]

if __name__ == "__main__":
    expected = answers()
    for method in ("spawn", "forkserver"):
        check(fresh, expected, start=multiprocessing.get_context(method))
"""
    run(code, tmp_path)


def test_torch_has_its_threads_back_after_a_call(tmp_path):
    code = """
import ess_kernels as ek, ess_kernels.processes as processes

def after():
    assert processes.forked() and torch.get_num_threads() == 2
    seen = []
    @processes.on_one_thread_if_forked
    def look():
        seen.append(torch.get_num_threads())
        raise ValueError
    try:
        look()
    except ValueError:
        pass
    assert seen == [1] and torch.get_num_threads() == 2

assert not processes.forked()
check(after)
assert not processes.forked()
"""
    run(code, tmp_path)
