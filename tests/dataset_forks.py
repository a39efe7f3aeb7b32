"""Runs in processes that are killed: `python tests/dataset_forks.py FOLDER`, for `test_dataset_kills.py`.

Each run is a copy of this process, which has imported everything, so that a run begins at once. What was found is
printed as a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a copy of a process has one thread

import pyarrow.parquet  # noqa: F401 - so that no run has to
import torch
from dataset_inputs import LETTERS, parts_of, small_model, write_shard, write_shards

import ess_kernels as ek

KILLS, SHARDS = 20, 32
LONGEST = 1.2  # until a kill, in units of the time that a shard takes
LIMIT = 40_000  # bytes that a file may have on the full disk


def run(folder: Path, out: str) -> int:
    """0 if all shards have parts, 3 if some have none."""
    return 3 if ek.analyze_dataset(small_model, str(folder / "*.parquet"), folder / out).failed else 0


def forked(function: Callable[..., int], *arguments: object) -> int:
    """The number of a process that calls this; what it returns is the exit code."""
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        code = function(*arguments)
    finally:
        os._exit(code)


def code_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kills(folder: Path, patience: float) -> dict[str, object]:
    """Kills one run after the other at random moments, and lets one end. Says how many were killed in time, how many
    parts these had made, and whose parts were made twice."""
    dice = random.Random(0)
    killed = 0
    seen: dict[str, tuple[int, int]] = {}
    twice = []

    def look() -> None:
        for path in (folder / "killed").glob("part-*"):
            about = path.stat()
            if seen.setdefault(path.name, (about.st_ino, about.st_mtime_ns)) != (about.st_ino, about.st_mtime_ns):
                twice.append(path.name)

    for attempt in range(KILLS):
        process = forked(run, folder, "killed")
        parts = len(list((folder / "killed").glob("part-*")))
        while (
            attempt % 4 == 1 and len(list((folder / "killed").glob("part-*"))) == parts
        ):  # every fourth run finishes some
            time.sleep(0.002)
        time.sleep(dice.uniform(0, patience))
        os.kill(process, signal.SIGKILL)
        killed += code_of(process) == -signal.SIGKILL
        look()
    before = len(seen)
    code = code_of(forked(run, folder, "killed"))
    look()
    return {"killed": killed, "made": before, "code": code, "twice": twice}


def full_disk(folder: Path) -> dict[str, object]:
    """A run in which no file can be larger than a limit that one part exceeds, and one without it."""
    write_shards(folder, shards=3, rows=1, length=24)
    write_shard(folder / "001.parquet", [LETTERS[i : i + 40] * 3 for i in range(8)] * 2)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
        found = ek.analyze_dataset(small_model, str(folder / "*.parquet"), folder / "full")
        return 3 if list(found.failed) == ["001.parquet"] and "File too large" in found.failed["001.parquet"] else 1

    code = code_of(forked(limited))
    parts = {path.name: path.stat().st_mtime_ns for path in (folder / "full").iterdir()}
    again = code_of(forked(run, folder, "full"))
    kept = all((folder / "full" / name).stat().st_mtime_ns == time for name, time in parts.items())
    return {"code": code, "after": sorted(parts), "again": again, "kept": kept}


def main(folder: Path) -> dict[str, object]:
    write_shards(folder / "in", shards=SHARDS, rows=1, length=24)
    begin = time.monotonic()
    code = code_of(forked(run, folder / "in", "whole"))
    patience = LONGEST * (time.monotonic() - begin) / SHARDS
    found = {"whole": code, "kills": kills(folder / "in", patience)}
    both = [forked(run, folder / "in", "together") for _ in range(2)]
    found["together"] = [code_of(process) for process in both]
    whole, killed, together = (parts_of(folder / "in" / name) for name in ("whole", "killed", "together"))
    found["parts"] = len(whole)
    found["equal"] = [killed == whole, together == whole]
    return {**found, "full disk": full_disk(folder / "full")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]))))
