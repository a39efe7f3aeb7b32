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


@needs_library
def test_sizes_whose_bytes_cannot_be_counted_are_refused():
    """No product of sizes may overflow: neither in a check nor where a kernel measures its workspace."""
    handle = library().handle
    numbers = torch.ones(64, dtype=torch.float64)
    address = numbers.data_ptr() + -numbers.data_ptr() % 64
    heads = (ctypes.c_void_p * 8)(*[address] * 8)
    first = ctypes.addressof(heads)

    def tokens(**fields):
        found = abi.Tokens(heads=1, length=10, states=4, read=first, write=first, gate=first)
        found.read_unit = found.write_unit = address
        for name, value in fields.items():
            setattr(found, name, value)
        return ctypes.pointer(found)

    def parts(**fields):
        arrays = dict.fromkeys(("X", "Z", "Y", "Phi", "F", "Q"), address)
        return ctypes.pointer(abi.Recurrence(**{"heads": 1, "blocks": 1, "n": 8, "c": 16, **arrays, **fields}))

    def matrix(heads, length):
        return ctypes.pointer(abi.Matrix(heads, length, address, length, length**2, address))

    quadrature = ctypes.pointer(abi.Quadrature(8, address, address, address))
    jobs = [
        *(abi.TokensLost(tokens(length=1000), span, address) for span in (2**60, 2**61, 2**63 - 1)),
        *(abi.TokensSurvey(tokens(length=length), address, address, address) for length in (2**41, 2**62)),
        abi.TokensSurvey(tokens(heads=2, length=2**40, states=1024), address, address, address),
        abi.RecurrenceParts(parts(blocks=2**58 + 1, c=64), tokens(), None, 0),
        abi.RecurrenceParts(parts(heads=2**40, blocks=2**20), tokens(heads=2**40), None, 0),
        abi.RecurrenceCounts(parts(), None, 10, 2**62, *[address] * 5),
        abi.RecurrenceCounts(parts(blocks=2**40), None, 2**43, 1, *[address] * 5),
        abi.RecurrenceEntropy(parts(blocks=2**58 + 1, c=64), None, 10, None, quadrature, *[address] * 5),
        abi.LanesCounts(tokens(length=2**60), 1, *[address] * 5),
        abi.LanesCounts(tokens(), 2**60, *[address] * 5),
        abi.MatrixNorm(matrix(2**40, 2**20), 1, address, address),
        abi.MatrixLargest(matrix(2**40, 2**20), address),
        abi.JudgeCounts(2, 1, 3, 1, 1, 1, 1, 1, abi.Blur(address, 2**63 - 1), *[address] * 9),
        abi.JudgeCounts(2**40, 2**40, 3, 1, 1, 1, 1, 1, abi.Blur(None, 1), *[address] * 9),
        abi.GroupWidths(2, 1, 3, 2**63 - 1, 0, 0, 1.0, *[address] * 4),
        abi.CompareCounts(2, 1, 3, 2**63 - 1, 1.0, *[address] * 3, abi.Blur(None, 1), *[address] * 4),
        abi.JudgeEntropy(2, 3, 2**63 - 1, quadrature, *[address] * 6),
        abi.AttentionRows(2**40, 2**20, 4, address, address, None, 1.0, 0.0, 0, 0, 2**20, address, 2**20),
    ]
    room = torch.zeros(1 << 20, dtype=torch.uint8)
    run = abi.Run(1, 0, room.data_ptr() + -room.data_ptr() % 64, len(room) - 64)
    for number, job in enumerate(jobs):
        assert getattr(handle, f"ess_{job.kernel}")(run, job) == SIZE, (number, job.kernel)
        assert getattr(handle, f"ess_{job.kernel}_workspace")(run, job) == -SIZE, (number, job.kernel)
    assert bool((numbers == 1).all())
