"""Every environment variable that the package reads, with its parser. Nothing else looks at `os.environ`.

| variable                     | meaning                                                              | default |
|------------------------------|----------------------------------------------------------------------|---------|
| `ESS_KERNELS_MEMORY_BUDGET`  | workspace of one call: bytes, or a number with K, M, G, KiB, MiB, GiB | `1GiB`  |
| `ESS_KERNELS_DISABLE_NATIVE` | `1` keeps the compiled CPU library from being loaded                 | `0`     |
| `ESS_KERNELS_NATIVE_LIBRARY` | path of a compiled CPU library to use in place of the installed one  | none    |
| `ESS_KERNELS_NUM_THREADS`    | threads of the compiled CPU kernels                                  | torch's |
| `ESS_KERNELS_CPU_LEVEL`      | vector instructions they use: `baseline`, `avx2`, `avx512` or `best`  | `best`  |

What starts many processes of one program tells each which it is: `RANK`, `WORLD_SIZE` and `LOCAL_RANK` (torchrun), or
`SLURM_ARRAY_TASK_ID`, `_COUNT`, `_MIN` and `_STEP` (an array of Slurm). `analyze_dataset` divides its work by them.

They are read when they are needed, not at import, so a program may set them at any time before the call they concern.
A value that cannot be understood is a `ValueError` that names the variable. Of the settings of the compiled library it
keeps only that library from being used: `backend="auto"` then says so once and leaves the call to PyTorch.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MEMORY_BUDGET = "ESS_KERNELS_MEMORY_BUDGET"
DISABLE_NATIVE = "ESS_KERNELS_DISABLE_NATIVE"
NATIVE_LIBRARY = "ESS_KERNELS_NATIVE_LIBRARY"
NUM_THREADS = "ESS_KERNELS_NUM_THREADS"
CPU_LEVEL = "ESS_KERNELS_CPU_LEVEL"

DEFAULT_MEMORY_BUDGET = 2**30

# Binary units throughout, as in `docker --memory 1G` or `systemd MemoryMax=1G`; KB and MB are left out because they
# mean 1000 to one half of the readers and 1024 to the other.
_UNITS = {"": 1, "b": 1, "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "g": 2**30, "gib": 2**30}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"", "0", "false", "no", "off"})
# ESS_LEVEL_* of csrc/include/ess_native.h
LEVELS = {"best": 0, "baseline": 1, "avx2": 2, "avx512": 3}
MOST_THREADS = 1024


def parse_size(text: str) -> int:
    """The number of bytes that `text` says: `"4096"`, `"512M"`, `"1.5 GiB"`. Suffixes are powers of 1024, in any case.

    Raises `ValueError` for anything else, and for less than one byte.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise ValueError(
            f"expected a positive size such as 4096, 512M, 2G or 1.5GiB (K, M, G are KiB, MiB, GiB), got {text!r}"
        )
    return size


def default_memory_budget() -> int:
    """The workspace in bytes that one call may use: `ESS_KERNELS_MEMORY_BUDGET`, 1 GiB where it is unset or empty.

    `memory.memory_budget` takes its place.
    """
    text = os.environ.get(MEMORY_BUDGET, "")
    if not text.strip():
        return DEFAULT_MEMORY_BUDGET
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"environment variable {MEMORY_BUDGET}: {error}") from None


def native_disabled() -> bool:
    """Whether `ESS_KERNELS_DISABLE_NATIVE` says so: 1/true/yes/on or 0/false/no/off (also unset or empty)."""
    text = os.environ.get(DISABLE_NATIVE, "")
    value = text.strip().lower()
    if value not in _ON | _OFF:
        raise ValueError(
            f"environment variable {DISABLE_NATIVE}: expected 1 or 0 (true/false, yes/no, on/off), got {text!r}"
        )
    return value in _ON


def native_library() -> Path | None:
    """The file that `ESS_KERNELS_NATIVE_LIBRARY` names, or None where it is unset or empty.

    A relative path begins at the current folder; without a folder in it, the system would look among its own libraries.
    """
    text = os.environ.get(NATIVE_LIBRARY, "")
    return Path(text).absolute() if text.strip() else None


def num_threads() -> int | None:
    """`ESS_KERNELS_NUM_THREADS`, or None where it is unset or empty. Raises `ValueError` unless it is in 1..1024."""
    text = os.environ.get(NUM_THREADS, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_THREADS:
        raise ValueError(f"environment variable {NUM_THREADS}: expected a number in 1..{MOST_THREADS}, got {text!r}")
    return int(text)


def cpu_level() -> int:
    """The dispatch level that `ESS_KERNELS_CPU_LEVEL` names, 0 for the best one that the machine has."""
    text = os.environ.get(CPU_LEVEL, "")
    level = LEVELS.get(text.strip().lower() or "best")
    if level is None:
        raise ValueError(f"environment variable {CPU_LEVEL}: expected best, baseline, avx2 or avx512, got {text!r}")
    return level


def problems() -> list[str]:
    """What is wrong with the settings as they are now, a line each."""
    found = []
    for read in (default_memory_budget, native_disabled, num_threads, cpu_level):
        try:
            read()
        except ValueError as error:
            found.append(str(error))
    return found


def process_share() -> tuple[int, int]:
    """Which of how many processes this one is, from 0 on: by `RANK` and `WORLD_SIZE`, or by its place in a Slurm array.

    (0, 1) where neither is set. Raises `ValueError` where they contradict each other.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        names, first, step = ("RANK", "WORLD_SIZE"), 0, 1
    elif "SLURM_ARRAY_TASK_ID" in os.environ:
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
        first, step = _integer("SLURM_ARRAY_TASK_MIN", 0), max(1, _integer("SLURM_ARRAY_TASK_STEP", 1))
    else:
        return 0, 1
    number, count = (_integer(name) for name in names)
    index, rest = divmod(number - first, step)
    if rest or not 0 <= index < count:
        raise ValueError(
            f"environment variables {names[0]} and {names[1]}: expected one of {count} numbers from {first} on, {step} "
            f"apart, got {number}"
        )
    return index, count


def local_rank() -> int | None:
    """`LOCAL_RANK`: which of its machine's processes this one is; None where it is not set."""
    return _integer("LOCAL_RANK") if "LOCAL_RANK" in os.environ else None


def _integer(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default)).strip()
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"environment variable {name}: expected a number, got {text!r}")
    return int(text)
