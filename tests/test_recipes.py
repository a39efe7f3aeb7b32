"""`docs/recipes.md`: every block runs, and what the page says of its results is so."""

import re
from pathlib import Path

import pytest
import torch

import ess_kernels as ek

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()


@pytest.fixture(scope="module")
def names():
    """What the blocks have left, run one after the other."""
    found = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, found)
    return found


def test_every_recipe_is_short():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 7
    assert all(len(block.strip().splitlines()) <= 10 for block in blocks)


def test_heads_by_what_they_need(names):
    assert names["need"].shape == (1, 4)
    assert sorted(names["order"].tolist()) == [0, 1, 2, 3]
    assert names["need"].max() <= 16


def test_reduction(names):
    assert (names["r"].state_sizes[..., 1:] <= names["counts"]).all()
    error = torch.linalg.matrix_norm(names["op"].dense() - names["r"].dense())
    assert torch.allclose(names["error"], error, rtol=1e-6)
    assert names["largest"].shape == (1, 4)
    assert names["y"].shape == (1, 4, 256, 8)


def test_training(names):
    assert names["gates"].grad.isfinite().all()
    assert names["gates"].grad.abs().max() > 0


def test_initialisation_and_modulation(names):
    assert names["found"] is not None
    assert names["around"] is not None


def test_content(names):
    assert names["content"].shape[:3] == (1, 4, 3)
    assert (ek.entropy_ess(names["op"], names["positions"]) > 0).all()
