"""`show_config()`: what this installation consists of, which backends are in use, and why the others are not."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ess_kernels import _requirements, environment, processes
from ess_kernels._version import __version__
from ess_kernels.memory import budget_in_bytes

# Distribution names, asked for their version and never imported: some take seconds, and triton looks for a GPU.
OPTIONAL_PACKAGES = ("triton", "safetensors", "matplotlib", "transformers", "flash-linear-attention")


@dataclass(frozen=True)
class BackendReport:
    """One backend: whether it is usable on this machine, and in a few words why (not)."""

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Config:
    """The answer of `show_config()`. `str()` is a report for people, `to_dict()` plain values for JSON."""

    version: str
    location: str  # the folder that the package was imported from
    python: str
    platform: str
    torch: str
    numpy: str
    packages: dict[str, str | None]  # optional packages: version, or None where it is not installed
    cpus: int  # processors that this process may use
    threads: int  # torch.get_num_threads(), 0 without torch
    cuda: str  # "no", or the number of devices and torch's CUDA (or ROCm) version
    memory_budget: int  # bytes
    native: str  # build, dispatch level and threads of the compiled library, or why it is not used
    backends: list[BackendReport]
    problems: list[str] = field(default_factory=list)  # settings that could not be understood

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("ess-kernels", f"{self.version}, in {self.location}"),
            ("python", self.python),
            ("platform", self.platform),
            ("torch", self.torch),
            ("numpy", self.numpy),
            *((name, version or "not installed") for name, version in self.packages.items()),
            ("CPU", f"{self.cpus} usable" + (f", torch uses {_threads(self.threads)}" if self.threads else "")),
            ("CUDA", self.cuda),
            ("memory budget", f"{_size(self.memory_budget)} ({environment.MEMORY_BUDGET})"),
            ("native library", self.native),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        lines.append("backends" if self.backends else "backends: none")
        width = max((len(backend.name) for backend in self.backends), default=0)
        for backend in self.backends:
            lines.append(f"  {backend.name:<{width}}  {'usable' if backend.usable else 'not used'}: {backend.reason}")
        lines.extend(f"problem: {problem}" for problem in self.problems)
        return "\n".join(lines)


def show_config() -> Config:
    """Versions, machine, settings and backends, as they are now.

    Asks torch whether CUDA is there, and imports no optional package. Never raises because of a setting, nor because
    torch or numpy is missing: what keeps the package from working is listed in `problems`.
    """
    try:
        budget = budget_in_bytes()
    except ValueError:  # among the problems
        budget = environment.DEFAULT_MEMORY_BUDGET
    problem = _requirements.problem()
    return Config(
        version=__version__,
        location=str(Path(__file__).parent),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _installed(name) for name in OPTIONAL_PACKAGES},
        cpus=_usable_cpus(),
        memory_budget=budget,
        problems=([problem] if problem else []) + environment.problems(),
        **(_without_requirements() if problem else _with_requirements()),
    )


def _with_requirements() -> dict[str, Any]:
    import numpy
    import torch

    from ess_kernels import backends

    return {
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "cuda": _cuda(torch),
        "native": _native(),
        "backends": [BackendReport(b.name, b.usable, b.reason) for b in backends.describe()],
    }


def _without_requirements() -> dict[str, Any]:
    missing = _requirements.missing()
    needed = f"not used: {' and '.join(missing)} cannot be imported"
    return {
        **{name: missing.get(name) or _installed(name) or "installed" for name in _requirements.REQUIRED},
        "threads": 0,
        "cuda": f"not known without {' and '.join(missing)}",
        "native": needed,
        "backends": [],
    }


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _native() -> str:
    from ess_kernels.backends.native.choice import allowed_threads, library
    from ess_kernels.backends.native.file import LIBRARY

    found = library()
    if found.reason is not None:
        return found.reason
    limited = ", for this process was forked" if processes.forked() else ""
    text = f"{found.build_info}, {found.level(environment.cpu_level())}, {_threads(allowed_threads())}{limited}"
    chosen = environment.native_library()
    return f"{text}, from {chosen}" if chosen not in (None, LIBRARY) else text


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may allow fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cuda(torch: Any) -> str:
    if not torch.cuda.is_available():
        return "no"
    count = torch.cuda.device_count()
    version = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"{count} device{'s' * (count != 1)}, {version}"


def _size(n: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= unit:
            return f"{n / unit:.4g} {name}"
    return f"{n} bytes"
