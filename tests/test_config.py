"""Settings from the environment, and the report on an installation."""

import json
import threading

import pytest

import ess_kernels
from ess_kernels import environment, memory


@pytest.mark.parametrize(
    "text, size",
    [
        ("1", 1),
        ("4096", 4096),
        ("4096b", 4096),
        ("2K", 2048),
        ("2kib", 2048),
        ("512M", 2**29),
        ("3 MiB", 3 * 2**20),
        (" 1.5GiB ", 3 * 2**29),
        ("8g", 2**33),
    ],
)
def test_memory_budget(monkeypatch, text, size):
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", text)
    assert environment.default_memory_budget() == size


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "1GB", "lots", "1 G G", "0.1", "nan", "inf", "١"])
def test_memory_budget_refuses(monkeypatch, text):
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", text)
    with pytest.raises(ValueError) as caught:
        environment.default_memory_budget()
    assert "ESS_KERNELS_MEMORY_BUDGET" in str(caught.value)
    assert repr(text) in str(caught.value)


def test_memory_budget_of_a_context(monkeypatch):
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "1M")
    with ess_kernels.memory_budget("2 GiB"):
        assert memory.budget_in_bytes() == 2**31 == ess_kernels.show_config().memory_budget
        with ess_kernels.memory_budget(4096):
            assert memory.budget_in_bytes() == 4096
            # other threads have their own
            found = []
            thread = threading.Thread(target=lambda: found.append(memory.budget_in_bytes()))
            thread.start()
            thread.join()
            assert found == [2**20]
        with pytest.raises(ZeroDivisionError), ess_kernels.memory_budget(1):
            raise ZeroDivisionError
        assert memory.budget_in_bytes() == 2**31
    assert memory.budget_in_bytes() == 2**20


@pytest.mark.parametrize("size, error", [(True, TypeError), (1.5, TypeError), (None, TypeError), (0, ValueError)])
def test_memory_budget_of_a_context_refuses(size, error):
    with pytest.raises(error, match="size: expected"), ess_kernels.memory_budget(size):
        pass


@pytest.mark.parametrize("size", ["0", "1GB", "", "-5"])
def test_memory_budget_of_a_context_refuses_text(size):
    with pytest.raises(ValueError, match="size: expected"), ess_kernels.memory_budget(size):
        pass


def test_memory_budget_default(monkeypatch):
    monkeypatch.delenv("ESS_KERNELS_MEMORY_BUDGET", raising=False)
    assert environment.default_memory_budget() == 2**30
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "")
    assert environment.default_memory_budget() == 2**30


@pytest.mark.parametrize(
    "text, value", [("1", True), ("yes", True), ("TRUE", True), ("", False), ("0", False), ("off", False)]
)
def test_native_switch(monkeypatch, text, value):
    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", text)
    assert environment.native_disabled() is value


def test_native_switch_refuses(monkeypatch):
    monkeypatch.setenv("ESS_KERNELS_DISABLE_NATIVE", "maybe")
    with pytest.raises(ValueError, match=r"ESS_KERNELS_DISABLE_NATIVE.*'maybe'"):
        environment.native_disabled()


@pytest.mark.parametrize("text, value", [("", None), (" ", None), ("1", 1), (" 16 ", 16), ("1024", 1024)])
def test_num_threads(monkeypatch, text, value):
    monkeypatch.setenv("ESS_KERNELS_NUM_THREADS", text)
    assert environment.num_threads() == value


@pytest.mark.parametrize("text", ["0", "-1", "1025", "2.0", "two", "1e1", "٢", "0x2", "1 2"])
def test_num_threads_refuses(monkeypatch, text):
    monkeypatch.setenv("ESS_KERNELS_NUM_THREADS", text)
    with pytest.raises(ValueError, match=r"ESS_KERNELS_NUM_THREADS: expected a number in 1..1024"):
        environment.num_threads()


@pytest.mark.parametrize("text, value", [("", 0), (" ", 0), ("best", 0), ("baseline", 1), ("AVX2", 2), (" avx512 ", 3)])
def test_cpu_level(monkeypatch, text, value):
    monkeypatch.setenv("ESS_KERNELS_CPU_LEVEL", text)
    assert environment.cpu_level() == value


@pytest.mark.parametrize("text", ["sse2", "avx", "avx-512", "0", "best,avx2"])
def test_cpu_level_refuses(monkeypatch, text):
    monkeypatch.setenv("ESS_KERNELS_CPU_LEVEL", text)
    with pytest.raises(ValueError, match=rf"ESS_KERNELS_CPU_LEVEL.*{text!r}"):
        environment.cpu_level()


def test_native_library_path(monkeypatch, tmp_path):
    monkeypatch.setenv("ESS_KERNELS_NATIVE_LIBRARY", " ")
    assert environment.native_library() is None
    monkeypatch.setenv("ESS_KERNELS_NATIVE_LIBRARY", str(tmp_path / "a library.so"))
    assert environment.native_library() == tmp_path / "a library.so"


def test_every_problem_is_listed(monkeypatch):
    for name in environment.problems():
        pytest.fail(f"the environment of the tests has a bad setting: {name}")
    names = ("MEMORY_BUDGET", "DISABLE_NATIVE", "NUM_THREADS", "CPU_LEVEL")
    for name in names:
        monkeypatch.setenv(f"ESS_KERNELS_{name}", "?")
    assert [name in problem for name, problem in zip(names, environment.problems(), strict=True)] == [True] * 4


def test_show_config_says_what_is_there(monkeypatch):
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "512M")
    config = ess_kernels.show_config()
    names = [backend.name for backend in config.backends]
    assert names == ["reference", "torch", "native", "triton"]
    assert all(backend.reason for backend in config.backends)
    assert all(backend.usable for backend in config.backends if backend.name in ("reference", "torch"))
    assert config.memory_budget == 2**29
    report = str(config)
    assert "512 MiB" in report
    assert ess_kernels.__version__ in report
    for name in names:
        assert name in report
    json.dumps(config.to_dict())


def test_show_config_reports_a_bad_setting_instead_of_failing(monkeypatch):
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "plenty")
    config = ess_kernels.show_config()
    assert len(config.problems) == 1
    assert "'plenty'" in str(config)
