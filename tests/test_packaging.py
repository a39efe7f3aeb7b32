"""What an installation promises: a light import, one version, and commands that the README and CI agree on."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import ess_kernels

ROOT = Path(__file__).resolve().parent.parent
VENV = "python3 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e "
COMMANDS = {
    "demo": VENV + '".[cli]" && .venv/bin/ess-kernels demo',
    "test": VENV + '".[test]" && .venv/bin/python -m pytest',
}
# What `import ess_kernels` must leave alone: optional, slow to import, or looking for a GPU.
HEAVY = (
    "triton",
    "transformers",
    "fla",
    "matplotlib",
    "safetensors",
    "pandas",
    "scipy",
    "torch._dynamo",
    "torch._inductor",
)


def installed() -> metadata.Distribution:
    try:
        return metadata.distribution("ess-kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("ess-kernels is run from its source without being installed")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    # torch first: what torch itself imports is not ours to judge.
    code = f"""
import sys, torch
before = set(sys.modules)
import ess_kernels
new = set(sys.modules) - before
print(sorted(m for m in new for heavy in {HEAVY!r} if m == heavy or m.startswith(heavy + ".")))
"""
    assert run_python(code) == "[]"


def test_import_probes_no_device():
    # Any question about a GPU would go through one of these.
    code = """
import torch
def probed(*args, **kwargs):
    raise AssertionError("device probed at import")
for name in ("is_available", "device_count", "current_device", "get_device_properties", "init"):
    setattr(torch.cuda, name, probed)
torch.cuda._lazy_init = probed
import ess_kernels, ess_kernels.cli
print(torch.cuda.is_initialized())
"""
    assert run_python(code) == "False"


def test_import_works_without_the_optional_packages():
    code = """
import sys
for name in ("triton", "transformers", "fla", "matplotlib", "safetensors"):
    sys.modules[name] = None  # importing it raises ImportError
import torch, ess_kernels as ek
print(ek.tolerance_ess(torch.ones(4, 4)).tolist())
"""
    assert run_python(code) == "[1, 1, 1]"


def test_version_is_the_installed_one():
    assert ess_kernels.__version__ == installed().version


def test_public_names_exist():
    assert sorted(ess_kernels.__all__) == list(dict.fromkeys(sorted(ess_kernels.__all__)))
    for name in ess_kernels.__all__:
        assert hasattr(ess_kernels, name)


def test_typed():
    assert resources.files("ess_kernels").joinpath("py.typed").is_file()


def test_requirements_are_torch_and_numpy_only():
    requirements = installed().requires or []
    assert sorted(r for r in requirements if "extra ==" not in r) == ["numpy", "torch>=2.11"]
    assert [r for r in requirements if re.match(r"torch\b", r)] == ["torch>=2.11"]  # in no extra either


def test_torch_is_no_build_requirement():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [r.split(">")[0] for r in build] == ["setuptools"]


def test_console_script():
    done = subprocess.run([sys.executable, "-m", "ess_kernels.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ess_kernels.__version__), done.stderr
    assert ("ess-kernels", "ess_kernels.cli:main") in [(e.name, e.value) for e in installed().entry_points]


def test_constraints_pin_everything_once():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 and "@" not in pin[0] and "+" not in pin[1] for pin in pins)  # no paths, no local builds
    names = [name.lower().replace("_", "-") for name, _ in pins]
    assert len(names) == len(set(names))
    assert {"torch", "triton", "numpy"} <= set(names)


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.skipif(
    shutil.which("bash") is None or not (ROOT / ".ci" / "run").exists(), reason="needs bash and .ci/run"
)
def test_ci_runs_the_readmes_command(name):
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--print-command", name],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == COMMANDS[name]


def test_readme_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "operators.gla" in block)
    assert len(example.splitlines()) == 6
    printed = run_python(
        example + "print(counts.dtype, list(counts.shape), effective_rank.dtype, list(effective_rank.shape))"
    )
    assert printed == "torch.int64 [1, 4, 1023] torch.float64 [1, 4, 1023]"


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a checkout")
def test_source_distribution_holds_the_checkout(tmp_path):
    """All of it: the README and CONTRIBUTING.md refer to bench/, docs/ and .ci/."""
    pytest.importorskip("setuptools")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\0")[:-1]
    for name in filter(lambda name: (ROOT / name).exists(), names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    code = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert [name for name in names if (ROOT / name).exists() and name not in inside] == []


def test_readme_links_to_files_that_exist():
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []
