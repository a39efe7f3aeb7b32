"""Only what pyproject.toml cannot say: the optional compiled library.

`csrc/` has a plain C ABI and is opened with ctypes, so it depends on no version of Python or torch and its file has a
fixed name. Where it cannot be compiled, the package is installed without it and says so in `ess_kernels.show_config()`.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

WINDOWS = sys.platform == "win32"
SUFFIX = ".dll" if WINDOWS else ".so"
# Vector types are those of GCC and Clang, so Microsoft's compiler does not get far: no library there. Products and sums
# are meant to be fused; the last two let square roots and choices between lanes be single instructions.
STANDARD = ["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
OPENMP = ["-fopenmp"]

# No -march=native: a wheel is used on other machines than the one that built it.
library = Extension(
    "ess_kernels.backends._native",
    sources=sorted(str(path) for path in Path("csrc").rglob("*.cpp")),
    depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
    include_dirs=["csrc"],
    language="c++",
    optional=True,
)


class BuildLibrary(build_ext):
    """Builds a library for ctypes, not a Python module: a fixed file name, no PyInit symbol, OpenMP if there is one."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # the header marks what is exported

    def build_extensions(self) -> None:
        """With as many sources at a time as there are processors: the kernels are compiled once per dispatch level."""
        compile_all = self.compiler.compile
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

        def compile_in_parallel(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(processors) as pool:
                objects = pool.map(lambda source: compile_all([source], **options), sources)
                return [path for paths in objects for path in paths]

        self.compiler.compile = compile_in_parallel
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        try:
            self._compile(ext, OPENMP)
        except Exception as error:
            self.warn(f"building without OpenMP: {error}")
            try:
                self._compile(ext, [])
            except Exception:
                self._remove_old(ext)
                raise  # setuptools turns it into a warning, the extension being optional

    def _compile(self, ext: Extension, openmp: list[str]) -> None:
        ext.extra_compile_args = STANDARD + openmp
        ext.extra_link_args = openmp
        super().build_extension(ext)

    def _remove_old(self, ext: Extension) -> None:
        """A library that an earlier build left would be used as if it were this one."""
        places = {self.build_lib, "."} if self.editable_mode or self.inplace else {self.build_lib}
        for place in places:
            Path(place, self.get_ext_filename(ext.name)).unlink(missing_ok=True)


class Wheel(bdist_wheel):
    """Tags the wheel py3-none-<platform> with the library in it, and py3-none-any without."""

    def run(self) -> None:
        self.run_command("build_ext")  # before the tag is chosen: only now is it known whether there is a library
        build = self.get_finalized_command("build_ext")
        self.root_is_pure = not Path(build.build_lib, build.get_ext_filename(library.name)).exists()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if not self.root_is_pure else (python, abi, platform)


setup(ext_modules=[library], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel})
