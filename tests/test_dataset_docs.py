"""docs/many_prompts.md says what is so: its columns are those of a part, and its commands run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ess_kernels.analysis.dataset import columns

pytest.importorskip("pyarrow")
PAGE = Path(__file__).parents[1] / "docs" / "many_prompts.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not part of an installation")


@pytest.mark.parametrize("text", ["page", "docstring"])
def test_columns(text):
    lines = (PAGE.read_text() if text == "page" else columns.__doc__).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| column"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows += re.findall(r"`(\w+)`", line.split("|")[1])
    assert sorted(rows) == sorted(columns.schema("text", {}).names)


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_first_commands_run(tmp_path):
    pytest.importorskip("safetensors")
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    lines = [line for line in block.splitlines() if not line.startswith("pip install")]
    assert len(lines) == len(block.splitlines()) - 1
    script = "\n".join(lines).replace("ess-kernels ", "python -m ess_kernels ").replace("python ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, _, last = done.stdout.splitlines()
    assert first.startswith("prompts.parquet: 3 prompts, 1 with a problem")
    assert last.startswith("1 shards: 1 done before, 0 done now")
