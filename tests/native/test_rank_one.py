"""Transitions with a rank-one term in the compiled kernels: hard cases of their parts, roots and answers."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from covering import covering
from every_position import singular_values
from hard_rank_one import HARD, RankOne, hard_tokens
from identical import assert_same_bits, assert_same_for_any_threads, levels, running
from native_recurrence import Native, some_tokens

import ess_kernels as ek
from ess_kernels.backends.native import abi, call
from ess_kernels.backends.native.memory import aligned
from ess_kernels.backends.native.recurrence import NativeRecurrence
from ess_kernels.engine.blocks import block_parts, cut
from ess_kernels.engine.cost import Cost
from ess_kernels.engine.lost_rank_one import TokenSizes
from ess_kernels.engine.state_space import Recurrence
from ess_kernels.operators.rank_one import RankOneStateSpace
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import matrix_of, randn

UPDATES = {"no updates": False, "updates": True}
ORDERS = {"after": False, "before": True}
# of the largest entry of a part, or of one that is zero but for rounding
PRECISION, NOTHING = 1e-13, 1e-2


@pytest.fixture
def level(level):
    with running(threads=1):
        yield level


@functools.cache
def expected_parts(name, before, c):
    """By the twin in PyTorch, and by products of the transitions one after the other."""
    tokens = replace(hard_tokens(name), reads_before=before)
    matrices = replace(tokens, transition=tokens.matrices(), lookup=None)
    return block_parts(cut(tokens, c)), block_parts(cut(matrices, c))


@covering(each=4, level=levels(), name=list(HARD), updates=UPDATES, before=ORDERS, c=[16, 64], indirect=["level"])
def test_parts(level, name, updates, before, c):
    tokens = replace(hard_tokens(name, updates=updates), reads_before=before)
    native, n = Native(tokens, c), tokens.read.shape[2]
    m = native.parts.structure.n
    X, Z = native.array("X", c, m), native.array("Z", c, m)
    Y, Phi = native.array("Y", c, c).flip(-2), native.array("Phi", m, m).mT
    assert bool((Y.triu() == 0).all())
    for padding in (X[..., n:], Z[..., n:], Phi[..., :n, n:], Phi[..., n:, :n]):
        assert bool((padding == 0).all())
    assert torch.equal(Phi[..., n:, n:], torch.eye(m - n, dtype=torch.float64).expand_as(Phi[..., n:, n:]))
    for expected in expected_parts(name, before, c):
        parts = {"X": (X[..., :n], expected.X), "Y": (Y, expected.Y.tril(-1)), "Z": (Z[..., :n], expected.Z)}
        parts["Phi"] = (Phi[..., :n, :n], expected.Phi)
        for part, (found, wanted) in parts.items():
            error = (found - wanted).abs().max()
            assert error <= PRECISION * wanted.abs().max().clamp_min(NOTHING), part


@pytest.mark.parametrize(
    "kind, scale",
    [("delta after", 1.0), ("rank one before", 1.0), ("rank one before", 1e-200), ("rank one after", 1e200)],
)
def test_sizes_of_tokens(level, kind, scale):
    """The norms of lookups and updates may be far apart."""
    # 12 states are padded to 16, with transitions that are no part of the answer
    plain = some_tokens(kind, n=12)
    plain = replace(plain, transition=1e-3 * plain.transition)
    if plain.update is None:
        plain = replace(plain, lookup=1e-3 * plain.lookup)
    tokens = plain
    if scale != 1:
        tokens = replace(plain, lookup=plain.lookup * scale, update=plain.update / scale)
    native = Native(tokens, 16)
    found = native.array("norms").flatten(1).unflatten(1, (-1, 4))[:, : tokens.read.shape[1]].unbind(-1)
    wanted = TokenSizes.of(plain)
    for name, x, y in zip(TokenSizes._fields, found, wanted):
        # beside zero what is left of a norm is rounding, of which the root is taken
        assert_close(name, x / y.amax(), y / y.amax(), rtol=1e-7 if name == "norm" else 1e-13)
    exact = torch.linalg.matrix_norm(plain.matrices(), 2)
    assert bool((found[2] >= exact * (1 - 1e-12)).all())


@pytest.mark.parametrize("kind", ["delta after", "rank one before"])
def test_lost(level, kind):
    """What rounding in the states may have taken is what PyTorch says of the same blocks."""
    tokens = some_tokens(kind, n=16)
    op = RankOne(tokens)
    mine = NativeRecurrence(op, op.all_heads(), None, 16, Cost())
    theirs = Recurrence(tokens, 16, Cost())
    assert not bool(mine.growing.any())
    assert_close("lost", mine._lost(1)[:, 0] * mine.unit, theirs._lost(1)[:, 0] * theirs.unit, rtol=1e-10, atol=0)


@covering(each=2, level=levels(), name=list(HARD), updates=UPDATES, before=ORDERS, indirect=["level"])
def test_root_steps(level, name, updates, before):
    """Singular values at single positions come from roots that every token moves."""
    tokens = replace(hard_tokens(name, updates=updates), reads_before=before)
    native, T = Native(tokens, 16), matrix_of(tokens)
    m = native.parts.structure.n
    positions = torch.arange(1, native.length)
    heads, products = torch.ones_like(positions), aligned(len(positions), m, m)
    pointers = (x.data_ptr() for x in (heads, positions, products))
    roots = native.observe_roots()
    call.run(abi.RecurrenceRootProducts(native.rooting(roots), len(positions), *pointers))
    found, known = torch.linalg.svdvals(products), singular_values(T)
    for i, values in zip(positions.tolist(), found, strict=True):
        expected = known[i][1, : native.n]
        # rounding in the states is in proportion to reads and writes, which have norms of about one
        most = 1e-14 * max(float(expected[0]), 1.0)
        assert_close("values", values[: len(expected)], expected, rtol=0, atol=most)
        assert bool((values[len(expected) :] <= most).all())


def known_values(op):
    """Singular values `[N, L - 1, n]` of all positions, zero padded."""
    known = singular_values(op.dense().tril(-1))[1:]
    n = op.state_size
    return torch.stack([torch.nn.functional.pad(v[:, :n], (0, n - v[:, :n].shape[1])) for v in known], 1)


def entropies(values):
    """Those of singular values `[..., n]`; 0 where all are zero."""
    total = values.sum(-1, keepdim=True)
    return torch.special.entr(values / total).sum(-1).exp().where(total[..., 0] > 0, 0.0)


@covering(each=2, level=levels(), name=list(HARD), updates=UPDATES, indirect=["level"])
def test_counts_and_entropies(level, name, updates):
    op = RankOne(hard_tokens(name, length=201, n=19, updates=updates))
    values = known_values(op)
    top = float(values.max())
    # where every write is erased by the next token, or nothing is written, H is zero but for rounding
    nothing = top < 1e-9
    tau = torch.logspace(-1, -7, 7, dtype=torch.float64) * (1.0 if nothing else top)
    counts, certificate = ek.tolerance_ess(op, tau, backend="native", certificate=True)
    assert torch.equal(counts, (values > tau[:, None, None, None]).sum(-1))
    assert not bool(certificate.unresolved.any())
    found = ek.singular_values(op, range(1, op.length), backend="native")
    assert_close("values", found, values, rtol=0, atol=1e-13 * max(top, 1.0))
    if nothing:
        return
    entropy, certificate = ek.entropy_ess(op, backend="native", certificate=True)
    assert_close("entropy", entropy, entropies(values), rtol=1e-4)
    assert not bool(certificate.unresolved.any())


@covering(each=3, level=levels(), n=[8, 24, 70, 100, 131], length=[2, 33, 130], indirect=["level"])
def test_sizes(level, n, length):
    """Blocks of 16, 32 and 64 tokens, states that fill no vector, lengths that fill no block."""
    for kind in ("delta after", "rank one before"):
        op = RankOne(some_tokens(kind, length=length, n=n))
        values = known_values(op)
        tau = torch.tensor([1e-1, 1e-4], dtype=torch.float64) * float(values.max())
        expected = (values > tau[:, None, None, None]).sum(-1)
        assert torch.equal(ek.tolerance_ess(op, tau, backend="native"), expected)
        assert_close("entropy", ek.entropy_ess(op, backend="native"), entropies(values), rtol=1e-4)


def gated_delta(heads=3, length=90, n=11, with_lookup=False, with_update=False, **changes):
    """`RankOneStateSpace` of one group of keys, with other lookups and updates, and with `changes` of its arguments."""
    torch.manual_seed(5)
    q, k, lookup, update = torch.nn.functional.normalize(randn(4, 1, length, 1, n), dim=-1)
    g = -0.1 * randn(1, length, heads, n).abs()
    given = {"q": q, "k": k, "g": g, "write_scale": randn(1, length, heads).sigmoid()} | changes
    if with_lookup:
        given["lookup"] = lookup
    if with_update:
        given["update"] = -update
    return RankOneStateSpace(given.pop("q"), given.pop("k"), given.pop("g"), **given)


def test_tensors_are_read_where_they_lie():
    """Shared keys, gates of one number a token, and other precisions: the same bits as tokens that are written out."""
    shared = -0.1 * randn(1, 90, 3).abs()
    for changes in (
        {},
        {"with_lookup": True},
        {"with_update": True, "looks_up_decayed": False},
        {"with_lookup": True, "with_update": True},
        {"g": shared[..., None].expand(-1, -1, -1, 11), "scale": 0.3},
        {"write_scale": None},
    ):
        op = gated_delta(**changes)
        for x in (op, RankOneStateSpace(op.q.float(), op.k.bfloat16(), op.g.float(), lookup=op.lookup)):
            written = RankOne(x.tokens(x.all_heads()))
            tau = torch.tensor([1e-2, 1e-5], dtype=torch.float64)
            counts = ek.tolerance_ess(x, tau, backend="native")
            assert torch.equal(counts[:, 0], ek.tolerance_ess(written, tau, backend="native"))
            assert torch.equal(counts, ek.tolerance_ess(x, tau, backend="reference"))
            entropies = (ek.entropy_ess(y, backend="native").view(3, -1) for y in (x, written))
            assert_close("entropy", *entropies, rtol=1e-7)


def answers(op):
    counts, certificate = ek.tolerance_ess(op, [1e-2, 1e-6], backend="native", certificate=True)
    entropy = ek.entropy_ess(op, backend="native")
    return [x.squeeze(-3).movedim(-2, 0) for x in (counts, certificate.width, certificate.unresolved, entropy)]


def test_threads_change_nothing():
    assert_same_for_any_threads(lambda: answers(gated_delta(with_lookup=True, with_update=True)), (1, 2, 3))
    assert_same_for_any_threads(lambda: answers(gated_delta()), (1, 2, 3))


@covering(
    each=3,
    name=["q", "k", "g", "write_scale", "lookup", "update"],
    bad=[math.nan, math.inf, -math.inf],
    place=[0, 40, 89],
)
def test_bad_numbers_mark_their_head_alone(name, bad, place):
    torch.manual_seed(7)
    tensors = {x: torch.nn.functional.normalize(randn(1, 90, 3, 11), dim=-1) for x in ("q", "k", "lookup", "update")}
    tensors["update"] = -0.5 * tensors["update"]
    tensors |= {"g": -0.1 * randn(1, 90, 3, 11).abs(), "write_scale": randn(1, 90, 3).sigmoid()}

    def make():
        given = dict(tensors)
        return RankOneStateSpace(given.pop("q"), given.pop("k"), given.pop("g"), **given)

    good = answers(make())
    x = tensors[name] = tensors[name].clone()
    x[0, place, 1] = torch.where(torch.arange(11) == 6, bad, x[0, place, 1]) if x.dim() == 4 else bad
    found = answers(make())
    others = [0, 2]
    assert_same_bits([x[others] for x in found], [x[others] for x in good])
    if name == "g" and bad == -math.inf:
        assert bool((found[0][1] >= 0).all())  # a gate that lets nothing pass
        return
    assert bool((found[0][1] == -1).all()) and bool(found[3][1].isnan().all())


def test_heads_that_grow():
    """Keys that are not normalised, and gates above one: such heads go to PyTorch, the others stay."""
    torch.manual_seed(9)
    q, k = torch.nn.functional.normalize(randn(2, 1, 300, 3, 11), dim=-1)
    g = -0.1 * randn(1, 300, 3, 11).abs()
    good = answers(RankOneStateSpace(q, k, g))
    k[:, :, 1] *= 4.0
    op = RankOneStateSpace(q, k, g)
    found = answers(op)
    assert_same_bits([x[[0, 2]] for x in found], [x[[0, 2]] for x in good])
    expected = ek.tolerance_ess(op, [1e-2, 1e-6], backend="torch")
    assert torch.equal(found[0][1], expected[:, 0, 1])
    # a little growth that stays representable is no reason to leave
    g = g + 0.02
    op = RankOneStateSpace(q[:, :, ::2], k[:, :, ::2], g[:, :, ::2])
    counts, certificate = ek.tolerance_ess(op, 1e-3, backend="native", certificate=True)
    assert torch.equal(counts, ek.tolerance_ess(op, 1e-3, backend="reference"))
    assert not bool(certificate.unresolved.any())


@pytest.mark.parametrize("updates", [False, True], ids=["no updates", "updates"])
@pytest.mark.parametrize("read, write", [(300, -400), (-500, 100), (200, 500)])
def test_powers_of_two_change_no_bit(level, updates, read, write):
    """Units are taken out of reads and writes; what a token takes away goes with its write, unless it is given."""
    tokens = some_tokens("rank one after" if updates else "delta after", length=90, n=24)
    scaled = replace(tokens, read=tokens.read * 2.0**read, write=tokens.write * 2.0**write)
    if not updates:
        scaled = replace(scaled, lookup=tokens.lookup * 2.0**-write)
    unit = 2.0 ** (read + write)
    op, other = RankOne(tokens), RankOne(scaled)
    for atol in (1e-1, 1e-4, 1e-9):
        expected, certificate = ek.tolerance_ess(op, atol, backend="native", certificate=True)
        found, same = ek.tolerance_ess(other, atol * unit, backend="native", certificate=True)
        assert_same_bits([found, same.width, same.unresolved], [expected, certificate.width, certificate.unresolved])
    values, scaled_values = (ek.singular_values(x, range(1, 90, 7), backend="native") for x in (op, other))
    assert_same_bits(scaled_values / unit, values)
    assert_same_bits(ek.entropy_ess(other, backend="native"), ek.entropy_ess(op, backend="native"))
