"""Files form floors: whatever a file imports or includes lies below it, in Python and in C++."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "ess_kernels" / "backends" / "native"
PACKAGE = "ess_kernels.backends.native"
CSRC = ROOT / "csrc"

# lowest first; rooms of one floor know nothing of each other
FLOORS = [
    {"include", "base"},
    {"dense"},
    {"leaves"},
    {"recurrence", "lanes", "matrix", "spectra"},
    {"dispatch"},
    {"abi"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def order(graph: dict[str, set[str]]) -> list[str]:
    """Names, each behind those that it needs.

    Raises:
        graphlib.CycleError: there is a circle; the message names its members.
    """
    return list(TopologicalSorter(graph).static_order())


# --- Python -----------------------------------------------------------------------------------------------------------

MODULES = {path.stem: ast.parse(path.read_text()) for path in sorted(PYTHON.glob("*.py"))}
IMPORTS = (ast.Import, ast.ImportFrom)


def targets(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """Full names of what an import statement of the package names: modules, and names inside of modules."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    package = PACKAGE.split(".")
    above = package[: len(package) + 1 - statement.level] if statement.level else []
    return [".".join([*above, *filter(None, [statement.module]), alias.name]) for alias in statement.names]


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, `__init__` standing for the package itself."""
    found = set()
    for statement in ast.walk(MODULES[module]):
        if not isinstance(statement, IMPORTS):
            continue
        for target in targets(statement):
            if f"{target}.".startswith(f"{PACKAGE}."):
                name = target[len(PACKAGE) + 1 :].split(".")[0]
                found.add(name if name in MODULES else "__init__")
    return found


def test_imports_of_modules_are_seen():
    """Else nothing that follows means anything."""
    assert {"abi", "memory"} <= imported("call") and imported("abi") == set()
    assert {"choice", "engines"} <= imported("__init__")
    for code, names in (
        ("from . import abi", [f"{PACKAGE}.abi"]),
        ("from .abi import Job", [f"{PACKAGE}.abi.Job"]),
        ("from ...engine import cost", ["ess_kernels.engine.cost"]),
        (f"import {PACKAGE}.abi", [f"{PACKAGE}.abi"]),
        (f"from {PACKAGE} import abi", [f"{PACKAGE}.abi"]),
    ):
        assert targets(ast.parse(code).body[0]) == names


def test_no_module_imports_itself_by_way_of_others():
    assert set(order({module: imported(module) for module in MODULES})) == MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_no_function_imports(module):
    for function in ast.walk(MODULES[module]):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = [ast.unparse(x) for x in ast.walk(function) if isinstance(x, IMPORTS)]
            assert not inside, f"{module}.{function.name}"


# --- C++ --------------------------------------------------------------------------------------------------------------

FILES = {
    str(path.relative_to(CSRC)): path.read_text() for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cpp")
}


def room_of(file: str) -> str:
    return Path(file).parts[0]


def included(file: str) -> list[str]:
    """Files that a file includes, as it names them; of the headers of `include/`, which are plain C for anybody who has
    that folder alone, the full name."""
    names = re.findall(r'^\s*#\s*include\s*"([^"]*)"', FILES[file], re.MULTILINE)
    return [f"include/{name}" if room_of(file) == "include" and "/" not in name else name for name in names]


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} == FLOOR_OF.keys()
    assert {path.name for path in CSRC.iterdir()} == FLOOR_OF.keys()
    assert all(len(Path(file).parts) == 2 for file in FILES)


@pytest.mark.parametrize("file", FILES)
def test_what_is_included_lies_below(file):
    for other in included(file):
        assert other in FILES, f"{file} includes {other}, which is not there, or does not name its room"
        if room_of(other) != room_of(file):
            assert FLOOR_OF[room_of(other)] < FLOOR_OF[room_of(file)], f"{file} includes {other}"


def test_no_file_includes_itself_by_way_of_others():
    assert set(order({file: set(included(file)) for file in FILES})) == FILES.keys()
    assert sum(len(included(file)) for file in FILES) > len(FILES)


@pytest.mark.parametrize("file", FILES)
def test_files_and_lines_are_short(file):
    lines = FILES[file].splitlines()
    assert len(lines) <= 400
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []
