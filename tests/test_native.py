"""The door to the compiled library: what is loaded, what is refused and why, and that the library counts correctly."""

import ctypes
import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from identical import assert_same_bits, levels, running

import ess_kernels
from ess_kernels import environment
from ess_kernels.backends.native import NativeBackend, abi, call, choice, file, selftest
from ess_kernels.backends.native.choice import library, open_library
from ess_kernels.backends.native.loading import untested_library


class Function:
    """Stands for a C function: ctypes sets `restype` and `argtypes` on it."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, *arguments):
        return self.answer(*arguments)


class FakeLibrary:
    """A library with the right names but `missing`, and structures of the right sizes; its elimination answers `count`,
    whatever it is asked."""

    def __init__(self, version=abi.VERSION, count=2, code=0, missing=None):
        def positive_pivots(n, a, lda, work, result):
            result._obj.value = count
            return code

        self.ess_abi_version = Function(lambda: version)
        self.ess_build_info = Function(lambda: b"fake")
        self.ess_level_name = Function(lambda level: b"fake")
        self.ess_num_threads = Function(lambda: 1)
        self.ess_size_of = Function(lambda name: ctypes.sizeof(abi.STRUCTURES[name.decode()]))
        self.ess_error_string = Function(lambda code: b"made-up error")
        self.ess_positive_pivots = Function(positive_pivots)
        self.missing = missing
        if missing:
            delattr(self, missing)

    def __getattr__(self, name):
        if not name.startswith("ess_") or name == self.missing:
            raise AttributeError(name)
        return Function(lambda *arguments: pytest.fail(f"{name} was called"))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Opens a `FakeLibrary` in place of a file."""

    def open_fake(other):
        path = tmp_path / "_native.so"
        path.touch()
        monkeypatch.setattr(ctypes, "CDLL", lambda name: other)
        return open_library(path)

    return open_fake


@pytest.fixture
def built():
    found = open_library(environment.native_library() or file.LIBRARY)
    if found.handle is None:
        pytest.skip(f"native library: {found.reason}")
    return found


def test_library_of_another_abi_is_refused_before_it_is_used(fake):
    other = FakeLibrary(version=abi.VERSION + 1)
    other.ess_size_of = other.ess_positive_pivots = Function(
        lambda *arguments: pytest.fail("called through an unknown signature")
    )
    found = fake(other)
    assert found.handle is None
    assert found.reason.startswith(f"ABI {abi.VERSION + 1}, expected {abi.VERSION}")


def test_missing_symbols_are_named(fake):
    assert "ess_positive_pivots" in fake(FakeLibrary(missing="ess_positive_pivots")).reason

    found = fake(object())
    assert found.handle is None
    assert "ess_abi_version" in found.reason


def test_library_with_a_structure_of_another_size_is_refused(fake):
    right = FakeLibrary()
    wrong = FakeLibrary()
    wrong.ess_size_of = Function(lambda name: right.ess_size_of(name) + 8 * (name == b"ess_matrix"))
    wrong.ess_positive_pivots = Function(lambda *arguments: pytest.fail("called with an unknown structure"))
    found = fake(wrong)
    size = ctypes.sizeof(abi.Matrix)
    assert found.handle is None
    assert found.reason == f"ess_matrix has {size + 8} bytes, expected {size}: install the package again"


@pytest.mark.parametrize("wrong", [FakeLibrary(count=5), FakeLibrary(code=4)], ids=["wrong count", "error code"])
def test_library_that_computes_wrongly_is_refused(fake, wrong, tmp_path):
    found = fake(wrong)
    assert found.handle is None
    assert found.reason.startswith("self-test failed: ")
    # to be opened it need not compute anything
    assert untested_library(tmp_path / "_native.so").handle is wrong


def test_file_that_is_no_library(tmp_path):
    path = tmp_path / "_native.so"
    path.write_bytes(b"not a library")
    found = open_library(path)
    assert found.handle is None
    assert found.reason.startswith("cannot be loaded: ")
    assert found.threads == 0


def test_no_file(tmp_path):
    assert open_library(tmp_path / "_native.so").reason.startswith("not built")


def test_disabled_by_environment(monkeypatch):
    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "1")
    assert NativeBackend().unavailable() == "disabled by ESS_KERNELS_DISABLE_NATIVE"
    assert ess_kernels.show_config().native == "disabled by ESS_KERNELS_DISABLE_NATIVE"

    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "perhaps")  # a reason, not an exception out of some metric
    assert "'perhaps'" in NativeBackend().unavailable()

    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "0")
    assert library() == library()
    assert "ESS_KERNELS_DISABLE_NATIVE" not in (library().reason or "")


@pytest.fixture
def forget(monkeypatch):
    """Nothing has been opened yet, and nothing said; the settings are the default ones."""
    for name in (
        environment.DISABLE_NATIVE,
        environment.NATIVE_LIBRARY,
        environment.NUM_THREADS,
        environment.CPU_LEVEL,
        environment.MEMORY_BUDGET,
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("_opened", "_tried_with_threads", "_not_used"):
        monkeypatch.setattr(choice, name, functools.cache(getattr(choice, name).__wrapped__))
    monkeypatch.setattr(choice, "_working", {})


@pytest.mark.parametrize(
    "variable, text",
    [
        (environment.NUM_THREADS, "0"),
        (environment.NUM_THREADS, "two"),
        (environment.CPU_LEVEL, "sse9"),
        (environment.DISABLE_NATIVE, "perhaps"),
    ],
)
def test_bad_setting_keeps_only_the_library_from_being_used(forget, monkeypatch, caplog, variable, text):
    monkeypatch.setenv(variable, text)
    T = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match=rf"native.*{variable}.*'{text}'"):
        ess_kernels.tolerance_ess(T, backend="native")
    for _ in range(2):
        assert ess_kernels.tolerance_ess(T).tolist() == [1, 1, 1]
    assert [record.name for record in caplog.records] == ["ess_kernels"]
    assert variable in caplog.text
    config = ess_kernels.show_config()
    assert variable in config.native
    assert [variable in problem for problem in config.problems] == [True]


def test_level_that_the_machine_has_not(forget, monkeypatch, caplog, tmp_path):
    path = tmp_path / "_native.so"
    path.touch()
    slow = FakeLibrary()
    slow.ess_level_name = Function(lambda level: None if level == 3 else b"fake")
    monkeypatch.setattr(choice, "LIBRARY", path)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: slow)
    monkeypatch.setattr(selftest, "CHECKS", [])
    monkeypatch.setenv(environment.CPU_LEVEL, "avx512")
    assert library().reason == "this machine has no avx512 (ESS_KERNELS_CPU_LEVEL)"
    assert len(caplog.records) == 1
    monkeypatch.setenv(environment.CPU_LEVEL, "avx2")
    assert library().reason is None


def test_library_that_misbehaves_is_not_used_and_said_once(forget, monkeypatch, caplog, tmp_path):
    path = tmp_path / "_native.so"
    path.touch()
    monkeypatch.setenv(environment.NATIVE_LIBRARY, str(path))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeLibrary(count=5))
    for _ in range(3):
        assert "self-test failed" in library().reason
        assert str(path) in library().reason
    assert [(record.name, record.levelno) for record in caplog.records] == [("ess_kernels", logging.WARNING)]
    assert ess_kernels.tolerance_ess(torch.ones(4, 4)).tolist() == [1, 1, 1]


def test_library_that_is_not_there(forget, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(choice, "LIBRARY", tmp_path / "_native.so")
    assert library().reason.startswith("not built")
    assert not caplog.records  # nobody asked for one
    monkeypatch.setenv(environment.NATIVE_LIBRARY, str(tmp_path / "mine.so"))
    assert "mine.so" in library().reason
    assert len(caplog.records) == 1


def test_another_library_by_its_path(forget, built, monkeypatch, tmp_path):
    copy = tmp_path / "copy.so"
    copy.write_bytes(Path(built.handle._name).read_bytes())
    monkeypatch.setenv(environment.NATIVE_LIBRARY, str(copy))
    found = library()
    assert found.reason is None
    assert found.handle._name == str(copy)
    assert ess_kernels.show_config().native.endswith(f"from {copy}")


def test_self_test_of_every_level(built, monkeypatch):
    for level in levels():
        assert selftest.first_failure(built.handle, environment.LEVELS[level]) is None

    def note(handle):
        assert handle is built.handle
        assert call.current()[1].level == environment.LEVELS["baseline"]
        return 1.0

    monkeypatch.setattr(selftest, "CHECKS", [selftest.Check("noted", note, 1.0 + 1e-12, tolerance=1e-11)])
    assert selftest.first_failure(built.handle, environment.LEVELS["baseline"]) is None
    monkeypatch.setattr(selftest, "CHECKS", [selftest.Check("noted", note, 2)])
    assert selftest.first_failure(built.handle, environment.LEVELS["baseline"]) == "noted: 1.0, expected 2"


def test_what_the_self_test_knows_is_true():
    T = selftest._recurrence(1).dense()[0]
    assert torch.allclose(selftest._recurrence_with_matrices(1).dense()[0], T, atol=1e-14)
    for i, count, entropy in zip(
        range(1, selftest.LENGTH), selftest._known_counts(), selftest._known_entropies(), strict=True
    ):
        values = torch.linalg.svdvals(T[i:, :i])
        assert count == int((values > selftest.TAU).sum())
        assert ((values - selftest.TAU).abs() > 1e-3).all()
        p = values / values.sum()
        assert abs(entropy - float(torch.exp(-torch.special.xlogy(p, p).sum()))) < 1e-12


@pytest.mark.parametrize("answer", [float("nan"), [1.0, 1.0], torch.ones(3), [1.0, [2.0]]])
def test_self_test_refuses_other_answers(answer):
    check = selftest.Check("check", lambda handle: answer, [1.0, 1.5], tolerance=0.1)
    assert "expected" in selftest._failure(check, None)


def test_threads_setting_wins_over_torch(forget, monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert choice.allowed_threads() == 3
        monkeypatch.setenv(environment.NUM_THREADS, "5")
        assert choice.allowed_threads() == 5
    finally:
        torch.set_num_threads(before)


def test_config_says_level_and_threads(forget, built, monkeypatch):
    with running(threads=1, level="baseline"):
        assert ess_kernels.show_config().native == f"{built.build_info}, baseline, 1 thread"
    with running(threads=7):
        assert ess_kernels.show_config().native == f"{built.build_info}, {built.level(0)}, 7 threads"


def test_levels_of_the_machine(built):
    assert levels()[0] == "baseline"
    assert built.level(0) == levels()[-1]
    assert [built.level(number) for number in (-1, 4, 99)] == [None] * 3


def test_first_use_under_a_bad_budget(forget, built, monkeypatch):
    """The call fails with the name of the setting, and the library is in use as soon as that is put right."""
    monkeypatch.setenv(environment.MEMORY_BUDGET, "plenty")
    for backend in ("auto", "native"):
        with pytest.raises(ValueError, match=rf"{environment.MEMORY_BUDGET}.*'plenty'"):
            ess_kernels.tolerance_ess(torch.ones(4, 4), backend=backend)
    assert built.build_info in ess_kernels.show_config().native
    monkeypatch.setenv(environment.MEMORY_BUDGET, "1GiB")
    assert ess_kernels.tolerance_ess(torch.ones(4, 4), backend="native").tolist() == [1, 1, 1]


def test_self_test_does_not_see_the_programs_settings(built, monkeypatch):
    monkeypatch.setenv(environment.MEMORY_BUDGET, "1")
    with torch.device("meta"):
        for threaded in (False, True):
            assert selftest.first_failure(built.handle, 0, threaded) is None


def test_self_test_uses_threads_only_for_calls_that_will(forget, built, monkeypatch):
    used = []

    def note(handle):
        used.append(call.current()[1].threads)
        return 1

    checks = [selftest.Check("alone", note, 1), selftest.Check("together", note, 1, threads=2)]
    monkeypatch.setattr(selftest, "CHECKS", checks)
    with running(threads=1):
        assert library().reason is None
        assert used == [1, 1]
    for _ in range(2):
        with running(threads=3):
            assert library().reason is None
            assert used == [1, 1, 2]
    monkeypatch.setattr(
        selftest, "CHECKS", [selftest.Check("together", lambda handle: call.current()[1].threads, 1, threads=2)]
    )
    choice._tried_with_threads.cache_clear()
    with running(threads=2):
        assert library().reason == "self-test failed: together: 2, expected 1"
    with running(threads=1):
        assert library().reason is None


def test_library_that_was_cut_off(built, tmp_path):
    """In a process of its own: opening such a file ended it by a signal."""
    data = Path(built.handle._name).read_bytes()
    sizes = [0, 3, 40, 64, 100, 4096, len(data) // 2, len(data) * 9 // 10, len(data) - 4096, len(data) - 1]
    for size in sizes:
        (tmp_path / f"{size}.so").write_bytes(data[:size])
    code = f"""
import pathlib
from ess_kernels.backends.native.choice import open_library
for size in {sizes}:
    print(open_library(pathlib.Path({str(tmp_path)!r}, f"{{size}}.so")).reason, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    for size, reason in zip(sizes, done.stdout.splitlines(), strict=True):
        wanted = "cannot be loaded: " if size < 64 else f"cut off, {size} of {len(data)} bytes are there"
        assert reason.startswith(wanted), reason


def test_library_that_is_put_right(forget, built, monkeypatch, tmp_path):
    path = tmp_path / "mine.so"
    monkeypatch.setenv(environment.NATIVE_LIBRARY, str(path))
    assert library().reason == f"{environment.NATIVE_LIBRARY}={path}: there is no such file"
    data = Path(built.handle._name).read_bytes()
    path.write_bytes(data[:1000])
    assert "cut off, 1000 of" in library().reason
    path.unlink()
    path.write_bytes(data)
    assert library().reason is None
    path.unlink()
    assert library().reason is None  # it has been opened


def test_library_by_a_relative_path(forget, built, monkeypatch, tmp_path):
    folder = tmp_path / "with a space, é"
    folder.mkdir()
    (folder / "good.so").write_bytes(Path(built.handle._name).read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.setenv(environment.NATIVE_LIBRARY, "good.so")
    assert library().reason is None
    assert ess_kernels.show_config().native.endswith(f"from {folder / 'good.so'}")
    monkeypatch.setenv(environment.NATIVE_LIBRARY, str(folder))
    assert f"{folder}: cannot be read: " in library().reason


def test_library_of_a_package_that_is_hidden(monkeypatch, tmp_path):
    """In the root of a checkout Python finds the checkout, and not what was installed from it."""
    for place in ("checkout", "site-packages"):
        (tmp_path / place / "ess_kernels" / "backends").mkdir(parents=True)
    missing = tmp_path / "checkout" / "ess_kernels" / "backends" / "_native.so"
    monkeypatch.setattr(sys, "path", [str(tmp_path / "checkout"), str(tmp_path / "site-packages")])
    assert open_library(missing).reason == file.NOT_BUILT
    (tmp_path / "site-packages" / "ess_kernels" / "backends" / "_native.so").touch()
    reason = open_library(missing).reason
    assert reason.startswith(f"not built in {tmp_path / 'checkout' / 'ess_kernels'}, which Python found first")
    assert f"installed in {tmp_path / 'site-packages' / 'ess_kernels'}" in reason


def test_library_in_an_archive(tmp_path):
    archive = tmp_path / "package.whl"
    archive.touch()
    found = open_library(archive / "ess_kernels" / "backends" / "_native.so")
    assert found.reason == f"not opened, for the package lies in an archive: {archive}"


def test_same_bits_means_bits():
    zero, nan = torch.tensor([0.0, float("nan")]), torch.tensor([0.0, float("nan")])
    assert_same_bits([zero, (zero,)], [nan, (nan,)])
    for other in (torch.tensor([-0.0, float("nan")]), zero.double(), zero[:1]):
        with pytest.raises(AssertionError):
            assert_same_bits(other, zero)


def test_asked_for_by_name_it_raises_with_the_reason(monkeypatch):
    T = torch.ones(4, 4)
    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "1")
    with pytest.raises(RuntimeError, match=r"native.*ESS_KERNELS_DISABLE_NATIVE"):
        ess_kernels.tolerance_ess(T, backend="native")
    assert ess_kernels.tolerance_ess(T).tolist() == [1, 1, 1]


def test_import_does_not_open_the_library():
    code = "from ess_kernels.backends.native import choice; print(choice._opened.cache_info().misses)"
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
        assert selftest.positive_pivots(built.handle, A.tril().tolist()) == expected


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
        selftest.positive_pivots(built.handle, rows)


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
