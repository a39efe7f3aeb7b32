"""Compiles csrc/ with Clang for x86-64 and for ARM (`zig c++` of the package ziglang), warnings being errors.

What this machine can run must pass the self-test with which every library is opened. The rest is compiled and linked,
and must be a shared object for its machine that exports the whole C ABI.
"""

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINES = {"x86_64-linux-gnu": 62, "aarch64-linux-gnu": 183}  # e_machine of ELF
SHARED_OBJECT = 3  # e_type
# without exceptions: the C++ runtime, which would have to be compiled first, is not needed then
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-ffp-contract=fast"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'csrc'}"]
SELF_TEST = """
from ess_kernels.backends.native.choice import open_library
import pathlib, sys
found = open_library(pathlib.Path(sys.argv[1]))
sys.exit(found.reason or print("self-test passed:", found.build_info))
"""


def runs_here(target: str) -> bool:
    return sys.platform == "linux" and target.startswith(os.uname().machine)


def build(target: str, folder: Path) -> Path:
    """The shared object for a target, compiled file by file on all processors."""
    zig = [sys.executable, "-m", "ziglang"]
    environment = os.environ | {f"ZIG_{kind}_CACHE_DIR": str(folder / "cache") for kind in ("GLOBAL", "LOCAL")}

    def compile_one(source: Path) -> str:
        result = folder / f"{target}-{source.stem}.o"
        command = [*zig, "c++", "-target", target, *FLAGS, "-c", str(source), "-o", str(result)]
        subprocess.run(command, check=True, env=environment)
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sorted((ROOT / "csrc").rglob("*.cpp"))))
    library = folder / f"{target}.so"
    command = [*zig, "cc", "-target", target, "-shared", *objects, "-o", str(library)]
    # what is only looked at needs no runtime library, and those would have to be compiled first
    subprocess.run(command if runs_here(target) else [*command, "-nostdlib"], check=True, env=environment)
    return library


def check_elf(library: Path, machine: int) -> None:
    content = library.read_bytes()
    assert content[:6] == b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file was expected"
    kind, found = struct.unpack_from("<HH", content, 16)
    assert (kind, found) == (SHARED_OBJECT, machine), (
        f"type {kind}, machine {found}; expected {SHARED_OBJECT}, {machine}"
    )
    headers = "".join(header.read_text() for header in (ROOT / "csrc" / "include").glob("ess_*.h"))
    kernels = re.findall(r"^ESS_KERNEL\((\w+)\);", headers, re.MULTILINE)
    declared = set(re.findall(r"^ESS_API [\w\s*]*?\b(ess_\w+)\(", headers, re.MULTILINE))
    declared |= {f"ess_{kernel}{end}" for kernel in kernels for end in ("", "_workspace")}
    missing = sorted(name for name in declared if b"\0" + name.encode() + b"\0" not in content)
    assert kernels and not missing, f"not in the library: {missing}"
    print(f"{library.stem}: a shared object with {len(declared)} functions, {len(content) >> 10} KiB")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for target, machine in MACHINES.items():
            library = build(target, Path(folder))
            check_elf(library, machine)
            if runs_here(target):
                subprocess.run([sys.executable, "-c", SELF_TEST, str(library)], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
