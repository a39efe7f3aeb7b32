"""The programs for a GPU, without one: `gpu.py` at toy sizes in the interpreter, and the cost model on one kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
ROWS = ["gla-128-counts", "attention-2048-counts", "randomized", "spectra-float32"]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # the model compiles, whatever other tests have asked of Triton; gpu.py asks for the interpreter itself
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_everything_at_toy_sizes(tmp_path):
    done = run("gpu.py", "--toy", "--rows", ",".join(ROWS), "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "toy.json").read_text())
    assert report["toy"] and report["environment"]["card"] and report["date"] and report["commit"]
    assert not report["problems"]
    assert len(report["checks"]) > 20 and all(check["ok"] for check in report["checks"])
    assert {"copy", "float64 product 4096"} <= {found["name"] for found in report["ceilings"]}
    assert set(report["rows"]) == {"ceilings", *ROWS}
    for key in ROWS:
        row = report["rows"][key]
        assert row["ms"] > 0 and "failures" not in row, (key, row)
    first, randomized = report["rows"]["gla-128-counts"], report["rows"]["randomized"]
    assert {"parts", "scan", "root", "products", "boundary", "split16", "leaf8"} <= set(first["stages"])
    assert first["checked"]["wrong"] == 0 and first["torch_engine"]["ratio"] > 0
    assert randomized["per_product_time"] > 0 and randomized["checked"]["wrong"] == 0
    assert report["rows"]["spectra-float32"]["checked"]["error"] < 1e-5
    table = (tmp_path / "toy.md").read_text()
    assert "Toy sizes" in table and all(part in table for part in ("## Goals", "## Ceilings", "## Correctness"))
    assert table.count("0 wrong") == 3


def test_goals_are_judged(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import gpu_cases
    import gpu_report

    limits = (gpu_cases.Goal("ms", 10.0), gpu_cases.Goal("peak_gb", 2.0), gpu_cases.Goal("times", 3.0, at_least=True))
    monkeypatch.setattr(gpu_cases, "GOALS", {gpu_cases.FIRST: limits})
    row = gpu_cases.row(gpu_cases.FIRST)
    assert gpu_report.verdict(row, {"ms": 9.0, "peak_gb": 2.5, "times": 4.0}, False) == "met, missed, met"
    assert gpu_report.verdict(row, {"ms": 11.0}, False) == "missed, not measured, not measured"
    assert gpu_report.verdict(row, {"ms": 11.0}, True) == gpu_report.DASH
    assert gpu_report.verdict(gpu_cases.ROWS[-1], {"ms": 11.0}, False) == gpu_report.DASH


def test_without_a_gpu_it_says_what_else_there_is():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = run("gpu.py")
    assert done.returncode == 2
    assert "gpu_model.py" in done.stderr and "--toy" in done.stderr


MODEL = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu_code, gpu_work
from ess_kernels.backends.triton import scans
count = gpu_code.scan(32, 16, 32, 10)
twice = gpu_code.scan(32, 16, 32, 20)
# the block's products: 32 x 32 x 16 twice that many operations, in two warps
print(twice.flops - count.flops, count.issued, count.matrix)
work = gpu_work.Work()
work.launch("scan", count, 1000, scans.launch(32, 1)[1], 1e9)
found = work.estimate(1e12)
print(found["stages"]["scan"]["bound"], found["ms"])
"""


def test_the_cost_model_counts_a_kernel():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", MODEL, str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    flops, issued, matrix = map(float, first.split())
    # ten blocks more: a product 32 x 16 x 32 and about three operations an entry, half of it in each of two warps
    assert 10 * 32 * 16 * 32 <= flops <= 10 * (32 * 16 * 32 + 4 * 32 * 32)
    assert issued > 100 and matrix == 10 * (32 * 16 * 32) / 4096
    bound, ms = second.split()
    assert bound == "memory" and float(ms) == pytest.approx(1.0)


def test_loops_are_found_in_machine_code(monkeypatch):
    code = """
        /*0000*/ MOV R1, c[0x0][0x28] ;
        /*0010*/ DADD R2, R2, R4 ;
        /*0020*/ DMMA.16816 R4, R4, R4, R4 ;
        /*0030*/ @P0 BRA 0x20 ;
        /*0040*/ @!P1 BRA 0x10 ;
        /*0050*/ EXIT ;
        /*0060*/ BRA 0x60 ;
    """
    monkeypatch.syspath_prepend(str(HERE))
    import gpu_code

    root = gpu_code.loops_of(code)
    count = gpu_code.executed(root, [(3, [(12, [])])], "test")
    assert (count.issued, count.matrix, count.vector) == (3 + 3 * 2 + 12 * 2, 12, 3)
    with pytest.raises(LookupError, match="1 loops where 0"):
        gpu_code.executed(root, [], "test")


# Launches are recorded and compiled in one process each; in a third one nothing may be left to compile. The card is one
# that is not there, for which the emulator's driver stands in.
SAME_KERNELS = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu_cases, gpu_checks, gpu_compile, gpu_rehearse
from gpu_measure import Mode
assert sorted(sum(gpu_cases.CHECK_LANES, ())) == sorted(gpu_checks.GROUPS)
assert set(sum(gpu_cases.TOY_CHECK_LANES, ())) <= set(gpu_checks.GROUPS)
gpu_compile.pretend(90)
from gpu_tools.emulator.driver import Machine
launches, late = [], []
Machine.launch = lambda *_: launches.append(1)
gpu_compile.tell_compiled(lambda **line: late.append(line))
gpu_checks.TOY, gpu_checks.values_of = True, gpu_rehearse.ones
with gpu_rehearse.Unwritten():
    gpu_rehearse.rehearse_row("spectra-float32", Mode(toy=True, warm=True))
    if len(sys.argv) > 2:
        gpu_rehearse.rehearse_checks(sys.argv[2])
print(len(launches), len(late))
"""


def test_what_is_compiled_ahead_is_what_launches_look_for(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")

    def python(*arguments: str, given: str = "") -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    rehearsed, compiled = tmp_path / "rehearsed", tmp_path / "compiled"
    options = ["--toy", "--capability", "90", "--rows", "spectra-float32", "--groups", "shifts"]
    python(str(HERE / "gpu_rehearse.py"), "--output", str(rehearsed), *options)
    lines = [json.loads(line) for line in rehearsed.read_text().splitlines()]
    assert [line["key"] for line in lines if line["kind"] == "end" and not line["problem"]] == [
        "shifts",
        "spectra-float32",
    ]
    kernels = [line for line in lines if line["kind"] == "kernel"]
    assert {kernel["name"].split()[0] for kernel in kernels} == {
        "weights_kernel",
        "bidiagonalise",
        "values_by_bisection",
    }
    # one that cannot be compiled does not stop the rest
    broken = kernels[0] | {"data": kernels[0]["data"].replace('"*fp64"', '"*fp65"')}
    given = "".join(json.dumps(kernel) + "\n" for kernel in [broken, *kernels])
    python(str(HERE / "gpu_compile.py"), "--output", str(compiled), given=given)
    failures = [json.loads(line)["failure"] for line in compiled.read_text().splitlines()]
    assert failures[0] and failures[1:] == [None] * len(kernels)
    launches, late = map(int, python("-c", SAME_KERNELS, str(HERE), "shifts").split())
    assert launches == len(kernels) and late == 0
    # the question can be answered with yes: here the cache is empty
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "empty")
    launches, late = map(int, python("-c", SAME_KERNELS, str(HERE)).split())
    assert launches == late == 2
