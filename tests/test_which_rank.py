"""The page on ranks: its programs print what the page says, and every call that it names is there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import ess_kernels as ek

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "which_rank.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_programs_print_what_the_page_says():
    assert len(BLOCKS) == PAGE.count("```python") == 7
    names: dict = {}
    for number, (program, expected) in enumerate(BLOCKS):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(program, f"which_rank.md, block {number}", "exec"), names)
        assert out.getvalue() == expected, program


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bek\.(\w+)", PAGE))))
def test_what_the_page_calls_is_public(name):
    assert name in ek.__all__
