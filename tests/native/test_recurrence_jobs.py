"""What the kernels of recurrences refuse: the fields of their jobs one by one."""

import ctypes

import pytest
import torch
from native_recurrence import Native, some_tokens

from ess_kernels.backends.native import abi, call
from ess_kernels.backends.native.memory import aligned
from ess_kernels.backends.native.nodes import Nodes
from ess_kernels.engine.quadrature import STANDARD

NULL, SIZE, WORKSPACE, LEVEL = 1, 2, 5, 6


def changed(structure, **fields):
    """A copy of a structure with other values of some fields, `outer__inner` being a field of a nested structure."""
    copy = type(structure).from_buffer_copy(structure)
    copy.alive = structure, fields
    for name, value in fields.items():
        *outer, last = name.split("__")
        place = copy
        for part in outer:
            place = getattr(place, part)
        setattr(place, last, value)
    return copy


def pointers_of(job):
    """Names of the fields that are pointers, of nested structures too."""
    names = []
    for name, kind in job._fields_:
        if issubclass(kind, ctypes.Structure):
            names += [f"{name}__{inner}" for inner in pointers_of(kind)]
        elif kind is ctypes.c_void_p or issubclass(kind, ctypes._Pointer):
            names.append(name)
    return names


class Door:
    """Jobs of dense transitions, and what the library says to them where there is no workspace."""

    def __init__(self):
        self.native = native = Native(some_tokens("dense after"), 16)
        self.handle, self.run = call.current()
        self.nodes = Nodes(STANDARD)
        heads, blocks = native.parts.structure.heads, native.parts.structure.blocks
        tau = torch.ones(heads, 1, blocks, dtype=torch.float64)
        wanted = torch.ones(tau.shape, dtype=torch.bool)
        self.out = [torch.full((heads, 1, native.length), -7.0, dtype=torch.float64) for _ in range(4)]
        self.roots, (room, made) = native.observe_roots(), native.outsides()
        self.products = aligned(2, 16, 16).fill_(-7.0)
        self.heads, self.positions = torch.tensor([0, 1]), torch.tensor([5, 3])
        self.alive = tau, wanted, room, made

        def addresses(*tensors):
            return [x.data_ptr() for x in tensors]

        parts, length = native.parts.pointer, native.length
        counts = abi.RecurrenceCounts(parts, None, length, 1, *addresses(tau, wanted, *self.out[:3]))
        rooting = native.rooting(self.roots)
        asked = addresses(self.heads, self.positions, self.products)
        entropy = addresses(wanted, *self.out)
        self.jobs = {
            "parts": native.making,
            "counts": counts,
            "observe_roots": rooting,
            "unsquared_counts": abi.RecurrenceUnsquaredCounts(counts, *addresses(self.roots, room, made)),
            "root_products": abi.RecurrenceRootProducts(rooting, 2, *asked),
            "entropy": abi.RecurrenceEntropy(parts, None, length, None, self.nodes.pointer, *entropy),
        }

    def code(self, job, run=None):
        """The error code, which is also what the question for the workspace says if it is not the workspace itself."""
        run = self.run if run is None else run
        query = getattr(self.handle, f"ess_{job.kernel}_workspace")(run, job)
        found = getattr(self.handle, f"ess_{job.kernel}")(run, job)
        assert query == -found if found != WORKSPACE else query > 0
        return found

    def parts(self, **fields):
        return ctypes.pointer(changed(self.native.parts.structure, **fields))


@pytest.fixture
def door(level):
    made = Door()
    yield made
    # calls that fail leave the result alone
    assert all(bool((x == -7.0).all()) for x in (*made.out, made.products))


# null: the parts are filled, and every block has a scale of its own
MAY_BE_NULL = {
    "counts": {"tokens"},
    "unsquared_counts": {"counts__tokens"},
    "entropy": {"tokens", "scale"},
}
POINTERS = {"parts": 3, "counts": 7, "observe_roots": 4, "unsquared_counts": 10, "root_products": 7, "entropy": 9}


@pytest.mark.parametrize("name", POINTERS)
def test_jobs_are_checked(door, name):
    job = door.jobs[name]
    assert door.code(job) == WORKSPACE  # there is none
    pointers = pointers_of(job)
    assert len(pointers) == POINTERS[name]
    for pointer in pointers:
        wanted = WORKSPACE if pointer in MAY_BE_NULL.get(name, ()) else NULL
        assert door.code(changed(job, **{pointer: None})) == wanted, pointer
    assert door.code(job, abi.Run(0, door.run.level, None, 0)) == SIZE
    assert door.code(job, abi.Run(1, 17, None, 0)) == LEVEL
    (place,) = (x for x in pointers if x.split("__")[-1] == "parts")
    wrong = [{"n": 12}, {"n": 0}, {"n": 1 << 20}, {"c": 12}, {"c": 128}, {"heads": 0}, {"blocks": -1}]
    for fields in (*wrong, {"reserved": 1}, {"transitions": -1}, {"transitions": 4}):
        assert door.code(changed(job, **{place: door.parts(**fields)})) == SIZE
    for array in ("X", "Z", "Y", "Phi", "F", "Q"):
        assert door.code(changed(job, **{place: door.parts(**{array: None})})) == NULL
        misaligned = door.native.parts.arrays[array].data_ptr() + 8
        assert door.code(changed(job, **{place: door.parts(**{array: misaligned})})) == SIZE
    assert door.code(changed(job, **{place: door.parts(norms=None)})) == WORKSPACE  # it may be missing


def test_sizes_are_checked(door):
    counts, length = door.jobs["counts"], door.native.length
    for fields in ({"length": 0}, {"length": length + 16}, {"tolerances": 0}, {"tolerances": -1}):
        assert door.code(changed(counts, **fields)) == SIZE
        nested = {f"counts__{name}": value for name, value in fields.items()}
        assert door.code(changed(door.jobs["unsquared_counts"], **nested)) == SIZE
    assert door.code(changed(door.jobs["entropy"], length=0)) == SIZE
    assert door.code(changed(door.jobs["entropy"], length=length + 16)) == SIZE
    # parts are made on the way where transitions are diagonal, from as many tokens as are counted
    assert door.code(changed(counts, tokens=door.native.arguments.pointer)) == SIZE
    diagonal = Native(some_tokens("diagonal after"), 16)
    counts = changed(counts, parts=diagonal.parts.pointer, tokens=diagonal.arguments.pointer)
    assert door.code(counts) == WORKSPACE
    assert door.code(changed(counts, length=length - 1)) == SIZE
    # and never without squares
    unsquared = changed(door.jobs["unsquared_counts"], counts__parts=diagonal.parts.pointer)
    assert door.code(unsquared) == WORKSPACE
    assert door.code(changed(unsquared, counts__tokens=diagonal.arguments.pointer)) == SIZE

    build = door.jobs["parts"]
    assert door.code(changed(build, transition_stride=-1)) == SIZE
    assert door.code(changed(build, parts=door.parts(heads=1))) == SIZE
    tokens = door.native.arguments._structure
    for fields in ({"heads": 1}, {"states": 17}, {"length": length + 16}):
        assert door.code(changed(build, tokens=ctypes.pointer(changed(tokens, **fields)))) == SIZE
    for name in ("read", "write", "read_unit", "write_unit"):
        assert door.code(changed(build, tokens=ctypes.pointer(changed(tokens, **{name: None})))) == NULL
    addresses = door.native.addresses.clone()
    addresses[1] = 0
    assert door.code(changed(build, transition=addresses.data_ptr())) == NULL


def test_alignment_is_checked(door):
    places = {"observe_roots": ["observe_roots"], "unsquared_counts": ["observe_roots", "outsides"]}
    places["root_products"] = ["roots__observe_roots", "products"]
    for name, fields in places.items():
        for field in fields:
            at = door.jobs[name]
            for part in field.split("__"):
                at = getattr(at, part)
            assert door.code(changed(door.jobs[name], **{field: at + 8})) == SIZE


def test_positions_are_checked(door):
    job = door.jobs["root_products"]
    length = door.native.length
    wrong = [([0, 2], [5, 3]), ([-1, 1], [5, 3]), ([1, 0], [5, 3]), ([0, 0], [5, 3]), ([0, 1], [0, 3])]
    for bad in (*wrong, ([0, 1], [5, length])):
        heads, positions = (torch.tensor(x) for x in bad)
        assert door.code(changed(job, heads=heads.data_ptr(), positions=positions.data_ptr())) == SIZE
    assert door.code(changed(job, count=0)) == SIZE


def test_lookups_are_checked(door):
    """They are there where transitions have a rank-one term, and nowhere else."""
    native = Native(some_tokens("rank one after"), 16)
    tokens, length = native.arguments._structure, native.length
    room = torch.zeros(2, length, dtype=torch.float64)

    def with_tokens(job, **fields):
        return changed(job, tokens=ctypes.pointer(changed(tokens, **fields)))

    counts = changed(door.jobs["counts"], parts=native.parts.pointer, tokens=native.arguments.pointer)
    for job in (native.making, counts):
        assert door.code(job) == WORKSPACE
        assert door.code(with_tokens(job, update=None)) == WORKSPACE
        assert door.code(with_tokens(job, update=None, lookup=None)) == SIZE
        assert door.code(with_tokens(job, lookup=None)) == SIZE
        assert door.code(with_tokens(job, gate=None)) == NULL
        for name in ("lookup", "update"):
            address = getattr(tokens, name)
            addresses = (ctypes.c_void_p * 2).from_address(address)
            missing = (ctypes.c_void_p * 2)(addresses[0], None)
            assert door.code(with_tokens(job, **{name: ctypes.addressof(missing)})) == NULL
    for transitions in (0, 1, 2):
        other = ctypes.pointer(changed(native.parts.structure, transitions=transitions))
        assert door.code(changed(native.making, parts=other)) == SIZE
    assert door.code(changed(door.native.making, tokens=native.arguments.pointer)) == SIZE
    # these know diagonal transitions only
    assert door.code(abi.TokensLost(native.arguments.pointer, 16, room.data_ptr())) == SIZE
    small = Native(some_tokens("rank one after", n=8), 16).arguments.pointer
    assert door.code(abi.LanesCounts(small, 1, *[room.data_ptr()] * 5)) == SIZE
