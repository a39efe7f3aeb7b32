"""Small states in vector lanes: every answer against one decomposition per position, at every dispatch level."""

from __future__ import annotations

import ctypes

import pytest
import torch
from covering import covering
from identical import assert_same_bits, levels, running

import ess_kernels as ek
from ess_kernels import operators as ops
from ess_kernels.backends.native import abi, call, lanes, memory
from ess_kernels.backends.native.nodes import Nodes
from ess_kernels.backends.native.tokens import surveyed
from ess_kernels.engine.certainty import ENTROPY_BOUND, SURE, count_values, entropy_of_values, near_tie, width_of
from ess_kernels.engine.cost import Cost
from ess_kernels.engine.quadrature import FINE, STANDARD
from ess_kernels.engine.wanted import Wanted
from ess_kernels.operators import Operator
from ess_kernels.testing.cases import CASES, build, names, powers, rand, randn, spectra, truth

pytestmark = pytest.mark.skipif(not levels(), reason="the native library is not here")


@pytest.fixture(autouse=True)
def any_family_and_a_dirty_workspace(monkeypatch):
    """All small states go to the kernels that are tested here, of whatever family. The workspace holds NaN."""
    monkeypatch.setattr(lanes, "takes", lambda op: op.diagonal and op.state_size <= lanes.MAX_STATE_SIZE)
    monkeypatch.setattr(memory.kept, "workspace", memory.aligned(1 << 20).view(torch.uint8).fill_(255))


def engine(op: Operator) -> lanes.NativeLanes:
    supported, found = surveyed(op, op.all_heads())
    assert supported is None
    return lanes.NativeLanes(op, op.all_heads(), found, 1, Cost())


SMALL = [name for name in names(kind="diagonal") if CASES[name].state_size <= lanes.MAX_STATE_SIZE]
TAME = [name for name in SMALL if CASES[name].length > 1 and not CASES[name].growing]


def mamba(channels: int, length: int, n: int = 5, batch: int = 1, **kwargs) -> Operator:
    A = -torch.arange(1.0, n + 1).double().expand(channels, n)
    B, C = randn(batch, n, length), randn(batch, n, length)
    return ops.selective_scan(powers(-3, -1, channels)[:, None] * rand(batch, channels, length), A, B, C, **kwargs)


# --- counts -----------------------------------------------------------------------------------------------------------


@covering(name=TAME, level=levels(), indirect=["level"])
def test_sure_counts_are_right(level, name):
    """What the elimination is sure of needs no second look."""
    op, expected = build(name), truth(name).values
    found = engine(op)
    tolerances = 1.2345 * float(expected.max()) * powers(-1, -7, 7)
    tau = (tolerances / found.unit[:, None])[..., None].expand(-1, -1, -(-op.length // found.group))
    wanted = torch.ones(len(found.unit), len(tolerances), op.length, dtype=torch.bool)
    answer = found.eliminate(Wanted.of(wanted, found.group), tau)
    sure = (width_of(answer.growth) <= SURE) & ~near_tie(answer.growth, answer.least)
    counts = (expected[:, None] > tolerances[:, None, None]).sum(-1)
    if float(expected.max()) > 0:
        assert bool(sure[:, :2].any())
    assert torch.equal(answer.value[..., 1:][sure[..., 1:]], counts[sure[..., 1:]].double())


@pytest.mark.parametrize("name", SMALL)
def test_counts(name):
    op, values = build(name), truth(name).values
    tolerances = [1.2345 * float(values.max() if values.numel() else 1) * 10.0**-k for k in range(1, 8)] + [0.0]
    found, certificate = ek.tolerance_ess(op, tolerances, backend="native", certificate=True)
    for m, tolerance in enumerate(tolerances[:-1]):
        expected = (values > tolerance).sum(-1)
        tied = count_values(values, torch.full_like(values[..., 0], tolerance)).unresolved
        wrong = found[m].view(expected.shape) != expected
        assert not bool((wrong & ~tied).any())
        assert not bool((wrong & ~certificate.unresolved[m].view(wrong.shape)).any())


@covering(each=2, length=[*range(1, 19), 31, 64, 70], n=[1, 8, 9, 16])
def test_counts_at_every_length(length, n):
    torch.manual_seed(length)
    op = mamba(3, length, n)
    values = spectra(op).values
    for tolerance in (1e-1, 1e-4):
        found = ek.tolerance_ess(op, tolerance, backend="native")
        assert torch.equal(found[0], (values > tolerance).sum(-1))


@pytest.mark.parametrize("channels", range(1, 21))
def test_counts_and_entropy_of_any_number_of_heads(channels):
    torch.manual_seed(channels)
    op = mamba(channels, 21, 7, batch=2)
    values = spectra(op).values
    found = ek.tolerance_ess(op, [1e-2, 1e-5], backend="native").flatten(1, 2)
    assert torch.equal(found[0], (values > 1e-2).sum(-1))
    assert torch.equal(found[1], (values > 1e-5).sum(-1))
    entropy = ek.entropy_ess(op, backend="native").flatten(0, 1)
    assert float((entropy - entropy_of_values(values)).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions_are_read_as_they_are(dtype):
    torch.manual_seed(3)
    x = mamba(9, 40, 6)
    op = ops.selective_scan(*(t.to(dtype) for t in (x.delta, x.A, x.B[:, 0], x.C[:, 0])))
    expected = (spectra(op).values > 1e-3).sum(-1)
    assert torch.equal(ek.tolerance_ess(op, 1e-3, backend="native")[0], expected)


def test_tolerance_on_a_value_of_an_eliminated_block():
    """Forced ties: the elimination passes over a pivot that is zero but for rounding."""
    torch.manual_seed(0)
    op = mamba(4, 48, 6)
    values = spectra(op).values
    for position in (8, 16, 24, 31):
        for k in range(3):
            tolerance = float(values[1, position - 1, k])
            found, certificate = ek.tolerance_ess(op, tolerance, backend="native", certificate=True)
            wrong = found[0] != (values > tolerance).sum(-1)
            tied = count_values(values, torch.full_like(values[..., 0], tolerance)).unresolved
            assert not bool((wrong & ~tied).any())
            assert not bool((wrong & ~certificate.unresolved[0]).any())


@pytest.mark.parametrize("task", [ek.tolerance_ess, ek.entropy_ess])
def test_bad_data_stays_where_it_is(task):
    torch.manual_seed(1)
    op = mamba(10, 30)
    bad = ops.selective_scan(op.delta.index_fill(1, torch.tensor([3]), torch.nan), op.A, op.B[:, 0], op.C[:, 0])
    expected, found = (task(x, backend="native")[0] for x in (op, bad))
    assert bool((found[3] == -1).all()) if task is ek.tolerance_ess else bool(found[3].isnan().all())
    rest = [c for c in range(10) if c != 3]
    assert_same_bits(found[rest], expected[rest])


# --- entropy ----------------------------------------------------------------------------------------------------------


@covering(name=TAME, level=levels(), quadrature={"standard": STANDARD, "fine": FINE}, indirect=["level"])
def test_entropy_is_within_its_bound(level, name, quadrature):
    op, expected = build(name), entropy_of_values(truth(name).values)
    found = engine(op)
    cap = found.cap(torch.arange(op.length)).double()
    wanted = torch.ones(len(found.unit), op.length, dtype=torch.bool)
    ess, bound, total = (x[:, 1:] for x in found.estimate(wanted, quadrature, cap))
    error = (ess - expected).abs() / expected.clamp_min(1)
    believed = bound <= ENTROPY_BOUND
    sums = truth(name).values.sum(-1) / found.unit[:, None]
    assert bool(((total - sums).abs() <= bound * sums)[believed].all())
    assert bool((error[believed] < 1e-4).all())
    assert bool((error <= 2 * bound + 1e-6)[bound < 1].all())


@pytest.mark.parametrize("name", SMALL)
def test_entropy(name):
    op, expected = build(name), entropy_of_values(truth(name).values)
    found = ek.entropy_ess(op, backend="native").view(expected.shape)
    assert bool(((found - expected).abs() <= 1e-4 * expected.clamp_min(1)).all())


@pytest.mark.parametrize("n", [3, 8, 16])
@pytest.mark.parametrize("length", range(6, 14))
def test_entropy_at_every_length(length, n):
    torch.manual_seed(length)
    op = mamba(3, length, n)
    found = ek.entropy_ess(op, backend="native").view(-1, length - 1)
    assert float((found - entropy_of_values(spectra(op).values)).abs().max()) < 1e-4


# --- bits -------------------------------------------------------------------------------------------------------------


def test_same_bits_for_any_threads_and_company(level):
    torch.manual_seed(2)
    op = mamba(21, 40, 11)
    whole = ek.tolerance_ess(op, [1e-2, 1e-5], backend="native", certificate=True)
    entropy = ek.entropy_ess(op, backend="native")
    with running(threads=3):
        again = ek.tolerance_ess(op, [1e-2, 1e-5], backend="native", certificate=True)
        assert_same_bits(again[0], whole[0])
        assert_same_bits(again[1].width, whole[1].width)
        assert_same_bits(ek.entropy_ess(op, backend="native"), entropy)
    for part in ([5], [20, 3], list(range(7, 16))):
        mine = ops.selective_scan(op.delta[:, part], op.A[part], op.B[:, 0], op.C[:, 0])
        counts, certificate = ek.tolerance_ess(mine, [1e-2, 1e-5], backend="native", certificate=True)
        assert_same_bits(counts, whole[0][:, :, part])
        assert_same_bits(certificate.width, whole[1].width[:, :, part])
        assert_same_bits(ek.entropy_ess(mine, backend="native"), entropy[:, part])


def test_only_what_is_wanted_is_written(level):
    torch.manual_seed(4)
    found = engine(mamba(5, 30))
    tau = torch.full((5, 2, 4), 1e-2).double() / found.unit[:, None, None]
    wanted = torch.zeros(5, 2, 4, dtype=torch.bool)
    wanted[1, 0, 2] = wanted[4, 1, 1] = wanted[4, 1, 3] = True
    out = [torch.full((5, 2, 30), 7.5).double() for _ in range(3)]
    call.run(abi.LanesCounts(found.tokens.pointer, 2, *(x.data_ptr() for x in (tau, wanted, *out))))
    touched = wanted.repeat_interleave(8, -1)[..., :30]
    everything = found.eliminate(Wanted.of(torch.ones_like(touched), found.group), tau)
    for x, complete in zip(out, everything):
        assert bool((x[~touched] == 7.5).all())
        assert_same_bits(x[touched], complete[touched])


# --- the door ---------------------------------------------------------------------------------------------------------


def test_errors(pinned):
    found, nodes = engine(mamba(2, 9)), Nodes(STANDARD)
    tau, out = torch.ones(2, 1, 2).double(), torch.ones(2, 1, 9).double()
    wanted = torch.ones(2, 1, 3, dtype=torch.uint8)  # three blocks for entropies, two for counts

    def counts(**fields):
        addresses = (x.data_ptr() for x in (tau, wanted, *[out] * 3))
        return changed(abi.LanesCounts(found.tokens.pointer, 1, *addresses), fields)

    def entropy(**fields):
        addresses = (x.data_ptr() for x in (wanted, out, out, out, out))
        return changed(abi.LanesEntropy(found.tokens.pointer, nodes.pointer, *addresses), fields)

    def changed(structure, fields):
        for name, value in fields.items():
            setattr(structure, name, value)
        return structure

    def copy(structure, **fields):
        return ctypes.pointer(changed(type(structure).from_buffer_copy(structure), fields))

    def refused(job, message):
        with pytest.raises(ValueError, match=f"ess_{job.kernel}: {message}"):
            call.run(job)

    for make in (counts, entropy):
        call.run(make())
        for name, kind in make()._fields_:
            if kind is not ctypes.c_int64:
                refused(make(**{name: None}), "null pointer")
        structure = found.tokens._structure
        for field, value, message in [
            ("states", 17, "size"),
            ("length", 0, "size"),
            ("heads", 0, "size"),
            ("lookup", structure.read, "size"),
            *((name, None, "null pointer") for name in ("read", "write", "gate", "read_unit", "write_unit")),
        ]:
            refused(make(tokens=copy(structure, **{field: value})), message)
        # the heads' own addresses
        for name in ("read", "write", "gate", "rate", "write_scale"):
            assert getattr(structure, name) is not None
            addresses = (ctypes.c_void_p * 2)(1 << 20, None)
            refused(make(tokens=copy(structure, **{name: ctypes.addressof(addresses)})), "null pointer")
    refused(counts(tolerances=0), "size")
    for name in ("t", "total_weight", "mixed_weight"):
        refused(entropy(quadrature=copy(nodes._structure, **{name: None})), "null pointer")
    for wrong in (99, 0, -1):
        refused(entropy(quadrature=copy(nodes._structure, nodes=wrong)), "size")
