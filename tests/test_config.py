"""Settings from the environment, and the report on an installation."""

import json

import pytest

import ess_kernels
from ess_kernels import environment


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
    assert environment.memory_budget() == size


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "1GB", "lots", "1 G G", "0.1", "nan", "inf", "١"])
def test_memory_budget_refuses(monkeypatch, text):
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", text)
    with pytest.raises(ValueError) as caught:
        environment.memory_budget()
    assert "ESS_KERNELS_MEMORY_BUDGET" in str(caught.value)
    assert repr(text) in str(caught.value)


def test_memory_budget_default(monkeypatch):
    monkeypatch.delenv("ESS_KERNELS_MEMORY_BUDGET", raising=False)
    assert environment.memory_budget() == 2**30
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "")
    assert environment.memory_budget() == 2**30


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
