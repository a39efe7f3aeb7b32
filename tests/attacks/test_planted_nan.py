"""Compiles `lost_nan.cpp` for every width of vectors that this machine has, and runs it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
TARGETS = {16: [], 32: ["-mavx2", "-mfma"], 64: ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]}


def has(flags: list[str]) -> bool:
    try:
        known = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return not flags
    return all(flag.removeprefix("-m") in known for flag in flags)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("bytes_", TARGETS)
def test_nothing_forgets_nan(bytes_, tmp_path):
    if not has(TARGETS[bytes_]):
        pytest.skip("this machine has no such vectors")
    flags = ["-std=c++17", "-O1", "-fopenmp", "-ffp-contract=fast", f"-DESS_VECTOR_BYTES={bytes_}", *TARGETS[bytes_]]
    sources = [ROOT / "tests/attacks/lost_nan.cpp", ROOT / "csrc/base/threads.cpp"]
    program = tmp_path / "planted"
    subprocess.run([COMPILER, *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
