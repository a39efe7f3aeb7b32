"""The scripts of the paper's experiments run, go on where they stopped, and their statistics are right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "bench" / "paper"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import correlations
    import runs

    return correlations, runs


def test_correlations(modules):
    correlations, _ = modules
    random = np.random.default_rng(0)
    x, z = random.standard_normal((2, 50))
    y = x + 0.5 * z
    assert correlations.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlations.spearman(x, np.exp(x)) == pytest.approx(1)
    assert correlations.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    assert np.isnan(correlations.pearson(x, np.full(50, 0.1)))
    # x is z and noise, y is z and other noise: nothing is left once z has been taken out
    first, second = z + 0.3 * random.standard_normal((2, 50))
    assert correlations.pearson(first, second) > 0.8
    assert abs(correlations.partial(first, second, z)) < 0.3


def test_the_interval_covers(modules, monkeypatch):
    """A 95 % interval holds the true correlation in most of many data sets."""
    correlations, _ = modules
    monkeypatch.setattr(correlations, "DRAWS", 300)
    random = np.random.default_rng(1)
    held = 0
    for _ in range(40):
        x, noise = random.standard_normal((2, 30))
        value, low, high = correlations.interval(correlations.pearson, x, 0.6 * x + 0.8 * noise)
        assert low < value < high
        held += low < 0.6 < high
    assert held >= 33
    assert correlations.mean_interval(np.array([0.5])) == "0.50 (one run)"


def test_runs_that_are_there_are_not_done_again(modules, tmp_path):
    _, runs = modules
    path, done = tmp_path / "runs.jsonl", []

    def do(settings):
        done.append(settings["seed"])
        return {"accuracy": 0.123456789 + settings["seed"]}

    wanted = [{"seed": seed, "kind": "GLA"} for seed in range(4)]
    assert len(runs.run_missing(path, wanted[:2], do, minutes=1)) == 2
    found = runs.run_missing(path, wanted, do, minutes=1)
    assert done == [0, 1, 2, 3] and [run["seed"] for run in found] == done
    assert found[0]["accuracy"] == 0.12346
    assert runs.run_missing(path, [*wanted, {"seed": 9, "kind": "GLA"}], do, minutes=-1) == found
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == done


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["sweep", "init", "regularise", "distil", "hybrids", "delimiters", "delimiters --orders"]
)
def test_a_script_runs(script, tmp_path):
    name, *arguments = script.split()
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments, "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout and list(tmp_path.glob("*.png")) and list(tmp_path.glob("*.json*"))
