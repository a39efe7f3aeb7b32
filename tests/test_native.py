"""The door to the compiled library: what is loaded, what is refused and why, and that the library counts correctly."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

import ess_kernels
from ess_kernels.backends.native import NativeBackend
from ess_kernels.backends.native import loading as native


class Function:
    """Stands for a C function: ctypes sets `restype` and `argtypes` on it."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, *arguments):
        return self.answer(*arguments)


class FakeLibrary:
    """A library with the right names. `count` is what its elimination answers, whatever it is asked."""

    def __init__(self, version=native.ABI_VERSION, count=2, code=0):
        def positive_pivots(n, a, lda, work, result):
            result._obj.value = count
            return code

        self.ess_abi_version = Function(lambda: version)
        self.ess_build_info = Function(lambda: b"fake")
        self.ess_level_name = Function(lambda level: b"fake")
        self.ess_num_threads = Function(lambda: 1)
        self.ess_error_string = Function(lambda code: b"made-up error")
        self.ess_positive_pivots = Function(positive_pivots)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Opens a `FakeLibrary` in place of a file."""

    def open_fake(library):
        path = tmp_path / "_native.so"
        path.touch()
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
        return native.open_library(path)

    return open_fake


@pytest.fixture
def built():
    found = native.open_library(native.LIBRARY)
    if found.handle is None:
        pytest.skip(f"native library: {found.reason}")
    return found


def test_library_of_another_abi_is_refused_before_it_is_used(fake):
    library = FakeLibrary(version=3)
    library.ess_positive_pivots = Function(lambda *arguments: pytest.fail("called through an unknown signature"))
    found = fake(library)
    assert found.handle is None
    assert found.reason.startswith(f"ABI 3, expected {native.ABI_VERSION}")


def test_missing_symbols_are_named(fake):
    library = FakeLibrary()
    del library.ess_positive_pivots
    assert "ess_positive_pivots" in fake(library).reason

    found = fake(object())
    assert found.handle is None
    assert "ess_abi_version" in found.reason


@pytest.mark.parametrize("library", [FakeLibrary(count=5), FakeLibrary(code=4)], ids=["wrong count", "error code"])
def test_library_that_computes_wrongly_is_refused(fake, library):
    found = fake(library)
    assert found.handle is None
    assert found.reason.startswith("self-test failed: ")


def test_file_that_is_no_library(tmp_path):
    path = tmp_path / "_native.so"
    path.write_bytes(b"not a library")
    found = native.open_library(path)
    assert found.handle is None
    assert found.reason.startswith("cannot be loaded: ")
    assert found.threads == 0


def test_no_file(tmp_path):
    assert native.open_library(tmp_path / "_native.so").reason.startswith("not built")


def test_disabled_by_environment(monkeypatch):
    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "1")
    assert NativeBackend().unavailable() == "disabled by ESS_KERNELS_DISABLE_NATIVE"
    assert ess_kernels.show_config().native == "disabled by ESS_KERNELS_DISABLE_NATIVE"

    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "perhaps")  # a reason, not an exception out of some metric
    assert "'perhaps'" in NativeBackend().unavailable()

    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "0")
    assert native.library() == native.library()
    assert "ESS_KERNELS_DISABLE_NATIVE" not in (native.library().reason or "")


def test_asked_for_by_name_it_raises_with_the_reason():
    T = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match="native"):
        ess_kernels.tolerance_ess(T, backend="native")
    assert ess_kernels.tolerance_ess(T).tolist() == [1, 1, 1]


def test_import_does_not_open_the_library():
    code = "from ess_kernels.backends.native import loading; print(loading._open_installed.cache_info().misses)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_build_information(built):
    assert "OpenMP" in built.build_info
    assert built.threads >= 1
    assert built.build_info in ess_kernels.show_config().native or os.environ.get("ESS_KERNELS_DISABLE_NATIVE")


def test_set_num_threads_reaches_the_library(built):
    if "no OpenMP" in built.build_info or sys.platform != "linux":
        pytest.skip("the library does not share torch's OpenMP")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert built.threads == 1
        torch.set_num_threads(3)
        assert built.threads == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 17, 40])
def test_positive_pivots_counts_eigenvalues(built, n):
    torch.manual_seed(n)
    for shift in (-2.0, 0.0, 2.0):
        A = torch.randn(n, n, dtype=torch.float64)
        A = A + A.T + shift * torch.eye(n, dtype=torch.float64)
        expected = int((torch.linalg.eigvalsh(A) > 0).sum())
        assert native.positive_pivots(built.handle, A.tril().tolist()) == expected


@pytest.mark.parametrize(
    "rows, message",
    [
        ([[0.0]], "pivot"),
        ([[0.0, 1.0], [1.0, 0.0]], "pivot"),
        ([[1.0, 1.0], [1.0, 1.0]], "pivot"),
        ([[float("nan")]], "non-finite"),
        ([[1.0, 0.0], [float("inf"), 1.0]], "non-finite"),
        ([[1e-300, 0.0], [1e300, 1.0]], "pivot"),  # the first pivot is nothing beside the second row
        ([[0.0] * 513] * 513, "size"),
    ],
)
def test_positive_pivots_refuses_what_it_cannot_count(built, rows, message):
    with pytest.raises(ValueError, match=message):
        native.positive_pivots(built.handle, rows)


def test_positive_pivots_checks_before_it_reads(built):
    call = built.handle.ess_positive_pivots
    one = (ctypes.c_double * 1)(1.0)
    count = ctypes.c_int64(-7)
    null, size = 1, 2
    assert call(1, None, 1, one, ctypes.byref(count)) == null
    assert call(1, one, 1, None, ctypes.byref(count)) == null
    assert call(1, one, 1, one, None) == null
    assert call(-1, one, 1, one, ctypes.byref(count)) == size
    assert call(2, one, 1, one, ctypes.byref(count)) == size
    assert count.value == -7  # a failed call leaves the result alone
    assert call(0, None, 0, None, ctypes.byref(count)) == 0
    assert count.value == 0
    assert built.handle.ess_error_string(99) == b"unknown error code"
