"""Whole calls: `backend="native"` against the definition, and the same bits for any number of threads and any batch.

Each kernel has tests of its own beside this file. These are few and small, for they run under sanitizers too.
"""

import math

import pytest
import torch
from identical import assert_same_bits, assert_same_for_any_threads, levels, running
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.backends.native import NativeBackend
from ess_kernels.backends.native.recurrence import NativeRecurrence
from ess_kernels.engine import certainty
from ess_kernels.engine.state_space import lost_in
from ess_kernels.operators.rank_one import RankOneStateSpace
from ess_kernels.testing.cases import rand, randn

pytestmark = pytest.mark.skipif(
    NativeBackend().unavailable() is not None, reason=f"native library: {NativeBackend().unavailable()}"
)
HEADS = 11  # more than a vector has lanes, and no multiple of them


def gla(heads, length=90, n=24):
    q, k, g = (randn(1, length, HEADS, n)[:, :, heads] for _ in range(3))
    return operators.gla(q / math.sqrt(n), k, logsigmoid(g + 1) / 4, scale=1.0)


def mamba(heads, length=50, n=16):
    delta = 0.1 * rand(1, HEADS, length)[:, heads]
    A = -torch.arange(1.0, n + 1, dtype=torch.float64).expand(HEADS, n)[heads]
    return operators.selective_scan(delta, A, randn(1, n, length), randn(1, n, length))


def dense_transitions(heads, length=40, n=6):
    A = torch.linalg.qr(randn(HEADS, length, n, n))[0][heads] * 0.9
    return operators.recurrence(A, randn(HEADS, length, n)[heads], randn(HEADS, length, n)[heads], diagonal=False)


def delta_rule(heads, length=90, n=24):
    q, k = (torch.nn.functional.normalize(randn(1, length, HEADS, n), dim=-1)[:, :, heads] for _ in range(2))
    g, beta = -rand(1, length, HEADS, n)[:, :, heads] / 8, rand(1, length, HEADS)[:, :, heads]
    return RankOneStateSpace(q, k, g, write_scale=beta)


def dplr(heads, length=90, n=24):
    q, k, a = (torch.nn.functional.normalize(randn(1, length, HEADS, n), dim=-1)[:, :, heads] for _ in range(3))
    g, rate = -rand(1, length, HEADS, n)[:, :, heads] / 8, rand(1, length, HEADS, 1)[:, :, heads]
    return RankOneStateSpace(q, k, g, lookup=-a, update=rate * a, looks_up_decayed=False)


def attention(heads, length=150, d=8):
    q, k = (randn(1, HEADS, length, d)[:, heads] for _ in range(2))
    return operators.attention(2 * q, k, scale=1 / math.sqrt(d))


FAMILIES = {
    "gla": gla,
    "mamba": mamba,
    "dense transitions": dense_transitions,
    "delta rule": delta_rule,
    "dplr": dplr,
    "attention": attention,
}
TOLERANCES = [1e-1, 1e-3, 1e-6]
CALLS = {
    "tolerance_ess": lambda op: ek.tolerance_ess(op, atol=TOLERANCES, backend="native"),
    "certificate": lambda op: ek.tolerance_ess(op, backend="native", certificate=True)[1],
    "entropy_ess": lambda op: ek.entropy_ess(op, backend="native"),
    "singular_values": lambda op: ek.singular_values(op, [1, 7, 20, 39], k=4, backend="native"),
}


def make(family, heads=slice(None)):
    """The same heads whatever is asked for beside them."""
    torch.manual_seed(7)
    return FAMILIES[family](heads)


def skip_if_refused(call, op):
    reason = NativeBackend().refuses("tolerance_ess" if call == "certificate" else call, op)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_number_of_threads(family, call):
    op = make(family)
    skip_if_refused(call, op)
    assert_same_for_any_threads(lambda: CALLS[call](op), (1, 2, 4))


@pytest.mark.parametrize("call", ["tolerance_ess", "entropy_ess"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_batch(family, call):
    skip_if_refused(call, make(family))
    axis = -2
    for level in levels():
        with running(level=level):
            expected = CALLS[call](make(family))
            for heads in ([3], [10, 0, 5], list(range(HEADS - 1, -1, -1))):
                assert_same_bits(CALLS[call](make(family, heads)), expected.index_select(axis, torch.tensor(heads)))


@pytest.mark.parametrize("family", FAMILIES)
def test_against_the_definition(family):
    heads = [0, 4, 9]
    op = make(family, heads)
    skip_if_refused("tolerance_ess", op)
    counts = ek.tolerance_ess(op, atol=TOLERANCES, backend="reference")
    for level in levels():
        with running(level=level, threads=2):
            assert torch.equal(ek.tolerance_ess(op, atol=TOLERANCES, backend="native"), counts)


def faint(family, heads):
    """A long one, and a tolerance between singular values at 1e-8 of the largest: no place for squares."""
    torch.manual_seed(7)
    length, n = (200, 8) if family == "dense transitions" else (400, 12)
    op = FAMILIES[family](heads, length=length, n=n)
    return op, 3e-8 * float(ek.singular_values(op, [op.length // 2], k=1).max())


@pytest.mark.parametrize("family", ["gla", "dense transitions"])
def test_far_below_the_largest_singular_value(family, monkeypatch):
    """Counts come from roots, a block at a time; only near the ends, where ranks are not full, are values needed."""
    op, tau = faint(family, [1, 6])
    expected = ek.tolerance_ess(op, tau, backend="reference")
    found = []
    values_at = NativeRecurrence.values_at

    def noting(engine, heads, positions):
        found.append(positions)
        return values_at(engine, heads, positions)

    monkeypatch.setattr(NativeRecurrence, "values_at", noting)
    counts, certificate = ek.tolerance_ess(op, tau, backend="native", certificate=True)
    assert torch.equal(counts, expected)
    # rounding in the states is not looked at closely where it is no reason for doubt
    blur = max(certainty.BLURRED, 1.02 * lost_in(op, op.all_heads()).max() / tau)
    assert certificate.redone.all() and not certificate.unresolved.any() and (certificate.width <= 1e-6 + blur).all()
    by_values = torch.cat(found)
    assert ((by_values < 64) | (by_values > op.length - 64)).all()


@pytest.mark.parametrize("family", ["gla", "dense transitions", "delta rule"])
def test_bits_far_below(family):
    op, tau = faint(family, list(range(5)))

    def call(op):
        counts, certificate = ek.tolerance_ess(op, [tau, 10 * tau], backend="native", certificate=True)
        return torch.stack([counts.double(), certificate.width])

    assert_same_for_any_threads(lambda: call(op), (1, 3))
    assert_same_bits(call(faint(family, [3, 1])[0]), call(op).index_select(-2, torch.tensor([3, 1])))


@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_against_the_definition(family):
    op = make(family, [0, 4, 9])
    skip_if_refused("entropy_ess", op)
    expected = ek.entropy_ess(op, backend="reference")
    for level in levels():
        with running(level=level, threads=2):
            assert ((ek.entropy_ess(op, backend="native") / expected - 1).abs() < 1e-4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_data_marks_its_head_and_no_other(family):
    op = make(family)
    skip_if_refused("tolerance_ess", op)
    good = ek.tolerance_ess(op, backend="native").reshape(HEADS, -1)
    bad = make(family)
    spoiled = bad.inputs[0]
    spoiled.select(list(spoiled.shape).index(HEADS), 2)[..., -1] = math.nan
    found = ek.tolerance_ess(bad, backend="native").reshape(HEADS, -1)
    assert (found[2] == -1).all()
    others = [h for h in range(HEADS) if h != 2]
    assert torch.equal(found[others], good[others])


def test_leaves_beside_each_other():
    """Factors that are made anew for one leaf are made anew for its neighbours in the vector, who must not notice.

    Heads 4 and 2 share a vector of leaves here; one of them needs other factors than the other.
    """
    for level in levels():
        with running(level=level, threads=1):
            for pair in ([4, 2], [2, 4], [4, 4], [4, 10], [10, 4]):
                for positions in (range(64, 96), range(1, 150)):
                    alone = [certificate_of([head], positions) for head in pair]
                    assert_same_bits(certificate_of(pair, positions), torch.cat(alone, -2))


def certificate_of(heads, positions):
    return ek.tolerance_ess(make("attention", heads), positions=positions, backend="native", certificate=True)[1].width
