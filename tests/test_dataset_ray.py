"""`analyze_dataset` on a Ray cluster of this machine: two actors, of which one is killed."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from dataset_inputs import bytes_of, parts_of, small_model, write_shard, write_shards

import ess_kernels as ek

pytest.importorskip("pyarrow")
pytest.importorskip("ray", reason="Ray is not installed: pip install 'ess-kernels[ray]'")
pytest.importorskip("ray.data")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def ray_at_home():
    """Ray's files, and the token of its clusters, which it reads once, are in a folder that is removed afterwards."""
    folder = tempfile.mkdtemp(prefix="r")  # a short name: sockets lie below it
    Path(folder, "token").write_text(os.urandom(32).hex())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_TOKEN_PATH", f"{folder}/token")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # actors import what the tests import
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        yield
    shutil.rmtree(folder, ignore_errors=True)


class Poisoned:
    """Makes the small model, whose tokenizer kills its process at one prompt, as often as it is told to."""

    def __init__(self, folder, times):
        self.folder, self.times = folder, times

    def __call__(self):
        return small_model()[0], self.tokenizer

    def tokenizer(self, text):
        if text == "poison":
            deaths = len(list(self.folder.iterdir()))
            if deaths < self.times:
                (self.folder / str(deaths)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return bytes_of(text)


def test_two_actors_one_of_which_is_killed(tmp_path):
    inputs = write_shards(tmp_path / "in", shards=6, rows=2)
    write_shard(tmp_path / "in" / "001.parquet", ["a text", "poison"])
    (tmp_path / "deaths").mkdir()
    told = []
    options = {"engine": "ray", "workers": 2, "report": told.append}
    found = ek.analyze_dataset(Poisoned(tmp_path / "deaths", 1), inputs, tmp_path / "out", **options)
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert (found.failed, found.prompts, len(told)) == ({}, 12, 6)
    alone = ek.analyze_dataset(Poisoned(tmp_path / "deaths", 1), inputs, tmp_path / "alone")
    assert alone.failed == {}
    assert parts_of(tmp_path / "out") == parts_of(tmp_path / "alone")
    again = ek.analyze_dataset(Poisoned(tmp_path / "deaths", 1), inputs, tmp_path / "out", **options)
    assert (again.there, again.prompts) == (6, 0)


def test_a_shard_that_kills_every_actor_is_given_up(tmp_path):
    inputs = write_shards(tmp_path / "in", shards=4, rows=1)
    write_shard(tmp_path / "in" / "001.parquet", ["poison"])
    (tmp_path / "deaths").mkdir()
    model = Poisoned(tmp_path / "deaths", 1000)
    found = ek.analyze_dataset(model, inputs, tmp_path / "out", engine="ray", workers=1)
    assert list(found.failed) == ["001.parquet"] and "killed again and again" in found.failed["001.parquet"]
    assert len(list((tmp_path / "deaths").iterdir())) == 3
    assert sorted(parts_of(tmp_path / "out")) == ["part-00000.parquet", "part-00002.parquet", "part-00003.parquet"]
