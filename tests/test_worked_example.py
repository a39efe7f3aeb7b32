"""The worked example of the documentation: its programs print what the page says, and its table holds."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from ess_kernels.reference import reference_entropy_ess, reference_tolerance_ess

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "worked_example.md").read_text()
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """Runs the page from top to bottom, and compares what each program prints with the block below it."""
    names: dict = {}
    compared = 0
    for number, (kind, program) in enumerate(BLOCKS):
        if kind == "text":
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(program, f"worked_example.md, block {number}", "exec"), names)
        after = BLOCKS[number + 1 :][:1]
        expected = after[0][1] if after and after[0][0] == "text" else ""
        assert out.getvalue() == expected, program
        compared += bool(expected)
    assert compared == 6
    return names


def test_programs_print_what_the_page_says(names):
    assert names["T"].shape == (4, 4)


def test_the_matrix_in_the_text_is_the_one_of_the_programs(names):
    rows = re.findall(r"^  y_\d +(.*)$", PAGE, re.MULTILINE)
    assert names["T"].tolist() == [[float(entry) for entry in row.split()] for row in rows]


def test_the_table_agrees_with_the_definition(names):
    T = names["T"]
    lines = [line for line in PAGE.splitlines() if re.match(r"\| \d \|", line)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [int(row[0]) for row in rows] == [1, 2, 3]
    for row in rows:
        i = int(row[0])
        H = T[i:, :i]
        assert row[1] == f"{H.shape[0]} x {H.shape[1]}"
        assert row[2] == ", ".join(f"{value:.4f}" for value in torch.linalg.svdvals(H))
        assert int(row[3]) == reference_tolerance_ess(T, 0.001)[i - 1]
        assert int(row[4]) == reference_tolerance_ess(T, 0.5)[i - 1]
        assert row[5] == f"{reference_entropy_ess(T)[i - 1]:.4f}"
        assert int(row[6]) == min(i, 4 - i)


def test_the_sums_done_by_hand(names):
    T = names["T"]
    square = T[2:, :2] @ T[2:, :2].T
    printed = re.search(r"^    \| ([\d.]+) +([\d.]+) \|\n    \| ([\d.]+) +([\d.]+) \|$", PAGE, re.MULTILINE)
    assert printed and [f"{x:.2f}" for x in square.flatten()] == list(printed.groups())
    assert torch.allclose(torch.linalg.eigvalsh(square), torch.tensor([0.2, 1.8], dtype=torch.float64))
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    terms = -(shares * shares.log())
    entropy = terms.sum()
    assert f"= {terms[0]:.4f} + {terms[1]:.4f} = {entropy:.4f}" in PAGE
    assert f"exp({entropy:.4f}) = {entropy.exp():.4f}" in PAGE
