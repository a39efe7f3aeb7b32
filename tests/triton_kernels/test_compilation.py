"""Kernels compiled ahead of time, without a GPU, for the cards they are meant for: no variant may spill.

Compiling happens in processes of its own: here Triton may be interpreting.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from ess_kernels.backends.triton import compilation

# bytes of stores and loads together
SPILL = 64


def compiled(*arguments: str) -> list[compilation.Resources]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "ess_kernels.backends.triton.compilation",
        "--json",
        "--processes",
        "2",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [compilation.Resources(**json.loads(line)) for line in done.stdout.splitlines()]


def without_spills(rows: list[compilation.Resources]) -> None:
    spilling = [(row.name, row.capability, row.spill) for row in rows if row.spill > SPILL]
    assert not spilling


def names() -> list[str]:
    return [variant.name for variant in compilation.variants()]


def test_names_are_unique():
    assert len(set(names())) == len(names())


def check_one_of_each_on_hopper(rows: list[compilation.Resources], wanted: list[compilation.Variant]) -> None:
    assert sorted(row.name for row in rows) == sorted(variant.name for variant in wanted)
    without_spills(rows)


def test_one_small_kernel_on_hopper():
    wanted = [variant for variant in compilation.variants() if "edge" in variant.name]
    rows = compiled("--one-of-each", "--capability", "90", "--only", "edge")
    check_one_of_each_on_hopper(rows, compilation.one_of_each(wanted))


@pytest.mark.thorough
def test_the_kernel_of_boundaries_on_hopper():
    wanted = [variant for variant in compilation.variants() if "boundary" in variant.name]
    rows = compiled("--one-of-each", "--capability", "90", "--only", "boundary")
    check_one_of_each_on_hopper(rows, compilation.one_of_each(wanted))
    # float64 products must come out as the wide matrix instruction: with the narrow one they take much longer
    assert {row.matrix_shape for row in rows} == {"m16n8k16"}


@pytest.mark.slow
def test_one_variant_of_every_kernel_on_hopper():
    rows = compiled("--one-of-each", "--capability", "90")
    check_one_of_each_on_hopper(rows, compilation.one_of_each(compilation.variants()))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90, 80])
def test_every_variant_without_spills(capability):
    rows = compiled("--capability", str(capability))
    assert sorted(row.name for row in rows) == sorted(names())
    without_spills(rows)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 89, 120])
def test_every_kernel_compiles_for_other_cards(capability):
    assert compiled("--one-of-each", "--capability", str(capability))


def test_loads_stay_where_they_are_written():
    # with more stages Triton loads for later passes before earlier ones have stored, and asks no alias analysis
    assert all(variant.launch.num_stages == 1 for variant in compilation.variants())


def test_launches_are_the_compiled_variants():
    """No launch names warps or stages of its own: what is compiled in these tests is what runs."""
    kernels = Path(compilation.__file__).parent
    for path in kernels.rglob("*.py"):
        for word in ("num_warps=", "num_stages="):
            assert word not in path.read_text(), path.name
