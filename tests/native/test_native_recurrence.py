"""The compiled kernels of recurrences one by one: parts, scans, counts and root products, at every dispatch level."""

import ctypes
import math

import pytest
import torch
from cases import matrix_of, randn
from identical import assert_same_bits, running

import ess_kernels as ek
from ess_kernels.backends.native import call, loading
from ess_kernels.backends.native.nodes import Nodes
from ess_kernels.backends.native.recurrence import Parts, outside_size
from ess_kernels.backends.native.tokens import NativeTokens, surveyed
from ess_kernels.backends.sources import source_of, source_of_tokens, tame
from ess_kernels.engine.blocks import block_parts, cut
from ess_kernels.engine.boundary import observe_gramians, observe_roots, reach_roots
from ess_kernels.engine.lost import GROUP as LOST_GROUP
from ess_kernels.engine.lost import lost_in_states
from ess_kernels.engine.quadrature import STANDARD
from ess_kernels.operators.structure import Tokens
from ess_kernels.testing import assert_close

LEVELS = {1: "baseline", 2: "avx2", 3: "avx512"}
KINDS = ["diagonal after", "diagonal before", "dense after", "dense before"]
NULL, SIZE, WORKSPACE, LEVEL = 1, 2, 5, 6


@pytest.fixture(params=LEVELS, ids=LEVELS.get)
def level(request):
    found = loading.library()
    if found.handle is None:
        pytest.skip(f"native library: {found.reason}")
    if not found.handle.ess_level_name(request.param):
        pytest.skip("this machine has no such vectors")
    with call.pinned(found.handle, 2, request.param):
        yield request.param


def some_tokens(kind, length=77, n=13, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    if kind.startswith("dense"):
        A = 0.95 * torch.linalg.qr(randn(heads, length, n, n)).Q.contiguous()
    else:
        A = torch.exp(-0.2 * randn(heads, length, n).abs())
    A[0, length // 2] = 0.0
    return Tokens(randn(heads, length, n), randn(heads, length, n), A, kind.endswith("before"))


class Native:
    """Tokens, their parts, and the kernels on them; parts that are not filled are left to the first answer."""

    def __init__(self, tokens, c, filled=True):
        self.tokens, self.c = tokens, c
        heads, self.length, self.n = tokens.read.shape
        plain = tokens if tokens.diagonal else Tokens(tokens.read, tokens.write, tokens.write, tokens.reads_before)
        self.arguments = NativeTokens(source_of_tokens(plain))
        self.parts = Parts(heads, self.length, self.n, c, tokens.diagonal)
        self.input = (self.arguments.pointer, None, 0)
        if not tokens.diagonal:
            self.addresses = tokens.transition.data_ptr() + 8 * tokens.transition.stride(0) * torch.arange(heads)
            self.input = (self.arguments.pointer, self.addresses.data_ptr(), tokens.transition.stride(1))
        self.source = None if filled else self.arguments.pointer
        if filled:
            call.run("recurrence_parts", self.parts.pointer, *self.input)

    def array(self, name, *shape):
        """`[N, B, *shape]`, column-major matrices as they lie in memory."""
        return self.parts.arrays[name].view(len(self.tokens.read), -1, *shape)

    def counts(self, tau, wanted=None, squared=True):
        """Counts, growth and least row `[N, M, L]` for tolerances `[M]`, by squares or from the roots themselves."""
        heads, blocks = len(self.tokens.read), self.parts.structure.blocks
        tau = tau[None, :, None].expand(heads, -1, blocks).contiguous()
        wanted = torch.ones(tau.shape, dtype=torch.bool) if wanted is None else wanted
        out = torch.full((3, heads, tau.shape[1], self.length), torch.nan, dtype=torch.float64)
        pointers = (x.data_ptr() for x in (tau, wanted, *out))
        arguments = (self.length, tau.shape[1], *pointers)
        if squared:
            call.run("recurrence_counts", self.parts.pointer, self.source, *arguments)
        else:
            arrays = (self.observe_roots(), *self.outsides())
            call.run("recurrence_unsquared_counts", self.parts.pointer, *(x.data_ptr() for x in arrays), *arguments)
        return out

    def entropy_sums(self):
        """Sums of log-determinants with the quadrature's weights `[2, N, L]`, errors and units `[2, N, blocks]`."""
        heads, blocks, nodes = len(self.tokens.read), self.parts.structure.blocks, Nodes(STANDARD)
        wanted = torch.ones(heads, blocks, dtype=torch.bool)
        out = torch.full((2, heads, self.length), torch.nan, dtype=torch.float64)
        of_blocks = torch.full((2, heads, blocks), torch.nan, dtype=torch.float64)
        pointers = (x.data_ptr() for x in (wanted, *out, *of_blocks))
        call.run("recurrence_entropy", self.parts.pointer, self.source, self.length, None, nodes.pointer, *pointers)
        return out, of_blocks

    def outsides(self):
        m, blocks = self.parts.structure.n, len(self.tokens.read) * self.parts.structure.blocks
        return call.aligned(blocks, outside_size(m, self.c)), torch.zeros(blocks, dtype=torch.bool)

    def observe_roots(self):
        m = self.parts.structure.n
        roots = call.aligned(len(self.tokens.read), self.parts.structure.blocks, m, m)
        call.run("recurrence_observe_roots", self.parts.pointer, *self.input, roots.data_ptr())
        return roots


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [8, 16, 32])
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
def test_answers_on_the_way(level, heads, length):
    """Blocks that are answered while the scans go on have the same bits as later, and leave the same parts."""
    tokens = some_tokens("diagonal after", heads=heads, length=length)
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
        with call.pinned(loading.library().handle, threads, level):
            for _ in range(3):  # as threads come and go
                assert_same_bits(everything(False), expected)


@pytest.mark.parametrize("n", [5, 8, 16])
def test_layouts_of_matrices(level, n):
    """The same matrices by rows, by columns and spread out, constant and not: the same recurrence."""
    torch.manual_seed(n)
    A = 0.9 * torch.linalg.qr(torch.randn(2, 70, n, n, dtype=torch.float64)).Q.contiguous()
    B, C = torch.randn(2, 2, 70, n, dtype=torch.float64)
    spread = torch.zeros(2, 70, n, 2 * n, dtype=torch.float64)[..., ::2]
    expected = ek.tolerance_ess(ek.operators.recurrence(A, B, C, diagonal=False), 1e-3, backend="reference")
    for same in (A, A.mT.contiguous().mT, spread.copy_(A), A.flip(0).flip(0)):
        op = ek.operators.recurrence(same, B, C, diagonal=False)
        for tau in (1e-3, 1e-7):  # by elimination, and by roots
            assert torch.equal(
                ek.tolerance_ess(op, tau, backend="native"), ek.tolerance_ess(op, tau, backend="reference")
            )
        assert torch.equal(ek.tolerance_ess(op, 1e-3, backend="native"), expected)
        assert_close(
            "values",
            ek.singular_values(op, [9, 40], backend="native"),
            ek.singular_values(op, [9, 40], backend="reference"),
            rtol=1e-9,
            atol=1e-13,
        )
    one = A[:, 3].mT.contiguous().mT
    op = ek.operators.recurrence(one, B[:, 0], C[:, 0], diagonal=False, length=50)
    assert torch.equal(ek.tolerance_ess(op, 1e-2, backend="native"), ek.tolerance_ess(op, 1e-2, backend="reference"))


@pytest.mark.parametrize("squared", [True, False], ids=["squared", "unsquared"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c, n", [(8, 3), (16, 16), (32, 24)])
def test_counts(level, kind, c, n, squared):
    tokens = some_tokens(kind, n=n)
    native, T = Native(tokens, c), matrix_of(tokens)
    tau = torch.logspace(-5, 1, 7, dtype=torch.float64)
    counts, growth, least = native.counts(tau, squared=squared)
    assert bool((counts[..., 0] == 0).all()) and bool((growth >= 0).all()) and bool((least > 0).all())
    for i in range(1, native.length):
        values = torch.linalg.svdvals(T[:, i:, :i])[:, None]
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


@pytest.mark.parametrize("kind", KINDS)
def test_unsquared_counts_far_down(level, kind):
    """Where squares say nothing any more: right to within the width, which stays small inside a long sequence."""
    n, c, eps = 12, 16, 2**-52
    tokens = some_tokens(kind, length=160, n=n)
    read = tokens.read * torch.logspace(0, -6, n, dtype=torch.float64)
    tokens = Tokens(read, tokens.write, tokens.transition, tokens.reads_before)
    native, T = Native(tokens, c), matrix_of(tokens)
    tau = torch.logspace(-9, -5, 5, dtype=torch.float64)
    counts, growth, _ = native.counts(tau, squared=False)
    for i in range(1, native.length):
        values = torch.linalg.svdvals(T[:, i:, :i])[:, None]
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
    products, roots = call.aligned(len(where), m, m), native.observe_roots()
    pointers = (x.data_ptr() for x in (heads, positions, products))
    call.run("recurrence_root_products", native.parts.pointer, *native.input, roots.data_ptr(), len(where), *pointers)
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


def test_arguments_are_checked(level):
    native = Native(some_tokens("dense after"), 16)
    handle, context = call.current()
    tau = torch.ones(2, 1, native.parts.structure.blocks, dtype=torch.float64)
    wanted = torch.ones(tau.shape, dtype=torch.bool)
    out = [torch.full((2, 1, native.length), -7.0, dtype=torch.float64) for _ in range(3)]
    good = [native.parts.pointer, None, native.length, 1, *(x.data_ptr() for x in (tau, wanted, *out))]

    def code(arguments, run=context, name="counts"):
        query = getattr(handle, f"ess_recurrence_{name}_workspace")(ctypes.byref(run), *arguments)
        found = getattr(handle, f"ess_recurrence_{name}")(ctypes.byref(run), *arguments)
        assert query == -found if found != WORKSPACE else query > 0
        return found

    def changed(arguments, place, value):
        return [*arguments[:place], value, *arguments[place + 1 :]]

    def parts(**fields):
        copy = type(native.parts.structure).from_buffer_copy(native.parts.structure)
        for name, value in fields.items():
            setattr(copy, name, value)
        return ctypes.byref(copy)

    assert code(good) == WORKSPACE  # there is none
    for place in (0, 4, 5, 6, 7, 8):
        assert code(changed(good, place, None)) == NULL
    for place, value in ((2, 0), (2, native.length + 16), (3, 0), (3, -1)):
        assert code(changed(good, place, value)) == SIZE
    # parts are made on the way where transitions are diagonal, from as many tokens as are counted
    assert code(changed(good, 1, native.arguments.pointer)) == SIZE
    diagonal = Native(some_tokens("diagonal after"), 16)
    good[:2] = diagonal.parts.pointer, diagonal.arguments.pointer
    assert code(good) == WORKSPACE
    assert code(changed(good, 2, native.length - 1)) == SIZE
    good[:2] = native.parts.pointer, None
    for wrong in ({"n": 12}, {"n": 0}, {"n": 1 << 20}, {"c": 12}, {"c": 128}, {"heads": 0}, {"blocks": -1}):
        assert code(changed(good, 0, parts(**wrong))) == SIZE
    assert code(changed(good, 0, parts(F=None))) == NULL
    assert code(changed(good, 0, parts(Q=native.parts.arrays["Q"].data_ptr() + 8))) == SIZE
    assert code(good, call.Run(0, level, None, 0)) == SIZE
    assert code(good, call.Run(1, 17, None, 0)) == LEVEL

    roots, (room, made) = native.observe_roots(), native.outsides()
    unsquared = [good[0], *(x.data_ptr() for x in (roots, room, made)), *good[2:]]
    assert code(unsquared, name="unsquared_counts") == WORKSPACE
    for place in (0, 1, 2, 3, 6, 7, 8, 9, 10):
        assert code(changed(unsquared, place, None), name="unsquared_counts") == NULL
    assert code(changed(unsquared, 1, roots.data_ptr() + 8), name="unsquared_counts") == SIZE
    assert code(changed(unsquared, 2, room.data_ptr() + 8), name="unsquared_counts") == SIZE
    assert code(changed(unsquared, 5, 0), name="unsquared_counts") == SIZE

    build = [native.parts.pointer, *native.input]
    assert code(build, name="parts") == WORKSPACE
    assert code(changed(build, 1, None), name="parts") == NULL
    assert code(changed(build, 2, None), name="parts") == NULL
    assert code(changed(build, 3, -1), name="parts") == SIZE
    assert code(changed(build, 0, parts(heads=1)), name="parts") == SIZE

    products = call.aligned(2, 16, 16)
    heads, positions = torch.tensor([0, 1]), torch.tensor([5, 3])
    ask = [*build, roots.data_ptr(), 2, *(x.data_ptr() for x in (heads, positions, products))]
    assert code(ask, name="root_products") == WORKSPACE
    for bad_heads, bad_positions in (([0, 2], [5, 3]), ([1, 0], [5, 3]), ([0, 0], [5, 3]), ([0, 1], [0, 3])):
        wrong = [torch.tensor(x) for x in (bad_heads, bad_positions)]
        arguments = [*ask[:6], *(x.data_ptr() for x in wrong), ask[8]]
        assert code(arguments, name="root_products") == SIZE
    assert all(bool((x == -7.0).all()) for x in out)  # a call that fails leaves the result alone


def odd_sources():
    """Sources of several heads, some of them not fair, by name."""
    inf, nan = float("inf"), float("nan")

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    q, k, g = randn(1, 300, 6, 11), randn(1, 300, 6, 11), -randn(1, 300, 6, 11).abs()
    yield "fair", ek.operators.gla(q, k, g)
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
    """Every way in which tokens are stored, with states that fill no vector, and groups that the length cuts short."""
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
    for group in (1, 3, LOST_GROUP, 1000):
        expected = lost_in_states(op.tokens(op.all_heads()), group)
        lost = found.tokens.lost(group)
        assert_close(name, lost * unit[:, None], expected, rtol=1e-13)
        with running(threads=3):
            assert_same_bits(lost, found.tokens.lost(group))


@pytest.mark.parametrize("name, op", list(odd_sources()), ids=lambda x: x if isinstance(x, str) else "")
def test_survey(level, name, op):
    """What the kernel says of the numbers is what plain operations find."""
    heads = op.all_heads()
    fair, read, write = tame(op, heads)
    found, (mine_read, mine_write) = map(torch.from_numpy, NativeTokens(source_of(op, heads)).survey())
    assert torch.equal(found, fair)
    for mine, theirs in ((mine_read, read), (mine_write, write)):
        finite = theirs.isfinite()
        assert torch.equal(mine.isfinite(), finite)
        assert_close("largest", mine[finite], theirs[finite], rtol=1e-15)
