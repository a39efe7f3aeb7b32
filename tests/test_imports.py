"""No module of the package imports itself by way of others: read from the sources, so that nothing is imported."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ess_kernels

ROOT = Path(ess_kernels.__file__).parent


def name_of(path: Path) -> str:
    parts = ("ess_kernels", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in ROOT.rglob("*.py")}


def imported(module: str) -> set[str]:
    """Modules of the package that are imported when `module` is: at the top of the file, not inside its functions.

    A package is not said to need itself where its modules name it (`from . import abi` means `abi` alone).
    """
    package = module if PATHS[module].stem == "__init__" else module.rpartition(".")[0]
    names = set()
    for statement in ast.parse(PATHS[module].read_text()).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - statement.level] if statement.level else []
            origin = ".".join([*above, *filter(None, [statement.module])])
            for alias in statement.names:
                names.add(f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in PATHS else origin)
    return (names & PATHS.keys()) - {module}


def test_imports_are_seen():
    assert "ess_kernels.backends.native.choice" in imported("ess_kernels.backends.native")
    assert "ess_kernels.backends.native.abi" in imported("ess_kernels.backends.native.call")
    assert "ess_kernels.engine.engine" in imported("ess_kernels.engine.certain")
    assert sum(len(imported(module)) for module in PATHS) > 300


def test_no_circle():
    """`TopologicalSorter` raises an error that names the modules of a circle."""
    order = TopologicalSorter({module: imported(module) for module in PATHS}).static_order()
    assert set(order) == PATHS.keys()
