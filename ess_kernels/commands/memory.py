"""How much memory a model and its analysis need, and how much is free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def free_memory() -> int | None:
    """Bytes that this process may still take: what the machine has and its control groups allow. None: not known."""
    known = [size for size in (_free_on_machine(), *_free_in_groups()) if size is not None]
    return min(known, default=None)


def free_on_gpu() -> int:
    """Bytes that are free on the current CUDA device."""
    import torch

    return torch.cuda.mem_get_info()[0]


def size_text(size: int) -> str:
    """A number of bytes as people read it: `14.9 GiB`."""
    value = float(size)
    for unit in UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {UNITS[-1]}"


def _free_on_machine() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterable[int | None]:
    """For each control group with a limit that this process is in: the limit less what is in use and cannot be dropped.

    Version 2 has one tree of groups, version 1 one of its own for memory; a container sees its own group as the root.
    """
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        tree = root / controllers
        most, now = "memory.max", "memory.current"
        if controllers:  # version 1
            most, now = "memory.limit_in_bytes", "memory.usage_in_bytes"
        group = tree / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(tree):
                break
            limit, used = _number(folder / most), _number(folder / now)
            if limit is not None and used is not None:
                yield max(0, limit - used + _droppable(folder / "memory.stat"))


def _droppable(path: Path) -> int:
    """Bytes of files that are kept in memory only as long as nobody needs it for something else."""
    for line in _lines(path):
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or it says `max`."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
