"""The programs for a GPU, without one: `gpu.py` at toy sizes in the interpreter, and the cost model on one kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
ROWS = ["gla-128-counts", "kda-128-counts", "attention-2048-counts", "randomized", "spectra-float32"]


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
    groups = {"parts and scans", "rank-one parts", "poison", "staircases", "dense kernels", "shifts", "ceilings", *ROWS}
    assert {key: group["state"] for key, group in report["groups"].items()} == dict.fromkeys(groups, "passed")
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
    assert table.count("0 wrong") == 4


def test_goals_are_judged(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    from gpu_runs import cases, report

    limits = (cases.Goal("ms", 10.0), cases.Goal("peak_gb", 2.0), cases.Goal("times", 3.0, at_least=True))
    monkeypatch.setattr(cases, "GOALS", {cases.FIRST: limits})
    row = cases.row(cases.FIRST)
    assert report.verdict(row, {"ms": 9.0, "peak_gb": 2.5, "times": 4.0}, False) == "met, missed, met"
    assert report.verdict(row, {"ms": 11.0}, False) == "missed, not measured, not measured"
    assert report.verdict(row, {"ms": 11.0}, True) == report.DASH
    assert report.verdict(cases.ROWS[-1], {"ms": 11.0}, False) == report.DASH


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
from gpu_runs import code, work
from ess_kernels.backends.triton.recurrence import scans
count = code.scan(32, 16, 32, 10)
twice = code.scan(32, 16, 32, 20)
# the block's products: 32 x 32 x 16 twice that many operations, in two warps
print(twice.flops - count.flops, count.issued, count.matrix)
counted = work.Work()
counted.launch("scan", count, 1000, scans.launch(32, 1)[1], 1e9)
found = counted.estimate(1e12)
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
    from gpu_runs import code as machine_code

    root = machine_code.loops_of(code)
    count = machine_code.executed(root, [(3, [(12, [])])], "test")
    assert (count.issued, count.matrix, count.vector) == (3 + 3 * 2 + 12 * 2, 12, 3)
    with pytest.raises(LookupError, match="1 loops where 0"):
        machine_code.executed(root, [], "test")


# Launches are recorded and compiled in one process each; in a third one nothing may be left to compile. The card is one
# that is not there.
SAME_KERNELS = """
import sys
sys.path.insert(0, sys.argv[1])
from gpu_runs import cases, checks, compiling, rehearse
from gpu_runs.measure import Mode
assert sorted(sum(cases.CHECK_LANES, ())) == sorted(checks.GROUPS)
assert set(sum(cases.TOY_CHECK_LANES, ())) <= set(checks.GROUPS)
compiling.pretend(90)
launches, late = [], []
compiling.Absent.launch = lambda *_: launches.append(1)
compiling.tell_compiled(lambda **line: late.append(line))
checks.TOY, checks.values_of = True, rehearse.ones
with rehearse.Unwritten():
    rehearse.rehearse_row("spectra-float32", Mode(toy=True, warm=True))
    if len(sys.argv) > 2:
        rehearse.rehearse_checks(sys.argv[2])
print(len(launches), len(late))
"""


def test_what_is_compiled_ahead_is_what_launches_look_for(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])

    def python(*arguments: str, given: str = "") -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    rehearsed, compiled = tmp_path / "rehearsed", tmp_path / "compiled"
    options = ["--toy", "--capability", "90", "--rows", "spectra-float32", "--groups", "shifts"]
    python("-m", "gpu_runs.rehearse", "--output", str(rehearsed), *options)
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
    python("-m", "gpu_runs.compiling", "--output", str(compiled), given=given)
    failures = [json.loads(line)["failure"] for line in compiled.read_text().splitlines()]
    assert failures[0] and failures[1:] == [None] * len(kernels)
    launches, late = map(int, python("-c", SAME_KERNELS, str(HERE), "shifts").split())
    assert launches == len(kernels) and late == 0
    # the question can be answered with yes: here the cache is empty
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "empty")
    launches, late = map(int, python("-c", SAME_KERNELS, str(HERE)).split())
    assert launches == late == 2


# --- groups, processes and time: with processes that only pretend -----------------------------------------------------

# for a group called `crash` it dies, for `hang` it is silent, `quit` makes it end before it has begun, for `stop` it
# says that no time is left, `slow` takes long, and the checks of `wrong` fail
WORKER = """
import json, os, sys, time
output, keys = sys.argv[2], sys.argv[-1].split(",")
with open(output, "a") as out:
    def say(**line):
        print(json.dumps(line), file=out, flush=True)
    for key in keys:
        if key == "quit":
            sys.exit("no such thing")
        if key == "stop":
            say(kind="stopped")
            break
        say(kind="start", key=key)
        if key == "crash":
            print("illegal memory access", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 9)
        time.sleep({"hang": 60, "slow": 60, "short": 0.3}.get(key, 0))
        say(kind="check", group=key, name="one", error=float(key == "wrong"), allowed=0.0, ok=key != "wrong")
        say(kind="end", key=key, process=os.getpid(), problem=None)
"""

# takes kernels as compiling.py does
COMPILER = """
import json, os, sys, time
with open(sys.argv[2], "a") as out:
    for line in sys.stdin:
        name = json.loads(line)["name"]
        if name == "crash":
            sys.exit("Segmentation fault")
        time.sleep(60 * (name == "slow"))
        failure = "no such type" if name == "bad" else None
        print(json.dumps({"kind": "compiled", "failure": failure, "seconds": 1.0}), file=out, flush=True)
"""


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The module that leads, and files of the processes above in `tmp_path`."""
    monkeypatch.syspath_prepend(str(HERE))
    from gpu_runs import run as gpu

    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "compiler.py").write_text(COMPILER)
    return gpu


def run_lanes(gpu, folder, lanes, seconds=30.0, workers=4, patience=30.0):
    """What became of every group, the processes in which they ended, and with which keys each process was started."""
    states, processes, started = {}, {}, []

    def start(keys):
        started.append(list(keys))
        return gpu.Job(folder, folder / "worker.py", ",".join(keys))

    def hear(line):
        if line["kind"] == "end":
            processes[line["key"]] = line["process"]

    def settle(key, state, why):
        assert key not in states
        states[key] = (state, why)

    parts = [gpu.Lanes(lanes, start, hear, settle, workers, patience)]
    gpu.work_on(parts, time.monotonic() + seconds)
    assert not parts[0].busy
    return states, processes, started


def test_groups_of_a_lane_share_a_process_and_keep_their_order(gpu, tmp_path):
    states, processes, started = run_lanes(gpu, tmp_path, [["a", "b", "c"], ["d"], ["e"]], workers=1)
    assert list(states.items()) == [(key, (gpu.DONE, "")) for key in "abcde"]
    assert started == [["a", "b", "c"], ["d"], ["e"]]
    assert processes["a"] == processes["b"] == processes["c"] and len(set(processes.values())) == 3


@pytest.mark.parametrize(
    ("culprit", "why"),
    [("crash", "status -9: illegal memory access"), ("hang", "nothing was heard for 5 s")],
)
def test_a_group_that_breaks_its_process_takes_no_other_with_it(gpu, tmp_path, culprit, why):
    patience = 5.0 if culprit == "hang" else 30.0
    states, processes, started = run_lanes(gpu, tmp_path, [["a", culprit, "b", "c"]], patience=patience)
    assert states[culprit][0] == gpu.FAILED and why in states[culprit][1]
    assert all(states[key][0] == gpu.DONE for key in "abc")
    assert started == [["a", culprit, "b", "c"], ["b", "c"]]
    assert processes["a"] != processes["b"] == processes["c"]


def test_a_process_that_never_begins_is_not_started_for_ever(gpu, tmp_path):
    states, _, started = run_lanes(gpu, tmp_path, [["quit", "a"]])
    assert states["quit"][0] == gpu.FAILED and "no such thing" in states["quit"][1]
    assert states["a"][0] == gpu.DONE and started == [["quit", "a"], ["a"]]


def test_what_there_is_no_time_for_is_not_reached(gpu, tmp_path):
    lanes = [["a", "slow", "b"], ["c"]]
    states, _, started = run_lanes(gpu, tmp_path, lanes, seconds=5.0, workers=1)
    assert [states[key][0] for key in ("a", "slow", "b", "c")] == [gpu.DONE, *[gpu.NOT_REACHED] * 3]
    assert states["slow"][1] == "the time was up before it had ended" and states["c"][1] == "the time was up"
    assert started == lanes[:1]
    states, _, started = run_lanes(gpu, tmp_path, [["a", "stop", "b"]])
    assert [states[key][0] for key in ("a", "stop", "b")] == [gpu.DONE, gpu.NOT_REACHED, gpu.NOT_REACHED]
    assert started == [["a", "stop", "b"]]


def test_kernels_that_do_not_compile_stop_no_other(gpu, tmp_path):
    def start():
        return gpu.Job(tmp_path, tmp_path / "compiler.py", listens=True)

    compilers = gpu.Compilers(start, 2)
    for name in ["a", "bad", "crash", "a", "b", "c", "slow"]:
        compilers.add({"name": name, "data": name})
    gpu.work_on([compilers], time.monotonic() + 5.0)
    found = compilers.found()
    assert found["kernels"] == 3 and {name for name, _ in found["slowest"]} == {"a", "b", "c"}
    failures = dict(found["failures"])
    assert failures["bad"] == "no such type" and "Segmentation fault" in failures["crash"] and len(failures) == 2
    assert found["left"] == ["slow"]


def pretended(gpu, monkeypatch, folder, keys, seconds=20.0, kernels=(), lanes=(("a", "b"),)):
    """The whole program on a machine with a GPU, as far as it can tell: its exit status and its report."""
    worker, compiler = folder / "worker.py", folder / "compiler.py"

    def rehearsal(run, keys):
        said = [{"kind": "kernel", "name": name, "data": name} for name in kernels]
        said += [{"kind": "environment", "found": {"card": "A card"}}]
        lines = "".join(json.dumps(line) + "\n" for line in said)
        (folder / "rehearsal.py").write_text(f"import sys\nopen(sys.argv[2], 'a').write({lines!r})\n" + WORKER)
        return gpu.Job(run.folder, folder / "rehearsal.py", ",".join(keys))

    monkeypatch.setattr(gpu, "CHECK_LANES", lanes)
    monkeypatch.setattr(gpu, "chosen", lambda words: list(keys))
    monkeypatch.setattr(gpu, "cuda_here", lambda: True)
    monkeypatch.setattr(gpu, "LAST", 0.0)
    monkeypatch.setattr(gpu, "WRITING", 0.0)
    monkeypatch.setattr(gpu.Run, "rehearsal", rehearsal)
    monkeypatch.setattr(gpu.Run, "compiler", lambda run: gpu.Job(run.folder, compiler, listens=True))
    for name in ("checks", "measurements"):
        monkeypatch.setattr(gpu.Run, name, lambda run, keys: gpu.Job(run.folder, worker, ",".join(keys)))
    command = ["gpu.py", "--budget-seconds", str(seconds), "--output", str(folder / "out"), "--workers", "2"]
    monkeypatch.setattr(sys, "argv", command)
    status = gpu.main()
    assert {path.name for path in (folder / "out").iterdir()} == {"a-card.json", "a-card.md"}
    report = json.loads((folder / "out" / "a-card.json").read_text())
    return status, report, (folder / "out" / "a-card.md").read_text()


def states_of(report):
    return {key: group["state"] for key, group in report["groups"].items()}


def test_exit_status_of_a_run_in_which_all_is_well(gpu, monkeypatch, tmp_path):
    status, report, text = pretended(gpu, monkeypatch, tmp_path, ["x"], kernels=["k1", "k2"])
    assert status == 0
    assert states_of(report) == dict.fromkeys(["a", "b", "ceilings", "x"], "passed")
    assert report["compiling"]["kernels"] == 2 and "2 kernels in" in text
    assert "4 passed, 0 failed, 0 not reached." in text


@pytest.mark.parametrize("culprit", ["crash", "wrong"])
def test_exit_status_of_a_run_in_which_a_group_fails(gpu, monkeypatch, tmp_path, culprit):
    status, report, text = pretended(gpu, monkeypatch, tmp_path, ["x"], lanes=(("a", culprit, "b"),))
    assert status == 1
    expected = dict.fromkeys(["a", "b", "ceilings", "x"], "passed") | {culprit: "failed"}
    assert states_of(report) == expected
    assert "4 passed, 1 failed, 0 not reached." in text and f"- failed: {culprit}: " in text


def test_exit_status_of_a_run_in_which_a_kernel_does_not_compile(gpu, monkeypatch, tmp_path):
    status, report, text = pretended(gpu, monkeypatch, tmp_path, ["x"], kernels=["bad", "k1"])
    assert status == 1
    assert set(states_of(report).values()) == {"passed"} and report["compiling"]["kernels"] == 1
    assert "- failed: bad: no such type" in text


def test_exit_status_of_a_run_that_does_not_reach_everything(gpu, monkeypatch, tmp_path):
    # rehearsals, checks and rows are all cut off, and what a phase leaves is known
    lanes = (("a", "slow", "b"),)
    status, report, text = pretended(gpu, monkeypatch, tmp_path, ["x"], seconds=16.0, kernels=["slow"], lanes=lanes)
    assert status == 0
    expected = {"a": "passed", "slow": "not reached", "b": "not reached", "ceilings": "passed", "x": "passed"}
    assert states_of(report) == expected
    assert report["compiling"]["left"] == ["slow"] and "slow" in report["compiling"]["cut_short"]
    assert "3 passed, 0 failed, 2 not reached." in text
    assert "- not reached: b: the time was up" in text and not report["problems"]
