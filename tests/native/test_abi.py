"""The C headers, the library and the structures in Python agree, and every kernel refuses what none can take."""

import ctypes
import re
from pathlib import Path

import pytest
import torch

from ess_kernels.backends.native import abi, call, library, spectra

CSRC = Path(__file__).parents[2] / "csrc"
NULL, SIZE, LEVEL = 1, 2, 6

needs_library = pytest.mark.skipif(library().handle is None, reason=f"native library: {library().reason}")


def headers() -> str:
    """The text of all headers of the ABI, without comments."""
    text = "\n".join(path.read_text() for path in sorted((CSRC / "include").glob("*.h")))
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def declared_structures() -> dict[str, list[tuple[str, str]]]:
    """Names and kinds of the fields of every structure of the headers; the kind of a pointer is `pointer`."""
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", headers(), re.DOTALL):
        fields = []
        for declaration in body.split(";"):
            if not declaration.strip():
                continue
            kind, first, *_ = re.findall(r"\w+", declaration.replace("const ", ""))
            names = declaration[declaration.index(kind) + len(kind) :].split(",")
            assert first in names[0]
            for text in names:
                fields.append((re.findall(r"\w+", text)[-1], "pointer" if "*" in text else kind))
        found[name] = fields
    return found


def kind_of(field: type) -> str:
    if field is ctypes.c_void_p or issubclass(field, ctypes._Pointer):
        return "pointer"
    if issubclass(field, ctypes.Structure):
        return next(name for name, structure in abi.STRUCTURES.items() if structure is field)
    return {ctypes.c_int64: "int64_t", ctypes.c_int32: "int32_t", ctypes.c_double: "double"}[field]


def test_structures_are_those_of_the_headers():
    declared = declared_structures()
    assert declared.keys() == abi.STRUCTURES.keys()
    for name, structure in abi.STRUCTURES.items():
        assert [(field, kind_of(kind)) for field, kind in structure._fields_] == declared[name], name


def test_version_is_that_of_the_headers():
    assert re.findall(r"#define ESS_ABI_VERSION (\d+)", headers()) == [str(abi.VERSION)]


def test_kernels_are_those_of_the_headers_and_of_the_table():
    prototypes = re.findall(r"^ESS_KERNEL\((\w+)\);", headers(), re.MULTILINE)
    rows = re.findall(r"^ +KERNEL\((\w+), \w+::\w+\)", (CSRC / "dispatch" / "levels.h").read_text(), re.MULTILINE)
    assert sorted(prototypes) == sorted(rows) == sorted(abi.JOBS)


@needs_library
def test_sizes_are_those_of_the_library():
    assert abi.wrong_size(library().handle) is None


@needs_library
@pytest.mark.parametrize("name", abi.STRUCTURES)
def test_a_structure_of_another_size_is_named(monkeypatch, name):
    class Longer(ctypes.Structure):
        _fields_ = [*abi.STRUCTURES[name]._fields_, ("more", ctypes.c_int64)]

    size = ctypes.sizeof(abi.STRUCTURES[name])
    monkeypatch.setitem(abi.STRUCTURES, name, Longer)
    assert abi.wrong_size(library().handle) == f"{name} has {size} bytes, expected {size + 8}"


@needs_library
def test_sizes_of_unknown_structures():
    for name in (b"ess_nothing", b"ess_ru", b"ess_run_", b"", None):
        assert library().handle.ess_size_of(name) == -1


@needs_library
@pytest.mark.parametrize("kernel", abi.JOBS)
def test_every_kernel_refuses(kernel):
    handle, job = library().handle, abi.JOBS[kernel]()

    def code(run, job):
        found = getattr(handle, f"ess_{kernel}")(run, job)
        assert getattr(handle, f"ess_{kernel}_workspace")(run, job) == -found
        return found

    good = abi.Run(1, 0, None, 0)
    assert code(None, job) == NULL
    assert code(good, None) == NULL
    assert code(None, None) == NULL
    for threads in (0, -1, 1 << 20):
        assert code(abi.Run(threads, 0, None, 0), job) == SIZE
    for level in (-1, 4, 99):
        assert code(abi.Run(1, level, None, 0), job) == LEVEL
    for level in (1, 2, 3):
        if library().level(level) is None:
            assert code(abi.Run(1, level, None, 0), job) == LEVEL
    # nothing is read through the pointers of an empty job
    assert code(good, job) in (NULL, SIZE)


@pytest.mark.parametrize("kernel", abi.JOBS)
def test_where_nothing_is_pinned_no_kernel_is_called(kernel):
    assert not call.is_pinned()
    for use in (call.run, call.workspace):
        with pytest.raises(RuntimeError, match="no compiled library is pinned"):
            use(abi.JOBS[kernel]())


def test_where_nothing_is_pinned_nothing_else_is_called_either():
    for use in (
        call.current,
        lambda: call.size("matrix_products_size", 70),
        lambda: spectra.singular_values(torch.eye(3)[None]),
    ):
        with pytest.raises(RuntimeError, match="no compiled library is pinned"):
            use()
