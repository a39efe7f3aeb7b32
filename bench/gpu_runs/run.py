"""Everything that must be known on a GPU, in one command and under ten minutes: correctness, ceilings, goals, peers.

    PYTHONPATH=$PWD python3 bench/gpu.py --budget-seconds 540 --output DIR [--rows WORDS] [--toy [--capability 90]]

The package need not be installed. Three phases, in processes of their own:

1. Compiling: a rehearsal of all that follows, without any kernel, tells which kernels it needs (rehearse.py), and
   as many processes as there are cores compile them meanwhile (compiling.py). A kernel that does not compile stops
   nothing else.
2. Checks, in lanes side by side: groups of one lane launch the same kernels and share a process.
3. Ceilings and rows, one after the other in one process, alone on the machine.

A phase ends when its share of the time is over, and what it has not used goes to the next one. A group of checks, or a
row, that kills its process or goes silent has failed; those behind it go on in a fresh process.

Writes `<card>.json` and `<card>.md`, again after every row, so that a crash or the end of the time loses nothing. They
say of every group and row whether it passed, failed or was not reached in the time. The exit status is 1 where one
failed or a kernel did not compile, and 0 otherwise: also where goals are missed, or something was not reached.

Without a GPU: `--toy` runs it at toy sizes in Triton's interpreter, which compiles nothing (with `--capability 90` the
first phase compiles for such a card all the same); `python bench/gpu_model.py` estimates times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .ahead import Compilers
from .cases import CHECK_LANES, ROWS, TOY_CHECK_LANES, by_family, chosen
from .jobs import BENCH, DONE, FAILED, NOT_REACHED, Job, Lanes, Line, work_on
from .report import PASSED, markdown, slug

# of the time, how much is over when a phase ends at the latest
COMPILED_BY, CHECKED_BY = 0.25, 0.55
# seconds before the end: from when on no row is begun, and when the one in work is given up
LAST, WRITING = 10.0, 3.0
# a process that has said nothing for so many seconds is taken for dead
PATIENCE = 90.0
MOST_WORKERS = 14
# of entropies and singular values in the rows' own checks
WORST_ERROR = 1e-4
# of a process in which kernels are no interpreted ones
COMPILED = {"TRITON_INTERPRET": "0"}
Report = dict[str, Any]


class Run:
    """One run of everything: what is known so far, and where it is written.

    Attributes:
        lanes: groups of checks, those of a lane in one process.
        keys: what is measured.
    """

    def __init__(self, arguments: argparse.Namespace, keys: list[str], folder: Path):
        self.toy, self.output, self.folder = arguments.toy, arguments.output, folder
        self.workers, self.capability = arguments.workers, arguments.capability
        self.lanes = [] if arguments.no_checks else [list(lane) for lane in lanes_of_checks(self.toy)]
        self.keys = ["ceilings", *keys]
        self.mode = ["--toy"] if self.toy else []
        self.begin, self.budget = time.monotonic(), arguments.budget_seconds
        self.report: Report = {
            "toy": self.toy,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "driver": driver(),
            "command": " ".join(sys.argv),
            "environment": {},
            "compiling": {},
            "late": [],
            "groups": {},
            "checks": [],
            "ceilings": [],
            "rows": {},
            "problems": [],
            "estimates": estimates(),
        }

    def all_groups(self) -> list[str]:
        return [*(group for lane in self.lanes for group in lane), *self.keys]

    def until(self, share: float) -> float:
        """When this share of the time is over, by `time.monotonic`. Toys have all the time they need."""
        return float("inf") if self.toy else self.begin + share * self.budget

    def left(self) -> float:
        return self.begin + self.budget - time.monotonic()

    def write(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        card = self.report["environment"].get("card", "unknown card")
        path = self.output / slug("toy" if self.toy else card)
        path.with_suffix(".json").write_text(json.dumps(self.report, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(self.report))

    def problem(self, text: str) -> None:
        print(f"!! {text}", flush=True)
        self.report["problems"].append(text)

    # --- phases -------------------------------------------------------------------------------------------------------

    def everything(self) -> None:
        try:
            # the interpreter compiles nothing
            if not self.toy or self.capability:
                self.compile()
            self.check()
            self.measure()
        finally:
            for key in self.all_groups():
                self.report["groups"].setdefault(key, {"state": NOT_REACHED, "why": "the run was broken off"})
            self.report["seconds"] = self.budget - self.left()
            self.write()

    def compile(self) -> None:
        """All kernels that a rehearsal finds."""
        begin = time.monotonic()
        compilers = Compilers(self.compiler, self.workers)
        short: dict[str, str] = {}

        def hear(line: Line) -> None:
            if line["kind"] == "kernel":
                compilers.add(line)
            elif line["kind"] == "environment":
                self.hear(line)
            elif line["kind"] == "end" and line["problem"]:
                short[line["key"]] = line["problem"]

        def settle(key: str, state: str, why: str) -> None:
            if state != DONE:
                short[key] = why

        # rows first: their kernels are the largest
        lanes = [*by_family(self.keys), *self.lanes]
        rehearsal = self.lanes_of(lanes, self.rehearsal, hear, settle, max(1, self.workers // 2))
        work_on([rehearsal, compilers], self.until(COMPILED_BY))
        found = compilers.found() | {"seconds": time.monotonic() - begin, "cut_short": short}
        self.report["compiling"] = found
        print(f"{found['kernels']} kernels compiled, {self.left():.0f} s left", flush=True)
        for name, why in found["failures"]:
            self.problem(f"not compiled: {name}: {why}")
        self.write()

    def check(self) -> None:
        lanes = self.lanes_of(self.lanes, self.checks, self.hear, self.settle, self.workers)
        work_on([lanes], self.until(CHECKED_BY))
        self.write()

    def measure(self) -> None:
        lanes = self.lanes_of([self.keys], self.measurements, self.hear, self.settle, 1)
        work_on([lanes], self.until(1.0) - WRITING)
        self.write()

    # --- processes ----------------------------------------------------------------------------------------------------

    def lanes_of(self, lanes: Iterable[Iterable[str]], start: Any, hear: Any, settle: Any, workers: int) -> Lanes:
        return Lanes(lanes, start, hear, settle, workers, float("inf") if self.toy else PATIENCE)

    def compiler(self) -> Job:
        return Job(self.folder, "compiling", listens=True, settings=COMPILED)

    def rehearsal(self, keys: list[str]) -> Job:
        rows = [key for key in keys if key in self.keys]
        groups = [key for key in keys if key not in self.keys]
        card = ["--capability", str(self.capability)] if self.capability else []
        arguments = ["--groups", ",".join(groups), "--rows", ",".join(rows), *self.mode, *card]
        return Job(self.folder, "rehearse", *arguments, settings=COMPILED)

    def checks(self, keys: list[str]) -> Job:
        return Job(self.folder, "checks", "--groups", ",".join(keys), *self.mode)

    def measurements(self, keys: list[str]) -> Job:
        seconds = self.until(1.0) - LAST - time.monotonic()
        arguments = ["--rows", ",".join(keys), "--seconds", f"{seconds:.0f}", *self.mode]
        return Job(self.folder, "measure", *arguments)

    # --- what they say ------------------------------------------------------------------------------------------------

    def hear(self, line: Line) -> None:
        """A line of checks or of measurements."""
        if line["kind"] == "check":
            self.report["checks"].append(line)
        elif line["kind"] == "environment":
            self.report["environment"] = line["found"]
        elif line["kind"] == "ceiling":
            self.report["ceilings"].append(line["found"])
        elif line["kind"] == "late":
            self.report["late"].append([line["name"], line["seconds"]])
        elif line["kind"] == "end" and "found" in line:
            found = self.report["rows"][line["key"]] = line["found"] | {"seconds": line["seconds"]}
            for what, why in found.get("failures", {}).items():
                print(f"{line['key']}: {what}: {why}", flush=True)

    def settle(self, key: str, state: str, why: str) -> None:
        """What became of a group of checks or of a row."""
        wrong = wrong_checks(key, self.report["checks"]) or wrong_row(self.report["rows"].get(key, {}))
        if wrong and state != FAILED:
            state, why = FAILED, wrong
        elif state == DONE:
            state = PASSED
        self.report["groups"][key] = {"state": state, "why": why}
        print(f"{key}: {state}, {self.left():.0f} s left", flush=True)
        if state == FAILED:
            self.problem(f"{key}: {why}")
        self.write()

    def failed(self) -> bool:
        states = [group["state"] for group in self.report["groups"].values()]
        return FAILED in states or bool(self.report["compiling"].get("failures"))


def wrong_checks(group: str, checks: Iterable[Report]) -> str:
    """What is wrong in a group of checks, or nothing."""
    bad = [check for check in checks if check["group"] == group and not check["ok"]]
    return "; ".join(f"{check['name']}: {check.get('problem', check.get('error'))}" for check in bad)


def wrong_row(found: Report) -> str:
    """What is wrong in a row: it could not be measured, or its answers are wrong. Nothing else is a failure."""
    failures, checked = found.get("failures", {}), found.get("checked", {})
    wrong = [why for what, why in failures.items() if what in ("measured", "whole row")]
    if checked.get("wrong", 0):
        wrong.append(f"{checked['wrong']} wrong answers")
    if checked.get("error", 0.0) > WORST_ERROR:
        wrong.append(f"answers are off by {checked['error']:.1e}, allowed {WORST_ERROR:.0e}")
    return "; ".join(wrong)


def lanes_of_checks(toy: bool) -> tuple[tuple[str, ...], ...]:
    return TOY_CHECK_LANES if toy else CHECK_LANES


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    git = ["git", "-C", str(BENCH)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + (" with changes" if changed.stdout.strip() else "")


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return "; ".join(said.split("\n")).strip("; ")


def estimates() -> Report:
    """What `gpu_model.py` wrote last, if it did."""
    path = BENCH / "results" / "gpu-estimates.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def cuda_here() -> bool:
    probe = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(probe, capture_output=True).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help=f"words of rows' keys: {', '.join(row.key for row in ROWS)}")
    parser.add_argument("--budget-seconds", type=float, default=540.0)
    parser.add_argument("--output", type=Path, default=BENCH / "results")
    parser.add_argument("--workers", type=int, default=max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--no-checks", action="store_true", help="only measure; the report says so")
    parser.add_argument("--toy", action="store_true", help="toy sizes, also in Triton's interpreter; no time counts")
    parser.add_argument("--capability", type=int, help="with --toy: compile for sm_<capability>, without a GPU")
    arguments = parser.parse_args()
    if arguments.capability and not arguments.toy:
        parser.error("--capability is for --toy: otherwise kernels are compiled for the GPU that is here")
    keys = chosen(arguments.rows)
    cuda = cuda_here()
    if not cuda and arguments.toy:
        # for the processes that import triton, which reads it then
        os.environ["TRITON_INTERPRET"] = "1"
    elif not cuda:
        print(
            "There is no CUDA device here, and nothing else can be measured.\n"
            "  python bench/gpu_model.py   estimates every row from compiled code, without a GPU\n"
            "  python bench/gpu.py --toy   runs everything at toy sizes in Triton's interpreter",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        run = Run(arguments, keys, Path(folder))
        if arguments.no_checks:
            run.report["problems"].append("checks were left out")
        run.everything()
        print(markdown(run.report))
    return int(run.failed())
