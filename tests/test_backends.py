"""The registry: which backend takes a call, what it says where it cannot, and what `auto` does then."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import ess_kernels as ek
from ess_kernels import backends, operators
from ess_kernels.backends.native import NativeBackend
from ess_kernels.backends.triton import TritonBackend, runtime
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import rand, randn

TASKS = ("tolerance_ess", "entropy_ess", "singular_values", "small_spectra")


def subject(device, requires_grad=False):
    """What the registry looks at of an operator or a tensor."""
    return SimpleNamespace(device=torch.device(device), requires_grad=requires_grad)


@pytest.fixture
def interpreter(monkeypatch):
    monkeypatch.setattr(runtime, "_installed", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the registry asks."""
    monkeypatch.setattr(runtime, "_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture
def nothing(monkeypatch):
    monkeypatch.setattr(runtime, "_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture
def lines(caplog):
    backends.say_once.cache_clear()
    caplog.set_level(logging.INFO, "ess_kernels")
    yield lambda: [record.getMessage() for record in caplog.records if record.name == "ess_kernels"]
    backends.say_once.cache_clear()


def triton_status():
    return next(status for status in backends.describe() if status.name == "triton")


# --- triton, asked for by name ----------------------------------------------------------------------------------------


def test_without_a_device_it_says_so(nothing):
    for call in (
        lambda name: ek.tolerance_ess(torch.ones(4, 4), backend=name),
        lambda name: ek.entropy_ess(torch.ones(4, 4), backend=name),
        lambda name: ek.singular_values(torch.ones(4, 4), [1], backend=name),
        lambda name: ek.small_spectra(torch.ones(4, 4), backend=name),
    ):
        with pytest.raises(RuntimeError, match=r"^backend 'triton' cannot be used for \w+: there is no CUDA device"):
            call("triton")
    assert not triton_status().usable and "no CUDA device" in triton_status().reason


def test_without_triton_it_says_so(gpu, monkeypatch):
    monkeypatch.setattr(runtime, "_installed", lambda: False)
    with pytest.raises(RuntimeError, match=r"'triton' cannot be used for entropy_ess: triton is not installed$"):
        ek.entropy_ess(torch.ones(4, 4), backend="triton")
    assert triton_status() == backends.BackendStatus("triton", False, "triton is not installed")


def test_on_a_gpu_it_takes_cuda_tensors_only(gpu):
    for task in TASKS:
        assert backends.choose("triton", task, subject("cuda")).name == "triton"
        with pytest.raises(RuntimeError, match=r"its kernels take CUDA tensors, these lie on the cpu"):
            backends.choose("triton", task, subject("cpu"))
    assert triton_status().usable and "2 devices" in triton_status().reason


def test_in_the_interpreter_it_takes_cpu_tensors(interpreter):
    for task in TASKS:
        assert backends.choose("triton", task, subject("cpu")).name == "triton"
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
            backends.choose("triton", task, subject("cuda"))
    assert triton_status().usable and "interpreter" in triton_status().reason


def test_a_large_state_is_refused(interpreter):
    q = torch.zeros(1, 5, 1, 257)
    with pytest.raises(RuntimeError, match=r"'triton' cannot be used for entropy_ess: .*at most 256 states.* has 257"):
        ek.entropy_ess(operators.linear_attention(q, q), backend="triton")


@pytest.fixture
def device():
    """Where kernels run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if reason := runtime.unavailable() or runtime.refuses(torch.device(device)):
        pytest.skip(reason)
    return device


def test_heads_that_the_kernels_do_not_take(device):
    """Bad data, and transitions that grow, go to the engine in PyTorch; the others do not notice."""
    torch.manual_seed(0)
    A, B, C = rand(3, 20, 4), randn(3, 20, 4), randn(3, 20, 4)
    A[1] += 1.0
    B[2, 7, 1] = torch.nan
    op = operators.recurrence(*(x.to(device) for x in (A, B, C)), diagonal=True)
    found = ek.tolerance_ess(op, 0.3, positions=[3, 8, 14, 19], backend="triton")
    assert torch.equal(found, ek.tolerance_ess(op, 0.3, positions=[3, 8, 14, 19], backend="torch"))
    assert (found == -1).nonzero()[:, 0].tolist() == [2] * 4


def test_attention_and_bad_keys(device):
    torch.manual_seed(2)
    q, k = randn(1, 2, 20, 3).to(device), randn(1, 2, 20, 3).to(device)
    k[0, 1, 6, 0] = torch.inf
    op = operators.attention(q, k, window_size=9)
    found = ek.tolerance_ess(op, 1e-2, positions=[4, 9, 15, 19], backend="triton")
    assert torch.equal(found, ek.tolerance_ess(op, 1e-2, positions=[4, 9, 15, 19], backend="torch"))
    assert bool((found[0, 1] == -1).all()) and bool((found[0, 0] > 0).all())


def test_small_spectra_of_products_larger_than_their_factors(device):
    torch.manual_seed(1)
    A = randn(2, 5, 3).to(device)
    found = ek.small_spectra(A, atol=0.5, backend="triton")
    assert torch.equal(found.counts, ek.small_spectra(A, atol=0.5, backend="torch").counts)
    A, right = randn(1, 300, 2).to(device), randn(1, 280, 2).to(device)
    found = ek.small_spectra(A, right=right, backend="triton").values
    assert found.shape == (1, 280)
    assert_close("values", found, torch.linalg.svdvals(A @ right.mT), rtol=1e-12, atol=1e-11)


def test_a_gradient_is_refused(interpreter):
    T = randn(5, 5).requires_grad_()
    for name in ("triton", "reference"):
        with pytest.raises(RuntimeError, match=rf"backend '{name}' cannot be used for entropy_ess: it has no backward"):
            ek.entropy_ess(T, backend=name)
    with torch.no_grad():
        assert backends.choose("triton", "entropy_ess", T).name == "triton"
    assert backends.choose("triton", "tolerance_ess", T).name == "triton"


# --- auto -------------------------------------------------------------------------------------------------------------


def test_auto_gives_cuda_tensors_to_triton(gpu, lines):
    for task in TASKS:
        assert backends.choose("auto", task, subject("cuda")).name == "triton"
        assert backends.choose("auto", task, subject("cpu")).name != "triton"
    assert lines() == []


def test_auto_never_interprets(interpreter, lines):
    for task in TASKS:
        assert backends.choose("auto", task, subject("cpu")).name != "triton"
    assert lines() == []


def test_auto_keeps_gradients(gpu, lines):
    tracked = subject("cuda", requires_grad=True)
    assert backends.choose("auto", "entropy_ess", tracked).name == "torch"
    assert backends.choose("auto", "tolerance_ess", tracked).name == "triton"  # counts have none
    with torch.no_grad():
        assert backends.choose("auto", "entropy_ess", tracked).name == "triton"
    assert lines() == []


def test_auto_says_once_why_a_gpu_does_without_kernels(gpu, lines, monkeypatch):
    monkeypatch.setattr(runtime, "_installed", lambda: False)
    for task in TASKS:
        assert backends.choose("auto", task, subject("cuda")).name == "torch"
    assert lines() == ["CUDA tensors are left to backend 'torch', not 'triton': triton is not installed"]


def test_auto_says_why_a_call_is_refused(gpu, lines, monkeypatch):
    monkeypatch.setattr(
        TritonBackend, "refuses", lambda self, task, subject: "too large" if task == "small_spectra" else None
    )
    for _ in range(2):
        assert backends.choose("auto", "small_spectra", subject("cuda")).name == "torch"
        assert backends.choose("auto", "entropy_ess", subject("cuda")).name == "triton"
    assert lines() == ["CUDA tensors are left to backend 'torch', not 'triton': too large"]


def test_auto_on_other_devices_is_torch(lines):
    assert backends.choose("auto", "entropy_ess", subject("meta")).name == "torch"
    assert lines() == []


# --- products with thin matrices, which few backends have -------------------------------------------------------------


def test_products_of_attention_are_kernels(interpreter):
    q = torch.zeros(1, 1, 5, 2)
    op = operators.attention(q, q)
    assert backends.choose("triton", "randomized_ess", op).name == "triton"
    assert backends.choose("auto", "randomized_ess", op).name == "torch"


def test_what_a_backend_lacks_comes_first(nothing):
    """Why no machine could do it says more than why this one cannot."""
    T = operators.dense(torch.ones(4, 4))
    for name, reason in (
        ("triton", "it multiplies with attention only"),
        ("native", "it has no products"),
        ("reference", "it has no products"),
    ):
        with pytest.raises(RuntimeError, match=rf"^backend '{name}' cannot be used for randomized_ess: {reason}"):
            backends.choose(name, "randomized_ess", T)
    assert backends.choose("torch", "randomized_ess", T).name == "torch"


def test_products_on_a_cpu_open_no_library(monkeypatch, lines):
    monkeypatch.setattr(NativeBackend, "unavailable", lambda self: pytest.fail("nobody needs the library"))
    assert backends.choose("auto", "randomized_ess", operators.dense(torch.ones(4, 4))).name == "torch"
    assert lines() == []


def test_auto_says_why_products_are_not_by_kernels(gpu, lines):
    assert backends.choose("auto", "randomized_ess", subject("cuda")).name == "torch"
    assert lines() == ["CUDA tensors are left to backend 'torch', not 'triton': it multiplies with attention only"]


# --- the report -------------------------------------------------------------------------------------------------------


def test_asking_for_a_report_loads_no_triton():
    code = """
import sys, torch, ess_kernels.backends.triton
report = str(ess_kernels.show_config())
print("triton" in sys.modules, "  triton " in report)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False True"


def test_every_backend_describes_itself():
    statuses = backends.describe()
    assert tuple(status.name for status in statuses) == backends.NAMES
    assert all(status.reason for status in statuses)
    with pytest.raises(ValueError, match=r"one of 'auto', 'reference', 'torch', 'native', 'triton', got 'cuda'"):
        backends.choose("cuda", "entropy_ess", operators.dense(torch.ones(3, 3)))
