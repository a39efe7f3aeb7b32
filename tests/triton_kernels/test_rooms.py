"""Which room of `backends/triton/` imports which: read from the sources, so that nothing needs to be importable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ess_kernels.backends import triton as package

HERE = Path(package.__file__).parent
# what the files of a room may import besides the common files and each other, bottom up
ROOMS: dict[str, set[str]] = {
    "staircase": set(),
    "recurrence": {"staircase"},
    "matrix": {"staircase"},
    "attention": set(),
    "spectra": set(),
}


def relative_imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Where the imports of a file lead inside `backends/triton/`, as parts of a path; others are left out.

    In the room `staircase`, `from ..tiles import x` leads to `("tiles",)` and `from . import leaf` to `("staircase",
    "leaf")`.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        folder = path.parent.relative_to(HERE).parts
        above = node.level - 1
        if above > len(folder):
            continue
        base = folder[: len(folder) - above]
        module = tuple(node.module.split(".")) if node.module else ()
        for alias in node.names:
            yield (*base, *module) if module else (*base, alias.name)


def test_every_folder_is_a_room_that_says_what_it_is_for():
    folders = {path.name for path in HERE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS)
    for room in ROOMS:
        # without this file the room's kernels would be missing from compilation.variants(), and nobody would notice
        body = ast.parse((HERE / room / "__init__.py").read_text()).body
        assert len(body) == 1 and ast.get_docstring(ast.Module(body, [])), room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_lies_below_it(room):
    for path in (HERE / room).glob("*.py"):
        for target in relative_imports(path):
            assert target[0] not in ROOMS or target[0] in ROOMS[room] | {room}, (path.name, target)


def test_common_files_import_no_room():
    for path in HERE.glob("*.py"):
        if path.name != "__init__.py":
            assert not [target for target in relative_imports(path) if target[0] in ROOMS], path.name


def test_only_kernels_are_imported_inside_functions():
    """The package imports no triton before a kernel is needed; everything else is imported at the top."""
    for path in HERE.rglob("*.py"):
        outside = ast.parse(path.read_text()).body
        inside = [
            node
            for statement in outside
            if not isinstance(statement, ast.Import | ast.ImportFrom)
            for node in ast.walk(statement)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        if path != HERE / "__init__.py":
            assert not inside, path
        for node in inside:
            assert isinstance(node, ast.ImportFrom) and node.level == 1 and node.module, ast.unparse(node)
            assert node.module.split(".")[0] in ROOMS, ast.unparse(node)
