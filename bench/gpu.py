"""Everything that must be known on a GPU, in one command and under ten minutes: correctness, ceilings, goals, peers.

    PYTHONPATH=$PWD python3 bench/gpu.py --budget-seconds 540 --output DIR [--rows WORDS] [--toy]

The package need not be installed.

Writes `<card>.json` and `<card>.md` into bench/results, again after every row, so that a crash or the end of the time
loses nothing. Checks come first, in processes of their own that run side by side (and compile what is measured later);
then rows are measured one after the other in another one, which is started again behind a row that kills it. The exit
status is 1 where a check or a measurement failed, 0 otherwise, goals missed or not.

Without a GPU: `--toy` runs all of it at toy sizes in Triton's interpreter; `python bench/gpu_model.py` estimates times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from gpu_cases import ROWS, chosen
from gpu_report import markdown, slug

HERE = Path(__file__).resolve().parent
# of the time budget, what checks and compiling may take at most
CHECKS_SHARE = 0.45
# a process that has said nothing for so long is taken for dead
PATIENCE = 90.0
MOST_WORKERS = 14
# of entropies and singular values in the rows' own checks
WORST_ERROR = 1e-4
Report = dict[str, Any]


class Job:
    """A process that appends lines of JSON to a file, and its errors to another."""

    def __init__(self, folder: Path, name: str, script: str, *arguments: str):
        self.name = name
        stem = "".join(c if c.isalnum() else "-" for c in name) + f"-{time.monotonic_ns()}"
        self.lines, self.log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
        self.read = 0
        self.heard = time.monotonic()
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TRITON_CACHE_AUTOTUNING": "1"}
        # the package need not be installed
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        # many processes side by side, and none of them needs the CPU for much
        environment.setdefault("OMP_NUM_THREADS", "2")
        command = [sys.executable, str(HERE / script), "--output", str(self.lines), *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def news(self) -> Iterator[Report]:
        """Complete lines that were not read before."""
        if not self.lines.exists():
            return
        with self.lines.open() as file:
            file.seek(self.read)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break
                self.read += len(line.encode())
                self.heard = time.monotonic()
                yield json.loads(line)

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in text[-4:])[-400:]

    def end(self) -> None:
        if self.running:
            self.process.kill()
        self.process.wait()


class Run:
    """One run of everything: what is known so far, and where it is written."""

    def __init__(self, arguments: argparse.Namespace, keys: list[str], folder: Path):
        self.toy, self.output, self.folder = arguments.toy, arguments.output, folder
        self.workers = arguments.workers
        self.keys = keys
        self.deadline = time.monotonic() + arguments.budget_seconds
        self.budget = arguments.budget_seconds
        self.report: Report = {
            "toy": self.toy,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "driver": driver(),
            "command": " ".join(sys.argv),
            "environment": {},
            "checks": [],
            "ceilings": [],
            "rows": {},
            "problems": [],
            "estimates": estimates(),
        }

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def write(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        card = self.report["environment"].get("card", "unknown card")
        path = self.output / slug("toy" if self.toy else card)
        path.with_suffix(".json").write_text(json.dumps(self.report, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(self.report))

    def problem(self, text: str) -> None:
        print(f"!! {text}", flush=True)
        self.report["problems"].append(text)

    # --- checks -------------------------------------------------------------------------------------------------------

    def check(self, groups: list[str]) -> None:
        """All groups of checks, and what is measured later run once so that it is compiled, side by side."""
        mode = ["--toy"] if self.toy else []
        waiting = [(f"checks: {group}", "gpu_checks.py", ["--groups", group, *mode]) for group in groups]
        if not self.toy:
            warm = ["ceilings", *self.keys]
            waiting += [(f"compiling: {key}", "gpu_measure.py", ["--rows", key, "--warm"]) for key in warm]
        until = time.monotonic() + CHECKS_SHARE * self.budget
        running: list[Job] = []
        try:
            while (waiting or running) and (self.toy or time.monotonic() < until):
                while waiting and len(running) < self.workers:
                    name, script, arguments = waiting.pop(0)
                    running.append(Job(self.folder, name, script, *arguments))
                for job in list(running):
                    # asked before its lines are read, or the last ones might be missed
                    ended = not job.running
                    self.hear_checks(job)
                    if ended:
                        running.remove(job)
                        self.ended(job)
                time.sleep(0.1)
            for job in running:
                self.unfinished(job.name)
            for name, _, _ in waiting:
                self.unfinished(name)
        finally:
            for job in running:
                job.end()
                self.hear_checks(job)
        self.write()

    def hear_checks(self, job: Job) -> None:
        for line in job.news():
            if line["kind"] == "check":
                self.report["checks"].append(line)
                if not line["ok"]:
                    self.problem(
                        f"check failed: {line['group']}: {line['name']}: {line.get('problem', line.get('error'))}"
                    )
            elif line["kind"] == "environment":
                self.report["environment"] = line["found"]
            elif line["kind"] == "row" and job.name.startswith("compiling"):
                for what, why in line["found"].get("failures", {}).items():
                    print(f"{job.name}: {what}: {why}", flush=True)

    def ended(self, job: Job) -> None:
        status = job.process.returncode
        print(
            f"{job.name}: {'done' if status == 0 else f'ended with status {status}'}, {self.left():.0f} s left",
            flush=True,
        )
        if status and job.name.startswith("checks"):
            self.failed_check(job.name, f"ended with status {status}: {job.last_words()}")

    def unfinished(self, name: str) -> None:
        if name.startswith("checks"):
            self.failed_check(name, "not finished in time")
        else:
            print(f"{name}: not finished in time", flush=True)

    def failed_check(self, name: str, why: str) -> None:
        group = name.removeprefix("checks: ")
        self.report["checks"].append({"group": group, "name": "the group itself", "problem": why, "ok": False})
        self.problem(f"{name}: {why}")

    # --- rows ---------------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Ceilings and rows; behind one that ends its process the rest goes on in another."""
        waiting = ["ceilings", *self.keys]
        while waiting:
            if not self.toy and self.left() < 10:
                for key in waiting:
                    self.fail_row(key, "no time was left")
                break
            waiting = self.measure_some(waiting)
        self.write()

    def measure_some(self, keys: list[str]) -> list[str]:
        """Runs a process for these; returns those that it did not come to."""
        seconds = max(5.0, self.left() - 10)
        mode = ["--toy"] if self.toy else []
        job = Job(
            self.folder, "measuring", "gpu_measure.py", "--rows", ",".join(keys), "--seconds", f"{seconds:.0f}", *mode
        )
        done: list[str] = []
        current: str | None = None
        why = ""
        try:
            while True:
                ended = not job.running
                for line in job.news():
                    if line["kind"] == "start":
                        current = line["key"]
                    elif line["kind"] == "environment":
                        self.report["environment"] = line["found"]
                    elif line["kind"] == "ceiling":
                        self.report["ceilings"].append(line["found"])
                    elif line["kind"] == "row":
                        done.append(line["key"])
                        current = None
                        self.hear_row(line["key"], line["found"])
                if ended:
                    break
                if time.monotonic() - job.heard > PATIENCE and not self.toy:
                    why = f"nothing was heard for {PATIENCE:.0f} s"
                    break
                if self.left() < 3 and not self.toy:
                    why = "the time was up"
                    break
                time.sleep(0.1)
        finally:
            job.end()
        rest = [key for key in keys if key not in done]
        if rest and (current is not None or not done):
            # the one in work, or the first if nothing ever started: never tried twice
            key = current or rest[0]
            self.fail_row(key, why or f"its process ended with status {job.process.returncode}: {job.last_words()}")
            rest.remove(key)
        return rest

    def hear_row(self, key: str, found: Report) -> None:
        self.report["rows"][key] = found
        for what, why in found.get("failures", {}).items():
            print(f"{key}: {what}: {why}", flush=True)
        if "ms" in found:
            print(f"{key}: {found['ms']:.4g} ms ({found['runs']} runs), {self.left():.0f} s left", flush=True)
        self.write()

    def fail_row(self, key: str, why: str) -> None:
        self.report["rows"].setdefault(key, {}).setdefault("failures", {})["measured"] = why
        self.problem(f"{key}: {why}")
        self.write()

    def failed(self) -> bool:
        """Whether a check failed, a row could not be measured, or one of its answers was wrong."""
        rows = self.report["rows"].values()
        broken = any({"measured", "whole row"} & set(row.get("failures", {})) for row in rows)
        wrong = any(row.get("checked", {}).get("wrong", 0) for row in rows)
        inexact = any(row.get("checked", {}).get("error", 0.0) > WORST_ERROR for row in rows)
        return broken or wrong or inexact or not all(check["ok"] for check in self.report["checks"])


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    git = ["git", "-C", str(HERE)]
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
    path = HERE / "results" / "gpu-estimates.json"
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
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--workers", type=int, default=max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--no-checks", action="store_true", help="only measure; the report says so")
    parser.add_argument("--toy", action="store_true", help="toy sizes, also in Triton's interpreter; no time counts")
    arguments = parser.parse_args()
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
        else:
            run.check(groups(arguments.toy))
        run.measure()
        run.report["seconds"] = run.budget - run.left()
        run.write()
        print(markdown(run.report))
    return int(run.failed())


def groups(toy: bool) -> list[str]:
    """Those of gpu_checks.py, which this process does not import: it would import torch and triton."""
    if toy:
        return ["parts and scans,staircases,dense kernels,shifts"]
    return [
        "hard recurrences n=64",
        "hard recurrences n=16",
        "typical inputs",
        "hard cases gla",
        "hard cases attention and dense",
        "boundaries",
        "parts and scans",
        "staircases",
        "small states",
        "dense kernels",
        "attention kernels",
        "spectra",
        "shifts",
        "poison",
    ]


if __name__ == "__main__":
    sys.exit(main())
