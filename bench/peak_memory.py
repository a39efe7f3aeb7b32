"""The most memory that counts and entropy of one operator take, measured in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import re, sys
sys.path.insert(0, {here!r})
import {module}
import ess_kernels as ek
def peak():
    # ru_maxrss would start from the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
op = {module}.{operator}
{warm_up}
before = peak()
ek.tolerance_ess(op, backend={backend!r})
ek.entropy_ess(op, backend={backend!r})
print(before, peak())
"""


def peak_memory(module: str, operator: str, backend: str, *, warm_up: str = "") -> tuple[int, int]:
    """Peak resident bytes of a process with the operator's inputs alone, and after its counts and entropy.

    `operator` is a call of the benchmarks' `module`, as Python source. So is `warm_up`: this small operator is counted
    first, so that loading the backend is not taken for the answers' own memory.
    """
    here = str(Path(__file__).parent)
    first = f"ek.tolerance_ess({module}.{warm_up}, backend={backend!r})" if warm_up else ""
    script = SCRIPT.format(here=here, module=module, operator=operator, warm_up=first, backend=backend)
    out = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    before, peak = (int(x) * 1024 for x in out.split())
    return before, peak
