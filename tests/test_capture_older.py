"""Older versions of transformers, which users still have: their recurrent mixers are no functions to wrap.

In 4.57 the registry of attention is another one too.

A process of its own runs `older_transformers.py` with each of them, which pip installs beside the packages of
these tests.
"""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VERSIONS = ["4.57.6", "5.12.1"]
REPOSITORY = Path(__file__).parents[1]
# models whose mixers know nothing of padding, in some versions
PADDING_IS_READ = {"recurrent_gemma", "lfm2", "rwkv", "xlstm"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=VERSIONS)
def results(request, tmp_path_factory):
    """What the script has written, by model."""
    version = request.param
    folder = tmp_path_factory.mktemp("older")
    packages = folder / "packages"
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", packages, f"transformers=={version}"]
    # constraints for the tests' own environment would forbid it
    environment = {name: x for name, x in os.environ.items() if name != "PIP_CONSTRAINT"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        pytest.skip(f"transformers {version} could not be installed: {done.stderr.strip().splitlines()[-1]}")
    path = folder / "results.json"
    environment["PYTHONPATH"] = os.pathsep.join([str(packages), str(REPOSITORY)])
    script = [sys.executable, Path(__file__).with_name("older_transformers.py"), path]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["transformers"] == version
    return written["results"]


def test_every_mixer_is_captured_and_no_number_of_the_model_changes(results):
    wrong = {name: found["error"] for name, found in results.items() if "error" in found}
    assert not wrong
    for name, found in results.items():
        kinds = collections.Counter(kind for _, kind, *_ in found["calls"])
        assert kinds == found["expected"], name
        assert found["same"], name
        assert not found["refused"], (name, found["refused"])


def test_captured_operators_are_the_models(results):
    assert len(results) > 40
    for name, found in results.items():
        for module, _, route, error, _ in found["calls"]:
            assert error < 1e-5, (name, module, error)
            assert "one-hot" not in route, (name, module)


def test_what_is_said_of_padding(results):
    for name, found in results.items():
        remarks = {remark for *_, remark in found["calls"] if remark}
        model, _, *padded = name.split()
        if remarks:
            assert padded and model in PADDING_IS_READ, (name, remarks)
            assert len(remarks) == 1 and "reads padding" in remarks.pop()
