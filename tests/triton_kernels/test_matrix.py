"""Dense operators in Triton: each kernel against its twin, the staircase against singular values and the engine's own.

In the interpreter kernels are slow: what is about the tree, not about kernels, runs on their twins there.
"""

import logging

import pytest
import torch
from covering import covering
from twins import descend_twin

from ess_kernels.backends.triton.matrix import elimination, halves
from ess_kernels.backends.triton.matrix import engine as matrix
from ess_kernels.backends.triton.matrix.engine import TritonMatrix, lower_product
from ess_kernels.engine.certainty import entropy_of_values, near_tie, width_of
from ess_kernels.engine.cost import Cost
from ess_kernels.engine.elimination import eliminate
from ess_kernels.engine.tiled import Matrix
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import build, corner, names, powers, randn, truth

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BUDGET = 1 << 30
NAN = float("nan")


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, "ess_kernels")


@pytest.fixture
def quick(monkeypatch):
    """Twins in place of kernels where these are interpreted."""
    if DEVICE == "cpu":
        for module, name, twin in (
            (elimination, "diagonal", elimination.diagonal_twin),
            (elimination, "rows", elimination.rows_twin),
            (matrix, "children", halves.children_twin),
            (matrix, "edge", halves.edge_twin),
            (matrix, "descend", descend_twin),
        ):
            monkeypatch.setattr(module, name, twin)


def to_device(*tensors):
    return [x.to(DEVICE) for x in tensors]


def engine_of(T, kind=TritonMatrix, budget=BUDGET):
    """An engine for heads `T` `[N, L, L]`: on the GPU if there is one, the one to compare with on the CPU."""
    T = T.clone().to(DEVICE if kind is TritonMatrix else "cpu")
    return kind(T, torch.ones(len(T), dtype=torch.bool, device=T.device), budget, Cost())


def staircase_at(engine, shifts, definite, wanted=None):
    """Value, growth and least `[N, S, L]` at scaled `shifts` `[S]`."""
    N, L, S = len(engine.unit), engine.length, len(shifts)
    if wanted is None:
        wanted = torch.ones(N, S, L, dtype=torch.bool)
        wanted[..., 0] = False
    shifts = shifts.expand(N, -1).to(engine.T.device)
    answer = engine.staircase(wanted.to(engine.T.device), shifts, definite)
    return [x.view(N, S, L).cpu() for x in (answer.value, answer.growth, answer.least)]


def operator(name, L, heads=1):
    torch.manual_seed(L)
    if name == "random":
        return (
            (2 * randn(heads, L, 8) @ randn(heads, 8, L))
            .masked_fill(~torch.ones(L, L).bool().tril(), -torch.inf)
            .softmax(-1)
        )
    if name == "alibi":
        distance = torch.arange(L)[:, None] - torch.arange(L)
        scores = randn(heads, L, 4) @ randn(heads, 4, L) - 0.5 * distance.abs().double()
        return scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    if name == "few keys":
        scores = randn(heads, L, 6) @ randn(heads, 6, 9)[..., torch.arange(L) % 9]
        return scores.masked_fill(~torch.ones(L, L).bool().tril(), -torch.inf).softmax(-1)
    assert name == "convolution"
    lag = torch.arange(L)[:, None] - torch.arange(L)
    return (randn(heads, L) * powers(0, -3, L))[:, lag.clamp_min(0)] * (lag >= 0)


OPERATORS = ["random", "alibi", "few keys", "convolution"]


def spectra_of(T):
    """Singular values `[N, L, S]` of every `H_i`, zero padded; none at 0."""
    N, L, _ = T.shape
    values = T.new_zeros(N, L, L // 2)
    for i in range(1, L):
        s = torch.linalg.svdvals(T.tril(-1)[:, i:, :i])
        values[:, i, : s.shape[-1]] = s
    return values


def check_staircase(T, tolerances=(0.3, 1e-2, 1e-4), shifts=(1.0, 1e-2)):
    """All positions by elimination alone: right wherever no value is nearer than the certificate's width allows."""
    engine, values = engine_of(T), spectra_of(T)
    unit = engine.unit.cpu()[:, None, None, None]
    tau, shifts = (torch.tensor(x, dtype=torch.float64) for x in (tolerances, shifts))
    value, growth, least = staircase_at(engine, tau, False)
    scaled = values[:, None] / unit
    distance = ((scaled - tau[:, None, None]).abs() / tau[:, None, None]).amin(-1)
    sure = ~near_tie(growth, least) & (distance > 4 * width_of(growth))
    assert sure[..., 1:].double().mean() > 0.95
    assert torch.equal(value[sure], (scaled > tau[:, None, None]).sum(-1).double()[sure])
    if len(shifts):
        logdet, _, _ = staircase_at(engine, shifts, True)
        assert_close(
            "logdet", logdet, torch.log1p((scaled / shifts[:, None, None]).square()).sum(-1), rtol=1e-9, atol=1e-9
        )


# --- kernels ----------------------------------------------------------------------------------------------------------


def symmetric(batch, size, sign=None):
    A = randn(batch, size, size)
    return A + A.mT if sign is None else (A @ A.mT + torch.eye(size)) * sign[:, None, None]


def panel(size, definite, h=64, width=144, first=0):
    torch.manual_seed(size)
    sign = torch.tensor([1.0, -1.0]).double()
    M = torch.cat([symmetric(2, h, sign if definite else None), randn(2, h, width - h)], -1)
    state = [torch.full((2, h), NAN).double(), randn(2), randn(2, width).abs()]
    M, *state = to_device(M, *state, torch.full((2, h), NAN).double(), sign)
    return [M, size, *state]


def copies(state):
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in state]


@covering(place=[(16, 48), (32, 0), (48, 16), (64, 0)], definite=[False, True])
def test_diagonal(place, definite):
    size, first = place
    found = panel(size, definite)
    known = copies(found)
    elimination.diagonal(*found, first, definite)
    elimination.diagonal_twin(*known, first, definite)
    block = slice(first, first + size)
    for each in (found, known):
        # below its diagonal the block of M is workspace
        each[1] = each[0][:, block, block].triu()
    for name, x, y in zip(("D L^T", "reciprocals", "value", "growth", "magnitude"), found[1:], known[1:]):
        assert torch.equal(x.isnan(), y.isnan())
        assert_close(name, x.nan_to_num(), y.nan_to_num(), rtol=1e-8, atol=1e-9)


@covering(size=[16, 48, 64], definite=[False, True])
def test_rows(size, definite):
    state = panel(size, definite)
    elimination.diagonal(*state, 0, definite)
    M, _, reciprocals, _, growth, _, _ = state
    reach = torch.zeros(2, 5, 64, dtype=torch.float64, device=DEVICE)
    found = [M, size, torch.zeros_like(M), reciprocals, growth, reach]
    known = copies(found)
    elimination.rows(*found, 0, definite)
    elimination.rows_twin(*known, 0, definite)
    for name, at in (("M", 0), ("scaled", 2), ("growth", 4), ("reach", 5)):
        x, y = found[at], known[at]
        if name == "M":
            x, y = x[:, :, size:], y[:, :, size:]
        # pivots here may be small: what is magnified are roundings in units of the largest entry
        assert_close(name, x, y, rtol=1e-10, atol=1e-12 * float(y.abs().max()))


def test_a_pivot_of_the_wrong_sign_is_no_logarithm():
    M, *state = panel(32, True)
    M[1, 20, 20] = 5.0
    elimination.diagonal(M, *state, 0, True)
    assert state[2].isnan().tolist() == [False, True]


def test_zero_pivots_show():
    """A zero that something depends on shows in the growth, one that nothing depends on in the least row."""
    E = torch.eye(32).double().repeat(3, 1, 1)
    E[0, 3, 3] = 0.0
    E[0, 3, 20] = E[0, 20, 3] = 1.0
    E[1, 20, 20] = 0.0
    M = torch.cat([E, torch.zeros(3, 32, 64).double()], -1).to(DEVICE)
    out = elimination.eliminate(M, torch.zeros(3).double().to(DEVICE), torch.ones(3).double().to(DEVICE), False)
    assert (~(out.growth < 1e100)).tolist() == [True, False, False]
    assert out.least.tolist()[1:] == [0.0, 1.0]


def check_eliminate(h, width, definite):
    torch.manual_seed(h)
    sign = torch.tensor([1.0, -1.0]).double()
    E, V = symmetric(2, h, sign if definite else None), randn(2, h, width)
    known = eliminate(torch.cat([E, V], -1))
    worth = known.pivots.abs().log().sum(-1) if definite else (known.pivots > 0).sum(-1).double()
    # tiles below the diagonal of E are not read
    block = torch.arange(h) // 16
    E[:, block[:, None] > block] = NAN
    M, value, sign = to_device(torch.cat([E, V], -1), torch.zeros(2).double(), sign)
    out = elimination.eliminate(M, value, sign, definite)
    rest, wanted = (x.scaled.mT.cpu() @ x.rows.cpu() for x in (out, known))
    assert_close("Schur complement", rest, wanted, rtol=1e-7, atol=1e-8 * float(wanted.abs().max()))
    assert_close("worth", value.cpu(), worth, rtol=1e-11)
    if not definite:
        assert_close("growth", out.growth.cpu(), known.growth, rtol=1e-6)
        assert_close("least", out.least.cpu(), known.least, rtol=1e-6)


@pytest.mark.parametrize("h, width, definite", [(16, 32, False), (48, 96, True), (112, 60, False)])
def test_eliminate(h, width, definite):
    check_eliminate(h, width, definite)


@pytest.mark.parametrize("definite", [False, True])
@pytest.mark.parametrize("h", [64, 208, 384])
def test_eliminate_gathers_panels(h, definite, quick, monkeypatch):
    monkeypatch.setattr(elimination, "CHUNK", 64)
    check_eliminate(h, 40, definite)


@pytest.mark.parametrize("definite", [False, True])
@pytest.mark.parametrize("m, h", [(80, 48), (32, 16), (37, 64)])
def test_children(m, h, definite):
    torch.manual_seed(m)
    kept, update = randn(2, 3, m, m), randn(2, 3, m, m)
    # what lies above the diagonal is not read
    for x in (kept, update):
        x.masked_fill_(torch.ones(m, m).bool().triu(1), NAN)
    whole = h >= m
    parent, side = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0] if whole else [0, 1, 1])
    arguments = to_device(kept, update, parent, side)
    check_layout(halves.children, halves.children_twin, arguments, h, whole, definite)


@covering(each=2, sizes=[(50, 48), (36, 32), (1, 16)], left=[False, True], definite=[False, True])
def test_edge(sizes, left, definite):
    m, h = sizes
    torch.manual_seed(m)
    T, gram = randn(2, 90, 90).tril(-1), randn(2, m, m).masked_fill(torch.ones(m, m).bool().triu(1), NAN)
    arguments = to_device(T, gram, torch.tensor([0, 1, 1]), torch.tensor([2.0, 4.0, 0.5]).double())
    check_layout(halves.edge, halves.edge_twin, [*arguments, left], h, h >= m, definite)


def check_layout(kernel, twin, arguments, h, whole, definite):
    results = []
    for function in (kernel, twin):
        M = None if whole else torch.full((3, h, 3 * h), NAN, dtype=torch.float64, device=DEVICE)
        following = torch.full((3, 3, h, h), NAN, dtype=torch.float64, device=DEVICE)
        function(*arguments, M, following, definite)
        results.append([following] if whole else [M, following])
    for found, known in zip(*results):
        assert not bool(found.isnan().any())
        assert_close("layout", found, known, rtol=1e-15, atol=1e-15)


def test_lower_product(monkeypatch):
    monkeypatch.setattr(matrix, "PIECE_ENTRIES", 1)
    monkeypatch.setattr(matrix, "PIECE_ROWS", 32)
    torch.manual_seed(0)
    A, B, out = randn(2, 20, 112), randn(2, 20, 112), randn(2, 112, 112)
    wanted = (2 * out - A.mT @ B).tril()
    before = out.clone()
    assert_close("product", lower_product(out, A, B, alpha=-1.0, beta=2.0).tril(), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(out[:, :16, 64:], before[:, :16, 64:])


# --- the staircase ----------------------------------------------------------------------------------------------------


def test_all_kernels_together():
    """Length 130: nodes of 80 and 48 tokens, three levels, a last node of two tokens."""
    check_staircase(operator("alibi", 130), tolerances=(1e-2,), shifts=())


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("L", [37, 64, 96, 130])
def test_kernels_on_operators(name, L):
    check_staircase(operator(name, L, heads=2))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("L", [2, 3, 37, 64, 96, 130, 257])
def test_staircase(name, L, quick):
    check_staircase(operator(name, L, heads=2))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("L", [64, 256])
def test_growth_and_least_row_are_the_engines(name, L, quick):
    """Where both cut in the same places: sums over levels may be taken before or after the largest of them."""
    T, tau = operator(name, L), torch.tensor([0.3, 1e-3], dtype=torch.float64)
    value, growth, least = staircase_at(engine_of(T), tau, False)
    known_value, known_growth, known_least = staircase_at(engine_of(T, Matrix), tau, False)
    sane = (known_growth < 1e9) & (known_growth > 0)
    assert sane.double().mean() > 0.9
    assert torch.equal(value[sane], known_value[sane])
    ratio = (growth / known_growth)[sane]
    assert ratio.min() > 0.1 and ratio.max() < 20
    assert_close("least", least[sane], known_least[sane], rtol=1e-3, atol=1e-12)


def test_some_positions_are_those_of_all(quick):
    T, tau = operator("random", 300, heads=3), torch.tensor([0.1, 1e-3], dtype=torch.float64)
    everything = staircase_at(engine_of(T), tau, False)
    wanted = torch.zeros(3, 2, 300, dtype=torch.bool)
    wanted[0, 0, 5] = wanted[0, 1, 150:160] = wanted[2, 0, 299] = wanted[2, 1, 1::40] = True
    for x, y, empty in zip(staircase_at(engine_of(T), tau, False, wanted), everything, (0.0, 0.0, torch.inf)):
        assert_close("wanted", x[wanted], y[wanted], rtol=1e-9)
        assert bool((x[~wanted] == empty).all())


def test_few_positions_take_few_eliminations(quick, monkeypatch):
    """One position of one head needs one elimination a level."""
    batches = []

    def noting(M, *arguments):
        batches.append(len(M))
        return elimination.eliminate(M, *arguments)

    monkeypatch.setattr(matrix, "eliminate", noting)
    T = operator("random", 300, heads=2)
    wanted = torch.zeros(2, 1, 300, dtype=torch.bool)
    wanted[1, 0, 170] = True
    staircase_at(engine_of(T), torch.ones(1, dtype=torch.float64), False, wanted)
    assert batches == [1] * len(batches) and 1 <= len(batches) <= 2


@pytest.mark.parametrize("definite", [False, True])
def test_a_small_budget_changes_nothing(definite, quick):
    T, shifts = operator("few keys", 300, heads=2), torch.tensor([0.5, 1e-2], dtype=torch.float64)
    whole = staircase_at(engine_of(T), shifts, definite)
    parts = staircase_at(engine_of(T, budget=1 << 20), shifts, definite)
    for x, y in zip(parts, whole):
        assert_close("parts", x, y, rtol=1e-9, atol=1e-9)


# --- what is made of it -----------------------------------------------------------------------------------------------

HARD = ["attention: sharp", "attention: packed documents", "dense: graded corner", "dense: rows fall far"]
HARD += ["dense: clusters", "dense: rank 16 plus noise", "dense: hugest", "convolution: three exponentials"]


def check_case(name):
    """Counts and entropy through the whole engine, against the definition and against the engine's own."""
    op, known = build(name), truth(name)
    T = op.dense_heads(op.all_heads())
    largest = known.largest[known.largest > 0]
    bases = torch.stack([largest.max(), largest.median()]) if len(largest) else torch.ones(2).double()
    tau = (bases[:, None] * powers(-8, -1, 8)).flatten()
    positions = torch.arange(1, op.length)
    found = engine_of(T).counts(positions.to(DEVICE), tau.to(DEVICE))
    mine = engine_of(T, Matrix).counts(positions, tau)
    counts, unresolved = found.counts.cpu(), found.unresolved.cpu()
    threshold = tau[:, None]
    distance = (known.values[:, None] - threshold[..., None]).abs().amin(-1)
    clear = distance > torch.maximum(1e-6 * threshold, 1e-13 * known.largest[:, None])
    wanted = (known.values[:, None] > threshold[..., None]).sum(-1)
    assert torch.equal(counts[clear], wanted[clear])
    assert not bool(((counts != wanted) & ~unresolved).any())
    assert torch.equal(counts[~unresolved], mine.counts[~unresolved])
    entropy = engine_of(T).entropy(positions.to(DEVICE)).ess.cpu()
    exact = entropy_of_values(known.values / known.largest.clamp_min(1e-300)[..., None])
    assert bool(((entropy - exact).abs() <= 1e-4 * exact.clamp_min(1)).all())


@pytest.mark.parametrize("name", HARD)
def test_hard_cases(name, quick):
    check_case(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names(longer_than=1) if name not in HARD])
def test_all_cases(name, quick):
    check_case(name)


@pytest.mark.parametrize("name", ["random", "convolution"])
def test_tolerances_on_singular_values(name, quick):
    """Of positions themselves, and of blocks that many positions share: done again, and right."""
    L = 150
    T = operator(name, L, heads=2)
    values = spectra_of(T)[:, 1:]
    own = values[0, [20, 75, 76, 120], [1, 3, 7, 2]]
    shared = torch.cat([torch.linalg.svdvals(T[0, e:, :a])[[1, 4]] for e, a in ((80, 48), (96, 80), (80, 64))])
    tau = torch.cat([own, shared])
    found = engine_of(T).counts(torch.arange(1, L, device=DEVICE), tau.to(DEVICE))
    counts, redone, unresolved = found.counts.cpu(), found.redone.cpu(), found.unresolved.cpu()
    difference = values[:, None] - tau[:, None, None]
    wanted, near = (difference > 0).sum(-1), (difference.abs() <= 1e-13 * values[:, None, :, :1]).sum(-1)
    assert bool(((counts - wanted).abs() <= near).all())
    assert bool(unresolved[0, [0, 1, 2, 3], [20, 75, 76, 120]].all())
    assert bool(redone[0, 4:].any(-1).all())


@pytest.mark.parametrize("tau", [1.0, 0.25, 0.5])
def test_clusters(tau, quick):
    T = corner(torch.tensor([1.0, 0.25]).double().repeat_interleave(40))[None]
    found = engine_of(T).counts(torch.tensor([80], device=DEVICE), torch.tensor([tau], device=DEVICE).double())
    assert bool(found.unresolved) == (tau != 0.5)
    low, high = {1.0: (0, 40), 0.25: (40, 80), 0.5: (40, 40)}[tau]
    assert low <= int(found.counts) <= high


def test_heads_do_not_touch_each_other(quick):
    """A head that is not finite has no answer, and the others have the same to the bit."""
    T = operator("random", 140, heads=3)
    spoiled = T.clone()
    spoiled[1, 100, 3] = torch.nan
    positions = torch.arange(1, 140, device=DEVICE)
    tau = torch.tensor([0.1, 1e-3], dtype=torch.float64, device=DEVICE)
    whole, rest = engine_of(T), engine_of(spoiled)
    assert rest.finite.tolist() == [True, False, True]
    for x, y in zip(whole.counts(positions, tau), rest.counts(positions, tau)):
        assert torch.equal(x[[0, 2]], y[[0, 2]])
    for x, y in zip(whole.entropy(positions), rest.entropy(positions)):
        assert torch.equal(x[[0, 2]], y[[0, 2]])


@pytest.mark.gpu
@pytest.mark.parametrize("definite", [False, True])
def test_more_entries_than_int32_can_number(definite):
    """The last items of batches that large, against the twins on these items alone."""
    torch.manual_seed(0)
    h, width = 64, 192
    batch = 2**31 // (h * width) + 100
    last = slice(batch - 2, batch)
    M = torch.zeros(batch, h, width, dtype=torch.float64, device=DEVICE)
    sign = torch.ones(batch, dtype=torch.float64, device=DEVICE)
    M[..., :h] = torch.eye(h)
    M[last] = torch.cat([symmetric(2, h, torch.ones(2).double()), randn(2, h, width - h)], -1).to(DEVICE)
    known = eliminate(M[last].cpu())
    value = torch.zeros(batch, dtype=torch.float64, device=DEVICE)
    out = elimination.eliminate(M, value, sign, definite)
    assert_close("rows", out.rows[last].cpu(), known.rows, rtol=1e-9, atol=1e-9)
    assert_close("scaled", out.scaled[last].cpu(), known.scaled, rtol=1e-9, atol=1e-9)
    del M, out
    T = torch.zeros(9, 16384, 16384, dtype=torch.float64, device=DEVICE)
    T[8, -70:, -70:] = randn(70, 70).tril(-1).to(DEVICE)
    gram = randn(9, 70, 70).to(DEVICE)
    head, inverse = torch.full((1,), 8, device=DEVICE), torch.ones(1, dtype=torch.float64, device=DEVICE)
    results = []
    for edge in (halves.edge, halves.edge_twin):
        results.append((gram.new_zeros(1, 48, 144), gram.new_zeros(1, 3, 48, 48)))
        edge(T, gram, head, inverse, False, *results[-1], definite)
    for found, wanted in zip(*results):
        assert_close("layout", found, wanted, rtol=1e-15, atol=1e-15)
