"""The parts of the engine one by one."""

import math

import pytest
import torch

from ess_kernels.engine import blocks as blocks_module
from ess_kernels.engine import quadrature
from ess_kernels.engine.blocks import block_parts, cut
from ess_kernels.engine.boundary import Boundary, observe_gramians, observe_roots, reach_roots
from ess_kernels.engine.certainty import EPS, count_values, entropy_of_values, width_of
from ess_kernels.engine.elimination import LANES, PANEL, eliminate, eliminate_definite, factor_block, substitute
from ess_kernels.engine.parallel import over_batch
from ess_kernels.engine.scaling import power_of_two
from ess_kernels.engine.staircase import Answer, Nodes, descend
from ess_kernels.operators.structure import Tokens
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import matrix_of, orthogonal, powers, rand, randn

# --- its parts --------------------------------------------------------------------------------------------------------


def symmetric(batch, size, definite=0):
    Q = torch.stack([orthogonal(size) for _ in range(batch)])
    values = 0.5 + rand(batch, size)
    values = values * (definite or torch.where(rand(batch, size) < 0.5, -1.0, 1.0).double())
    return (Q * values[:, None]) @ Q.mT


@pytest.mark.parametrize("batch", [1, LANES - 1, LANES, 40])
@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_factor_block(batch, size):
    torch.manual_seed(size)
    E = symmetric(batch, size)
    upper, pivots, growth, magnitude = factor_block(E.clone())
    lower = upper.mT
    assert_close("L D L^T", lower * pivots[:, None] @ upper, E, rtol=1e-9, atol=1e-6)
    assert bool((lower.triu(1) == 0).all())
    assert_close("unit triangular", lower.diagonal(dim1=1, dim2=2), torch.ones(batch, size).double())
    updates = (lower.tril(-1).square() * pivots.abs()[:, None]).sum(-1)
    assert_close("growth", growth, updates, rtol=1e-6, atol=1e-9)
    rows = (pivots[..., None] * lower.mT).abs().amax(-1)
    assert_close("row magnitudes", magnitude, rows, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_substitution_is_backward_stable(size):
    """Errors are in proportion to `|L| |L^-1 V|`, however large `L^-1` is; the inverse would lose all."""
    torch.manual_seed(size)
    lower = torch.eye(size, dtype=torch.float64) + 4 * randn(3, size, size).tril(-1)
    V = lower @ randn(3, size, 9)
    W = V.clone()
    substitute(lower.mT, W)
    assert bool(((lower @ W - V).abs() <= 2e-16 * (size + 1) * (lower.abs() @ W.abs())).all())


@pytest.mark.parametrize("size", [1, 5, PANEL, PANEL + 1, 3 * PANEL + 5])
@pytest.mark.parametrize("batch", [2, LANES])
def test_eliminate(size, batch):
    torch.manual_seed(size)
    E, V, C = symmetric(batch, size), randn(batch, size, 9), symmetric(batch, 9)
    out = eliminate(torch.cat([E, V], -1))
    rest = C - out.scaled.mT @ out.rows
    good = out.growth < 1e6
    assert bool(good.any())
    schur = C - V.mT @ torch.linalg.solve(E, V)
    assert_close("Schur complement", rest[good], schur[good], rtol=1e-8, atol=1e-7)
    assert torch.equal((out.pivots > 0).sum(-1), (torch.linalg.eigvalsh(E) > 0).sum(-1))
    # inertia is additive
    whole = torch.cat([torch.cat([E, V], -1), torch.cat([V.mT, C], -1)], -2)
    inertia = (out.pivots > 0).sum(-1) + (torch.linalg.eigvalsh(rest) > 0).sum(-1)
    assert torch.equal(inertia, (torch.linalg.eigvalsh(whole) > 0).sum(-1))
    assert bool((out.growth >= (out.rows * out.scaled).sum(1).abs().amax(-1) * (1 - 1e-9)).all())


def test_a_zero_pivot_shows_in_the_growth():
    E = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]).double().repeat(3, 1, 1)
    E[1] = torch.eye(2)
    growth = eliminate(torch.cat([E, torch.ones(3, 2, 2).double()], -1)).growth
    assert width_of(growth).isfinite().tolist() == [False, True, False]
    big = torch.zeros(1, PANEL + 4, PANEL + 4).double()
    assert not bool(width_of(eliminate(torch.cat([big, torch.ones(1, PANEL + 4, 2).double()], -1)).growth).isfinite())


@pytest.mark.parametrize("size", [1, 6, 40])
def test_eliminate_definite(size):
    torch.manual_seed(size)
    sign = torch.tensor([1.0, -1.0, 1.0]).double()
    E, V = symmetric(3, size, definite=1) * sign[:, None, None], randn(3, size, 5)
    out = eliminate_definite(torch.cat([E, V], -1), sign)
    assert_close("Schur complement", out.scaled.mT @ out.rows, V.mT @ torch.linalg.solve(E, V), rtol=1e-9, atol=1e-9)
    assert_close("determinant", out.pivots.log().sum(-1), torch.linalg.slogdet(E).logabsdet, rtol=1e-10, atol=1e-10)
    E[1, 0, 0] = torch.nan
    assert eliminate_definite(torch.cat([E, V], -1), sign).pivots.isnan().all(-1).tolist() == [False, True, False]


def roots_of(T, shift, definite):
    """The undivided node of every head of `T` `[N, L, L]`."""
    N, L, _ = T.shape
    one = torch.eye(L, dtype=torch.float64).expand(N, L, L)
    zeros, item = torch.zeros(N).double(), torch.arange(N)
    R = one if definite else -one
    start, stop = torch.zeros_like(item), torch.full((N,), L)
    return Nodes(R.clone(), T / shift, -one.clone(), zeros, zeros, zeros + 1, item, start, stop)


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 33, 50])
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_staircase(length, budget):
    torch.manual_seed(length)
    T = randn(3, length, length).tril(-1)
    wanted = torch.rand(3, length) < 0.6
    wanted[:, 0], wanted[:, -1], wanted[2] = False, True, True
    for everywhere in (torch.ones_like(wanted), wanted):
        counts, logdets = Answer.of(everywhere), Answer.of(everywhere)
        descend(roots_of(T, 1.3, definite=False), counts, definite=False, budget=budget)
        descend(roots_of(T, 0.7, definite=True), logdets, definite=True, budget=budget)
        for i in range(1, length):
            s = torch.linalg.svdvals(T[:, i:, :i])
            for head in everywhere[:, i].nonzero()[:, 0].tolist():
                assert counts.value[head, i] == (s[head] > 1.3).sum()
                expected = torch.log1p((s[head] / 0.7).square()).sum()
                assert_close("log-determinant", logdets.value[head, i], expected, rtol=1e-11, atol=1e-11)
        assert bool((counts.value[~everywhere] == 0).all()) and bool((logdets.value[~everywhere] == 0).all())


def some_tokens(kind, length=27, n=5, heads=2):
    torch.manual_seed(length)
    A = randn(heads, length, n, n) / n if kind.startswith("dense") else 2 * rand(heads, length, n) - 1
    A[0, length // 2] = 0.0
    return Tokens(randn(heads, length, n), randn(heads, length, n), A, kind.endswith("before"))


KINDS = ["diagonal after", "diagonal before", "dense after", "dense before"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [1, 2, 4, 8, 32])
def test_blocks_reproduce_the_matrix(kind, c):
    tokens = some_tokens(kind)
    parts = block_parts(cut(tokens, c))
    number = parts.X.shape[1]
    size = number * c
    T = torch.zeros(2, size, size, dtype=torch.float64)
    for row in range(number):
        here = slice(row * c, row * c + c)
        T[:, here, here] = parts.Y[:, row]
        carried = parts.X[:, row]
        for column in range(row - 1, -1, -1):
            T[:, here, column * c : column * c + c] = carried @ parts.Z[:, column].mT
            Phi = parts.Phi[:, column]
            carried = carried * Phi[:, None] if tokens.diagonal else carried @ Phi
    assert_close("T", T[:, :27, :27], matrix_of(tokens), rtol=1e-12, atol=1e-13)
    assert bool((T[:, 27:] == 0).all()) and bool((T[..., 27:] == 0).all())


def test_cut_pads_with_tokens_that_do_nothing():
    tokens = some_tokens("dense after", length=5)
    padded = cut(tokens, 4)
    assert padded.read.shape == (2, 2, 4, 5)
    assert bool((padded.read[:, 1, 1:] == 0).all()) and bool((padded.write[:, 1, 1:] == 0).all())
    assert torch.equal(padded.transition[0, 1, 3], torch.eye(5).double())
    assert blocks_module.cut(some_tokens("diagonal after", length=8), 4).read.shape == (2, 2, 4, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_boundary(kind):
    tokens, c = some_tokens(kind), 4
    T = matrix_of(tokens)
    parts = block_parts(cut(tokens, c))
    roots, outlooks, Q = reach_roots(parts), observe_roots(parts), observe_gramians(parts)
    assert_close("observability", outlooks.mT @ outlooks, Q, rtol=1e-11, atol=1e-12)
    for block in range(1, parts.X.shape[1] - 1):
        a, e = block * c, block * c + c
        boundary = Boundary.of(parts[:, block], roots[:, block], Q[:, block])
        values = torch.linalg.svdvals(T[:, e:, :a])
        squares = boundary.squares.flip(-1)[:, : values.shape[-1]]
        assert_close("outside", squares, values[:, :5].square(), rtol=1e-9, atol=1e-11)
        seen = boundary.coupling[..., :c]
        assert_close("past", seen.mT @ seen, T[:, a:e, :a] @ T[:, a:e, :a].mT, rtol=1e-9, atol=1e-10)
        assert_close("corner", boundary.corner, T[:, e:, a:e].mT @ T[:, e:, a:e], rtol=1e-9, atol=1e-10)
        for i in range(a, e):
            assert bool((boundary.scale() >= torch.linalg.svdvals(T[:, i:, :i])[:, 0].square() * (1 - 1e-12)).all())


# --- quadrature -------------------------------------------------------------------------------------------------------


QUADRATURES = {
    "standard": quadrature.STANDARD,
    "fine": quadrature.FINE,
    "without smallest": quadrature.WITHOUT_SMALLEST,
}


@pytest.mark.parametrize("which", QUADRATURES)
def test_node_error(which):
    rule = QUADRATURES[which]
    x = torch.cat([torch.zeros(1), powers(-30, 0, 200001)]).double()
    nodes, *weights = torch.tensor(rule.table, dtype=torch.float64).T
    assert torch.equal(nodes, rule.nodes(torch.device("cpu"))) and len(rule) == len(nodes)
    terms = torch.log1p(x[:, None] / nodes)
    steps = [(terms[:, k] - terms[:, k + 1]) / (nodes[k + 1] / nodes[k]).log() for k in (0, 1)]
    haze = (steps[0] - steps[1]).clamp_min(0).sqrt()
    root = x.sqrt()
    for w, wanted, error, of_haze in zip(
        weights, (root, torch.special.xlogy(root, root)), rule.errors, rule.haze_errors, strict=True
    ):
        assert bool(((terms @ w - wanted).abs() <= error + of_haze * haze).all())


@pytest.mark.parametrize("which", QUADRATURES)
def test_slopes_and_weights(which):
    rule = QUADRATURES[which]
    x = torch.cat([torch.zeros(1), powers(-30, 0, 2001)]).double()
    nodes, *weights = torch.tensor(rule.table, dtype=torch.float64).T
    for w, slope in zip(weights, rule.slopes, strict=True):
        assert bool((((1 / (nodes + x[:, None])) @ w).abs() <= slope * (1 + 1e-12)).all())
        # log-determinants are right to a few ulp of themselves: no weight makes that an error worth mentioning
        assert float(w.abs().max()) < 20


SPECTRA = {
    "even": torch.ones(60),
    "graded": powers(0, -8, 60),
    "half graded": powers(0, -3, 60),
    "steep": powers(0, -30, 20),
    "one": torch.ones(1),
    "one large, many tiny": torch.cat([torch.ones(1), torch.full((255,), 1e-4)]),
    "one large, many tinier": torch.cat([torch.ones(1), torch.full((1023,), 4e-6)]),
    "far below the scale": torch.full((40,), 1e-3),
    "very far below the scale": torch.full((40,), 1e-7),
    "hardly to be seen": torch.full((40,), 3e-9),
    "two sizes": torch.tensor([1e-2, 1e-2, 1e-8, 1e-8]),
}


@pytest.mark.parametrize("which", QUADRATURES)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("scale", [1.0, 1.05, 4.0, 100.0])
def test_the_error_bound_is_one(name, scale, which):
    """Where it lets a value pass, the value is right; and it does let pass what is near the scale."""
    s, rule = SPECTRA[name].double(), QUADRATURES[which]
    cap, exactly = torch.tensor([float(len(s))]).double(), torch.zeros(1).double()
    ratio = s.square() / (rule.nodes(s.device)[:, None] * scale)
    wanted = entropy_of_values(s)
    # with and without the rounding of pivots that are near 1
    for logdets in (torch.log1p(ratio), torch.log(1 + ratio)):
        logdets = logdets.sum(-1)[:, None]
        if which == "without smallest":
            ess, bound, total = rule.estimate_in_haze(logdets, cap, exactly)
        else:
            ess, bound, total = rule.estimate(logdets, cap, exactly)
        error = abs(float(ess) - float(wanted)) / float(wanted)
        if float(bound) <= 1e-3:
            assert error <= 1.05 * float(bound) + 1e-12, f"error {error:.2e}, bound {float(bound):.2e}"
            assert abs(float(total) * scale**0.5 / float(s.sum()) - 1) <= 1.05 * float(bound)
        if name in ("even", "half graded") and scale < 2:
            assert float(bound) < 3e-5


@pytest.mark.parametrize("which", QUADRATURES)
def test_zero_log_determinants_say_nothing(which):
    """The matrix may be zero or too faint to be seen: not for the quadrature to decide."""
    rule = QUADRATURES[which]
    _, bound, total = rule.estimate(torch.zeros(len(rule), 3).double(), torch.full((3,), 5.0).double(), torch.zeros(3))
    assert bool(bound.isinf().all()) and bool((total == 0).all())


@pytest.mark.parametrize("which", QUADRATURES)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_bound_contains_a_few_ulp_of_the_log_determinants(name, which):
    """Wherever they err: weights of opposite sign must not add up what the bound does not know."""
    s, rule = SPECTRA[name].double(), QUADRATURES[which]
    cap = torch.full((1,), float(len(s)), dtype=torch.float64)
    logdets = torch.log1p(s.square() / rule.nodes(s.device)[:, None]).sum(-1)
    exact = rule.estimate_with_all_nodes(logdets[:, None], cap, torch.zeros(1).double())
    torch.manual_seed(0)
    for signs in torch.randint(0, 2, (50, len(rule))) * 2.0 - 1:
        moved = rule.estimate_with_all_nodes((logdets * (1 + 4 * EPS * signs))[:, None], cap, torch.zeros(1).double())
        assert abs(float(moved.ess / exact.ess) - 1) <= float(exact.bound) + 1e-13


@pytest.mark.parametrize("rounding", [1e-20, 1e-17, 1e-15, 1e-12])
@pytest.mark.parametrize("which", ["standard", "fine"])
def test_the_bound_contains_wrong_squares(which, rounding):
    """Squares that are wrong by as much as is said, all alike or a few of them the more; FINE has nodes far below."""
    rule = QUADRATURES[which]
    torch.manual_seed(1)
    for s in (torch.ones(1), powers(0, -9, 100), torch.cat([torch.ones(1), torch.zeros(60)]), 1e-8 * torch.rand(300)):
        x = s.double().square()
        cap = torch.full((1,), float(len(x)), dtype=torch.float64)
        wanted = entropy_of_values(x.sqrt())
        for share in (1.0, 0.5, 0.05):
            some = torch.rand(len(x)) < share
            wrong = x + torch.where(some, rounding * len(x) / max(int(some.sum()), 1), 0.0)
            logdets = torch.log1p(wrong / rule.nodes(x.device)[:, None]).sum(-1)[:, None]
            ess, bound, _ = rule.estimate(logdets, cap, torch.full((1,), rounding).double())
            if float(bound) < 1e-2:
                assert abs(float(ess) / float(wanted) - 1) <= 1.01 * float(bound)


def test_lost_log_determinants_are_done_without():
    """Rank one, or values down to where only the smallest node sees them: other weights, or the neighbour's."""
    rule, L = quadrature.FINE, 60
    cap, rounding = torch.full((L,), 40.0).double(), torch.full((L,), 1e-18).double()
    for s in (
        torch.ones(L, 1),
        powers(0, -6, 40).expand(L, -1),
        powers(0, -8.2, 40) ** torch.linspace(1, 0.95, L)[:, None],
    ):
        s = s.double()
        logdets = torch.log1p(s.square() / rule.nodes(s.device)[:, None, None]).sum(-1)
        wanted = entropy_of_values(s)
        for lost in (slice(20, 24), slice(0, 1), slice(58, 60), slice(0, 60)):
            broken = logdets.clone()
            broken[0, lost] = torch.nan
            ess, bound, _ = rule.estimate(broken, cap, rounding)
            assert bool(((ess / wanted - 1).abs() <= bound).all())
            assert lost == slice(0, 60) or float(bound.max()) < 1e-4
    broken[:] = torch.nan
    assert not bool(rule.estimate(broken, cap, rounding).bound.isfinite().any())


# --- small things -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [1.0, 3e-310, 1e-300, 1e-120, 1e80, 1e300])
def test_power_of_two(magnitude):
    torch.manual_seed(0)
    x = magnitude * torch.nn.functional.normalize(randn(3, 4, 5), p=math.inf, dim=(1, 2))
    x[1] = 0.0
    scaled, unit = power_of_two(x)
    assert bool((scaled[[0, 2]].abs().amax((1, 2)) < 1).all())
    if magnitude > 1e-300:
        assert bool((scaled[[0, 2]].abs().amax((1, 2)) >= 0.5).all())
    assert torch.equal(unit, torch.exp2(torch.log2(unit).round()))
    assert unit[1] == 1 and bool((scaled[1] == 0).all())
    assert torch.equal(scaled * unit[:, None, None], x)
    assert power_of_two(x[:0])[1].shape == (0,)


def test_count_values():
    values = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 1e-9], [0.0, 0.0, 0.0]]).double()
    counts = count_values(values, torch.tensor([1.0, 0.5, 1e-3]).double())
    assert counts.counts.tolist() == [1, 2, 0]
    assert counts.unresolved.tolist() == [True, False, False]
    zero = count_values(values, torch.zeros(3).double())
    assert zero.counts.tolist() == [2, 3, 0] and zero.unresolved.tolist() == [False, False, False]


def test_over_batch(monkeypatch):
    torch.manual_seed(0)
    A = randn(11, 6, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(over_batch(lambda x: (torch.linalg.svdvals(x),), A)[0], torch.linalg.svdvals(A))
    pair = over_batch(lambda x: (x.sum(1), x.amax((1, 2))), A)
    assert torch.equal(pair[0], A.sum(1)) and torch.equal(pair[1], A.amax((1, 2)))
