"""Compiling kernels ahead of time, for a GPU that need not be there: registers, spills, what the machine code holds.

`python -m ess_kernels.backends.triton.compilation --capability 90` prints a line for every variant of every kernel.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launches import Launch
from .runtime import interpreting

DOUBLE_PRECISION = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX")


@dataclass(frozen=True)
class Variant:
    """One kernel with everything that its machine code depends on.

    Attributes:
        name: for reports, unique.
        kernel: what `triton.jit` returned.
        arguments: Triton's type of every argument that is no constant, for instance `"*fp64"` or `"i32"`.
        constants: the `tl.constexpr` arguments.
        launch: the rule's choice.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    launch: Launch


@dataclass(frozen=True)
class Resources:
    """What a variant takes on a GPU. Bytes of `spill` are stores and loads together."""

    name: str
    capability: int
    registers: int
    spill: int
    shared: int
    seconds: float
    instructions: int
    matrix_instructions: int
    double_instructions: int
    matrix_shape: str


def variants() -> Iterator[Variant]:
    """Every variant that a launch rule can choose: all that the rooms' modules tell by their `variants()`."""
    package = "ess_kernels.backends.triton"
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if module.name != f"{package}.compilation":
            yield from getattr(importlib.import_module(module.name), "variants", lambda: ())()


def machine_code(variant: Variant, capability: int) -> tuple[Any, str, str]:
    """Triton's compiled kernel, what the assembler said about it, and the disassembled machine code."""
    signature = {
        name: "constexpr" if name in variant.constants else variant.arguments[name] for name in variant.kernel.arg_names
    }
    aligned = {
        (variant.kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*")
    }
    source = ASTSource(variant.kernel, signature=signature, constexprs=dict(variant.constants), attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=variant.launch.options())
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    architecture = f"sm_{capability}a" if capability in (90, 100, 120) else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        # newer architectures may need the assembler that Triton ships beside the usual one
        assembler = tools / (
            "ptxas-blackwell" if capability >= 100 and (tools / "ptxas-blackwell").exists() else "ptxas"
        )
        said = subprocess.run(
            [assembler, "-v", f"-arch={architecture}", ptx, "-o", cubin], capture_output=True, text=True, check=True
        )
        code = subprocess.run([tools / "cuobjdump", "-sass", cubin], capture_output=True, text=True, check=True).stdout
    return compiled, said.stderr + said.stdout, code


def resources(variant: Variant, capability: int) -> Resources:
    """Compiles a variant for `sm_<capability>` and reads what it takes."""
    begin = time.perf_counter()
    compiled, said, code = machine_code(variant, capability)
    seconds = time.perf_counter() - begin
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    operations = Counter(operation.split(".")[0] for operation in _operations(code))
    shapes = re.findall(r"mma\.sync\.aligned\.(m\d+n\d+k\d+)\S*f64", compiled.asm["ptx"])
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None, said
    return Resources(
        name=variant.name,
        capability=capability,
        registers=int(registers.group(1)),
        spill=sum(map(int, spills.groups())) if spills else 0,
        shared=compiled.metadata.shared,
        seconds=seconds,
        instructions=sum(operations.values()),
        matrix_instructions=operations["DMMA"],
        double_instructions=sum(operations[name] for name in DOUBLE_PRECISION),
        matrix_shape=",".join(sorted(set(shapes))) or "-",
    )


def _operations(code: str) -> Iterator[str]:
    for match in re.finditer(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code):
        yield match.group(1)


def one_of_each(chosen: Iterable[Variant]) -> list[Variant]:
    """The last variant of every kernel, which is one of the largest."""
    return list({variant.kernel: variant for variant in chosen}.values())


def _compile(task: tuple[str, int]) -> Resources:
    name, capability = task
    return resources(next(variant for variant in variants() if variant.name == name), capability)


def compile_all(chosen: Iterable[Variant], capabilities: Iterable[int], processes: int = 1) -> Iterator[Resources]:
    """What every variant takes on every architecture, as it becomes known."""
    tasks = [(variant.name, capability) for variant in chosen for capability in capabilities]
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_compile, tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="+", default=[90], help="80, 86, 89, 90, 120, ...")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--one-of-each", action="store_true", help="one variant of every kernel")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    if interpreting():
        parser.error("TRITON_INTERPRET is set: there is nothing to compile")
    chosen = [variant for variant in variants() if arguments.only in variant.name]
    if arguments.one_of_each:
        chosen = one_of_each(chosen)
    for row in compile_all(chosen, arguments.capability, arguments.processes):
        if arguments.json:
            print(json.dumps(asdict(row)), flush=True)
        else:
            print(
                f"sm_{row.capability} {row.name:44s} {row.registers:3d} registers {row.spill:4d} B spill "
                f"{row.shared:6d} B shared {row.instructions:6d} instructions ({row.matrix_instructions} matrix "
                f"{row.matrix_shape}, {row.double_instructions} float64) {row.seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
