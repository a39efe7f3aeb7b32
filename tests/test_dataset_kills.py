"""Whatever ends a run, or a worker of one, costs the shards that were not finished, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dataset_inputs import POISON, parts_of, poisoned_model, small_model, write_shard, write_shards

import ess_kernels as ek

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.thorough, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, Path(__file__).parent / "dataset_forks.py", tmp_path_factory.mktemp("forks")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_twenty_kills_and_a_run_to_the_end(found):
    """Every part is that of a run without a kill, no finished shard is done again, and nothing else is left."""
    kills = found["kills"]
    assert found["whole"] == 0 and found["parts"] == 32
    assert kills["killed"] == 20 and 0 < kills["made"] < 32
    assert (kills["code"], kills["twice"], found["equal"][0]) == (0, [], True)


def test_two_runs_at_once_end_in_the_same_parts(found):
    assert (found["together"], found["equal"][1]) == ([0, 0], True)


def test_a_full_disk_loses_no_finished_part(found):
    after = ["_run.json", "part-00000.parquet", "part-00002.parquet"]
    assert found["full disk"] == {"code": 3, "after": after, "again": 0, "kept": True}


def test_a_worker_that_is_killed_costs_its_shard_alone(tmp_path):
    inputs = write_shards(tmp_path / "in", shards=5, rows=1)
    write_shard(tmp_path / "in" / "001.parquet", ["a text", POISON])
    found = ek.analyze_dataset(poisoned_model, inputs, tmp_path / "out", workers=2)
    assert found.failed == {"001.parquet": "its worker was killed by SIGKILL"}
    assert sorted(parts_of(tmp_path / "out")) == [f"part-0000{i}.parquet" for i in (0, 2, 3, 4)]
    write_shard(tmp_path / "in" / "001.parquet", ["a text", "another"])
    found = ek.analyze_dataset(poisoned_model, inputs, tmp_path / "out")
    assert (found.there, found.prompts) == (4, 2)


def test_workers_that_cannot_go_on_end_the_run(tmp_path):
    inputs = write_shards(tmp_path / "in", shards=8, rows=1)
    for shard in range(8):
        write_shard(tmp_path / "in" / f"{shard:03d}.parquet", [POISON])
    found = ek.analyze_dataset(poisoned_model, inputs, tmp_path / "out", workers=1)
    assert len(found.failed) == 8 and "3 workers in a row" in found.failed["007.parquet"]
    assert parts_of(tmp_path / "out") == {}


def test_a_model_that_a_worker_cannot_make(tmp_path):
    inputs = write_shards(tmp_path / "in", shards=2, rows=1)
    with pytest.raises(RuntimeError, match="FileNotFoundError: no weights"):
        ek.analyze_dataset(Vanishing(), inputs, tmp_path / "out", workers=1)


class Vanishing:
    """Makes the model in the process that began, and nowhere else."""

    def __init__(self):
        self.process = os.getpid()

    def __call__(self):
        if os.getpid() != self.process:
            raise FileNotFoundError("no weights")
        return small_model()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    inputs, out = write_shards(tmp_path / "in", shards=12, rows=3, length=48), tmp_path / "out"
    command = [sys.executable, "-m", "ess_kernels", "analyze", "demo", "--inputs", inputs, "--out", out]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, text=True)
    try:
        assert "prompts" in process.stdout.readline()
        workers = children_of(process.pid)
        assert len(workers) >= 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert sum(name.startswith("part-") for name in parts_of(out)) < 12


def children_of(process):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(process):
            found.append(int(path.parent.name))
    return found
