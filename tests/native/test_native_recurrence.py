"""The compiled kernels of recurrences one by one: parts, scans, counts and root products, at every dispatch level."""

import math
from dataclasses import replace

import pytest
import torch
from covering import covering
from every_position import singular_values
from identical import assert_same_bits, levels, running
from native_recurrence import Native, some_tokens

import ess_kernels as ek
from ess_kernels.backends.native import abi, call
from ess_kernels.backends.native.memory import aligned
from ess_kernels.backends.native.tokens import NativeTokens, surveyed
from ess_kernels.backends.sources import source_of, supported_heads
from ess_kernels.engine.blocks import block_parts, cut
from ess_kernels.engine.boundary import observe_gramians, observe_roots, reach_roots
from ess_kernels.engine.lost import SPAN as LOST_SPAN
from ess_kernels.engine.lost import lost_in_states
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import matrix_of, randn

SQUARED = {"squared": True, "unsquared": False}
KINDS = [f"{kind} {order}" for kind in ("diagonal", "dense", "delta", "rank one") for order in ("after", "before")]


@pytest.fixture
def level(level):
    with running(threads=2):
        yield level


@covering(each=3, level=levels(), kind=KINDS, c=[8, 16, 32], indirect=["level"])
def test_parts_and_scans(level, kind, c):
    tokens = some_tokens(kind)
    native, expected = Native(tokens, c), block_parts(cut(tokens, c))
    n, m = native.n, native.parts.structure.n
    assert m == 16
    X, Z, F = native.array("X", c, m), native.array("Z", c, m), native.array("F", m, m)
    assert_close("X", X[..., :n], expected.X, rtol=1e-12, atol=1e-13)
    assert_close("Z", Z[..., :n], expected.Z, rtol=1e-12, atol=1e-13)
    assert_close("Y", native.array("Y", c, c).flip(-2), expected.Y.tril(-1), rtol=1e-12, atol=1e-13)
    if tokens.diagonal:
        assert_close("Phi", native.array("Phi", m)[..., :n], expected.Phi, rtol=1e-12, atol=1e-13)
    else:
        assert_close("Phi", native.array("Phi", m, m).mT[..., :n, :n], expected.Phi, rtol=1e-12, atol=1e-13)
    for padding in (X[..., n:], Z[..., n:], F[..., n:, :], F[..., n:]):
        assert bool((padding == 0).all())
    # a root is known up to the signs of its columns; memory holds F^T row by row
    assert bool((F.tril(-1) == 0).all())
    roots = reach_roots(expected)
    assert_close("P", (F.mT @ F)[..., :n, :n], roots.mT @ roots, rtol=1e-11, atol=1e-12)
    Q = native.array("Q", m, m).mT.tril()[..., :n, :n]
    assert_close("Q", Q, observe_gramians(expected).tril(), rtol=1e-11, atol=1e-12)
    G = native.observe_roots()
    assert bool((G.tril(-1) == 0).all())
    outlooks = observe_roots(expected)
    assert_close("root of Q", (G.mT @ G)[..., :n, :n], outlooks.mT @ outlooks, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("heads", "length"), [(1, 300), (1, 9), (5, 77), (40, 20)])
@pytest.mark.parametrize("kind", ["diagonal after", "delta after", "rank one before"])
def test_answers_on_the_way(level, kind, heads, length):
    """Blocks that are answered while the scans go on have the same bits as later, and leave the same parts."""
    tokens = some_tokens(kind, heads=heads, length=length)
    tau = torch.tensor([1.0, 1e-3], dtype=torch.float64)

    def everything(filled):
        counted, summed = Native(tokens, 8, filled), Native(tokens, 16, filled)
        answers = (counted.counts(tau), *summed.entropy_sums())
        lower = [native.array("Q", 16, 16).triu() for native in (counted, summed)]
        others = [x for native in (counted, summed) for name, x in native.parts.arrays.items() if name != "Q"]
        return [x.clone() for x in (*answers, *lower, *others)]

    expected = everything(True)
    assert not bool(expected[0].isnan().any())
    for threads in (1, 2, 3, 5):
        with running(threads=threads):
            for _ in range(3):  # as threads come and go
                assert_same_bits(everything(False), expected)


@pytest.mark.parametrize("n", [5, 8, 16])
def test_layouts_of_matrices(level, n):
    """The same matrices by rows, by columns and spread out, constant and not: the same recurrence."""
    torch.manual_seed(n)
    A = 0.9 * torch.linalg.qr(torch.randn(2, 70, n, n, dtype=torch.float64)).Q.contiguous()
    B, C = torch.randn(2, 2, 70, n, dtype=torch.float64)
    spread = torch.zeros(2, 70, n, 2 * n, dtype=torch.float64)[..., ::2]
    known = ek.operators.recurrence(A, B, C, diagonal=False)
    expected = {tau: ek.tolerance_ess(known, tau, backend="reference") for tau in (1e-3, 1e-7)}
    values = ek.singular_values(known, [9, 40], backend="reference")
    for same in (A, A.mT.contiguous().mT, spread.copy_(A), A.flip(0).flip(0)):
        op = ek.operators.recurrence(same, B, C, diagonal=False)
        assert torch.equal(op.dense(), known.dense())
        for tau, counts in expected.items():  # by elimination, and by roots
            assert torch.equal(ek.tolerance_ess(op, tau, backend="native"), counts)
        assert_close("values", ek.singular_values(op, [9, 40], backend="native"), values, rtol=1e-9, atol=1e-13)
    one = A[:, 3].mT.contiguous().mT
    op = ek.operators.recurrence(one, B[:, 0], C[:, 0], diagonal=False, length=50)
    assert torch.equal(ek.tolerance_ess(op, 1e-2, backend="native"), ek.tolerance_ess(op, 1e-2, backend="reference"))


@covering(each=4, level=levels(), kind=KINDS, sizes=[(8, 3), (16, 16), (32, 24)], squared=SQUARED, indirect=["level"])
def test_counts(level, kind, sizes, squared):
    c, n = sizes
    tokens = some_tokens(kind, n=n)
    native, known = Native(tokens, c), singular_values(matrix_of(tokens))
    tau = torch.logspace(-5, 1, 7, dtype=torch.float64)
    counts, growth, least = native.counts(tau, squared=squared)
    assert bool((counts[..., 0] == 0).all()) and bool((growth >= 0).all()) and bool((least > 0).all())
    for i in range(1, native.length):
        values = known[i][:, None]
        assert torch.equal(counts[..., i], (values > tau[:, None]).sum(-1).double())


@pytest.mark.parametrize("squared", [True, False], ids=["squared", "unsquared"])
def test_a_tolerance_on_a_singular_value_is_seen(level, squared):
    """Of an outside block it makes the growth large; of a position itself it leaves a row of nothing."""
    tokens = some_tokens("diagonal after", n=8)
    native, T, c = Native(tokens, 16), matrix_of(tokens), 16
    outside = torch.linalg.svdvals(T[1, 2 * c :, :c])[2:3]
    easy = native.counts(outside * 1.01, squared=squared)[1, 1, 0]
    hard = native.counts(outside, squared=squared)[1, 1, 0]
    assert hard[c : 2 * c].min() > 1e3 * easy[c : 2 * c].max()
    own = torch.linalg.svdvals(T[1, 24:, :24])[2:3]
    _, growth, least = native.counts(own, squared=squared)[:, 1, 0]
    assert least[24] < 1e-8 * (1 + growth[24])
    assert least[23] > 1e-6 and least[25] > 1e-6


@covering(level=levels(), kind=KINDS, indirect=["level"])
def test_unsquared_counts_far_down(level, kind):
    """Where squares say nothing any more: right to within the width, which stays small inside a long sequence."""
    n, c, eps = 12, 16, 2**-52
    tokens = some_tokens(kind, length=160, n=n)
    read = tokens.read * torch.logspace(0, -6, n, dtype=torch.float64)
    tokens = replace(tokens, read=read)
    native, known = Native(tokens, c), singular_values(matrix_of(tokens))
    tau = torch.logspace(-9, -5, 5, dtype=torch.float64)
    counts, growth, _ = native.counts(tau, squared=False)
    for i in range(1, native.length):
        values = known[i][:, None]
        uncertain = growth[..., i, None] * eps + 30 * eps * values[..., :1] / tau[:, None]
        near = (values / tau[:, None] - 1).abs() <= uncertain
        right = (counts[..., i] - (values > tau[:, None]).sum(-1)).abs() <= near.sum(-1)
        assert bool((right | (growth[..., i] * eps > 0.1)).all())
    # the other head's transitions are zero in the middle
    inner, squared = slice(2 * c, native.length - 2 * c), native.counts(tau)[1]
    assert growth[1, 3, inner].median() < 1e-4 * squared[1, 3, inner].median()


@pytest.mark.parametrize("kind", KINDS)
def test_root_products(level, kind):
    tokens = some_tokens(kind)
    native, T = Native(tokens, 16), matrix_of(tokens)
    where = [(0, 1), (0, 15), (0, 16), (0, 40), (0, 41), (1, 7), (1, 76)]
    heads, positions = (torch.tensor(x) for x in zip(*where))
    m = native.parts.structure.n
    products, roots = aligned(len(where), m, m), native.observe_roots()
    pointers = (x.data_ptr() for x in (heads, positions, products))
    call.run(abi.RecurrenceRootProducts(native.rooting(roots), len(where), *pointers))
    for (head, i), product in zip(where, products):
        values, found = torch.linalg.svdvals(T[head, i:, :i])[: native.n], torch.linalg.svdvals(product)
        assert_close("values", found[: len(values)], values, rtol=0, atol=1e-14 * float(values[0]))
        assert bool((found[len(values) :] <= 1e-14 * values[0]).all())


def test_unwanted_blocks_are_left_alone(level):
    native = Native(some_tokens("diagonal after"), 16)
    tau = torch.tensor([1e-2, 1.0], dtype=torch.float64)
    everything = native.counts(tau)
    wanted = torch.zeros(2, 2, native.parts.structure.blocks, dtype=torch.bool)
    wanted[0, 1, 3] = wanted[1, 0, 0] = True
    some = native.counts(tau, wanted)
    asked = wanted.repeat_interleave(16, -1)[..., : native.length].expand(3, -1, -1, -1)
    assert torch.equal(some[asked], everything[asked])
    assert bool(some[~asked].isnan().all())


def odd_sources():
    """Sources of several heads, some of them not supported, by name."""
    inf, nan = float("inf"), float("nan")

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    q, k, g = randn(1, 300, 6, 11), randn(1, 300, 6, 11), -randn(1, 300, 6, 11).abs()
    yield "supported", ek.operators.gla(q, k, g)
    bad = q.clone()
    bad[0, 299, 1, 10], bad[0, 0, 2, 0], bad[0, 257, 3, 3] = inf, nan, -inf
    yield "reads that are no numbers", ek.operators.gla(bad, k, g)
    bad = g.clone()
    bad[0, 7, 0, 0], bad[0, 299, 1, 10], bad[0, 3, 2, 9], bad[0, 4, 3, 8] = -inf, 1e-3, nan, inf
    yield "gates", ek.operators.gla(q.float(), k.bfloat16(), bad)
    yield "too large together", ek.operators.gla(q * 1e200, k * torch.logspace(0, 300, 6).double()[:, None], g)
    delta, A = randn(2, 5, 300).abs(), -randn(5, 4).abs()
    B, C = randn(2, 4, 300), randn(2, 4, 300)
    yield "steps and rates", ek.operators.selective_scan(delta, A, B, C)
    delta[0, 1, 299], delta[1, 2, 7], A[3, 0] = -1e-3, nan, 0.5
    yield "steps that grow", ek.operators.selective_scan(delta, A, B, C)
    A[4, 1], delta[0, 0, 3] = -inf, inf
    yield "infinite steps and rates", ek.operators.selective_scan(delta, A, B, C)
    factors = 1.0 - 2.0 * torch.rand(3, 300, 9, dtype=torch.float64)
    factors[1, 299, 8], factors[2, 0, 0] = 1.0 + 1e-9, nan
    yield "factors", ek.operators.recurrence(factors, randn(3, 300, 9), randn(3, 300, 9), diagonal=True)


def lost_sources():
    """Every way in which tokens are stored, with states that fill no vector, and spans that the length cuts short."""
    q, k, g = randn(2, 77, 3, 11), randn(2, 77, 3, 11), -randn(2, 77, 3, 11).abs()
    g[0, 5], g[1, 16:32], g[1, 40, 1, 3] = -math.inf, 0.0, -math.inf
    yield "gates", ek.operators.gla(q, k, g)
    yield "no decay", ek.operators.linear_attention(q, k)
    yield "gates of heads", ek.operators.simple_gla(q.float(), k.bfloat16(), g=g[..., 0])
    delta, A = randn(2, 5, 90).abs(), -randn(5, 4).abs()
    yield "steps and rates", ek.operators.selective_scan(delta, A, randn(2, 4, 90), randn(2, 4, 90))
    yield (
        "steps of heads",
        ek.operators.ssd(randn(2, 33, 3).abs(), -randn(3).abs(), randn(2, 33, 1, 16), randn(2, 33, 1, 16)),
    )
    factors = 1.0 - 2.0 * torch.rand(3, 300, 9, dtype=torch.float64)
    factors[0, 16:32], factors[1, 3] = 1.0, 0.0
    yield "factors", ek.operators.recurrence(factors, randn(3, 300, 9), randn(3, 300, 9), diagonal=True)
    yield "one token", ek.operators.gla(q[:, :1], k[:, :1], g[:, :1])


@pytest.mark.parametrize("name, op", list(lost_sources()), ids=lambda x: x if isinstance(x, str) else "")
def test_lost_in_states(level, name, op):
    """What the kernel says was lost is what PyTorch says, for any number of threads."""
    _, found = surveyed(op, op.all_heads())
    unit = found.take_units()
    for span in (1, 3, LOST_SPAN, 1000):
        expected = lost_in_states(op.tokens(op.all_heads()), span)
        lost = found.tokens.lost(span)
        assert_close(name, lost * unit[:, None], expected, rtol=1e-13)
        with running(threads=3):
            assert_same_bits(lost, found.tokens.lost(span))


@pytest.mark.parametrize("name, op", list(odd_sources()), ids=lambda x: x if isinstance(x, str) else "")
def test_survey(level, name, op):
    """What the kernel says of the numbers is what plain operations find."""
    heads = op.all_heads()
    supported, read, write = supported_heads(op, heads)
    found, (mine_read, mine_write) = map(torch.from_numpy, NativeTokens(source_of(op, heads)).survey())
    assert torch.equal(found, supported)
    for mine, theirs in ((mine_read, read), (mine_write, write)):
        finite = theirs.isfinite()
        assert torch.equal(mine.isfinite(), finite)
        assert_close("largest", mine[finite], theirs[finite], rtol=1e-15)
