"""Operators with a window, answered chunk by chunk: the same answers, from the tokens beside each chunk only."""

import pytest
import torch

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.backends import chunks, windowed
from ess_kernels.backends.torch import TorchBackend
from ess_kernels.engine import cost
from ess_kernels.operators.sparsity import sparsity_of
from ess_kernels.reference import reference_entropy_ess, reference_singular_values, reference_tolerance_ess

TOLERANCES = [0.3, 0.03, 1e-4]
BACKENDS = ("torch", "native")


def randn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(*shape, generator=generator)


@pytest.fixture
def always(monkeypatch):
    """Every window is answered by chunks, however short the sequence is and whatever it costs."""
    monkeypatch.setattr(windowed, "SHORTEST", 2)
    monkeypatch.setattr(chunks, "WORTHWHILE", 1e9)
    monkeypatch.setattr(chunks, "MORE", 1)


@pytest.fixture
def taken(monkeypatch):
    """The lengths of all matrices that PyTorch's engine is given."""
    lengths = []
    matrix = TorchBackend._matrix

    def noting(self, T, *rest):
        lengths.append(T.shape[-1])
        return matrix(self, T, *rest)

    monkeypatch.setattr(TorchBackend, "_matrix", noting)
    return lengths


def whole(monkeypatch, question):
    """The answer of the whole operator."""
    with monkeypatch.context() as patch:
        patch.setattr(windowed, "SHORTEST", 10**9)
        return question()


def band(length: int, window: int, first: int = 0) -> torch.Tensor:
    """bool `[L, L]`: the last `window` columns of every row and the first ones of all."""
    column = torch.arange(length)
    row = column[:, None]
    return (column <= row) & ((column > row - window) | (column < first))


def kernel(length: int, window: int, *batch: int) -> torch.Tensor:
    k = randn(*batch, length)
    k[..., window:] = 0
    return k


def resets(length: int) -> torch.Tensor:
    """Gates `[1, 4, L]`, one of them -inf."""
    g = -randn(1, 4, length).abs()
    g[0, 1, length // 2] = -torch.inf
    return g


OPERATORS = {
    "attention": lambda L, w: operators.attention(randn(1, 4, L, 8), randn(1, 2, L, 8), window_size=w),
    "forgetting attention": lambda L, w: operators.attention(
        randn(1, 4, L, 8), randn(1, 2, L, 8), window_size=w, g=resets(L), softcap=3.0, sinks=randn(4)
    ),
    "alibi": lambda L, w: operators.attention(
        randn(1, 2, L, 8), randn(1, 2, L, 8), window_size=w, alibi_slopes=torch.tensor([0.1, 0.02])
    ),
    "bool mask": lambda L, w: operators.attention(randn(1, 2, L, 8), randn(1, 1, L, 8), attn_mask=band(L, w)),
    "mask of -inf": lambda L, w: operators.attention(
        randn(2, 2, L, 8), randn(2, 2, L, 8), attn_mask=torch.where(band(L, w), randn(2, 1, L, L), -torch.inf)
    ),
    "mask of the lowest numbers": lambda L, w: operators.attention(
        randn(1, 2, L, 8).half(), randn(1, 2, L, 8).half(), attn_mask=torch.where(band(L, w), 0, -65504).half()[None]
    ),
    "two first columns": lambda L, w: operators.attention(
        randn(1, 2, L, 8), randn(1, 1, L, 8), attn_mask=band(L, w, 2)[None, None]
    ),
    "convolution": lambda L, w: operators.convolution(kernel(L, w, 3)),
    "gated convolution": lambda L, w: operators.gated_convolution(randn(2, 3, L), kernel(L, w, 3), randn(2, 3, L)),
    "dense": lambda L, w: operators.dense(randn(2, L, L).double() * band(L, w)),
    "dense, first columns": lambda L, w: operators.dense(randn(2, L, L) * band(L, w, 1)),
    "parallax": lambda L, w: operators.parallax(
        randn(1, L, 2, 8), 0.1 * randn(1, L, 2, 8), randn(1, L, 1, 8), window_size=w
    ),
    "wall attention": lambda L, w: operators.wall_attention(
        randn(1, L, 2, 4), randn(1, L, 1, 4), g=-randn(1, L, 2, 4).abs(), sinks=randn(2), window_size=w
    ),
}


def compare_counts_with_the_definition(op, backend, positions=None):
    counts, certificate = ek.tolerance_ess(op, TOLERANCES, positions=positions, backend=backend, certificate=True)
    assert not bool(certificate.unresolved.any())
    wanted = torch.stack([reference_tolerance_ess(op, atol) for atol in TOLERANCES])
    its = slice(None) if positions is None else torch.tensor(positions) - 1
    assert torch.equal(counts, wanted[..., its])


def compare_with_the_definition(op, backend, positions=None):
    compare_counts_with_the_definition(op, backend, positions)
    its = slice(None) if positions is None else torch.tensor(positions) - 1
    entropy, certificate = ek.entropy_ess(op, positions, backend, certificate=True)
    torch.testing.assert_close(entropy, reference_entropy_ess(op)[..., its], rtol=1e-4, atol=0)
    values = reference_singular_values(op)
    assert bool(((certificate.total - values.sum(-1)[..., its]).abs() <= 1e-4 * (1 + certificate.total)).all())
    found = ek.singular_values(op, range(1, op.length) if positions is None else positions, values.shape[-1], backend)
    torch.testing.assert_close(found, values[..., its, :], rtol=0, atol=1e-12 * float(values.amax()))
    soft = ek.soft_ess(op, 0.1, positions, backend)
    squares = values.square()
    torch.testing.assert_close(soft, (squares / (squares + 0.01)).sum(-1)[..., its], rtol=1e-4, atol=1e-6)


# --- the same answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_every_window_of_a_short_sequence(always, name):
    length = 11
    for window in range(1, length + 2):
        op = OPERATORS[name](length, window)
        compare_counts_with_the_definition(op, "native")
        if window in (1, 3):
            compare_counts_with_the_definition(op, "torch")
            compare_with_the_definition(op, "native")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_every_window_of_a_longer_sequence(always, name):
    for length in (2, 3, 40):
        for window in range(1, length + 2):
            op = OPERATORS[name](length, window)
            for backend in BACKENDS:
                compare_with_the_definition(op, backend)


@pytest.mark.parametrize("name", OPERATORS)
def test_where_a_window_pays(monkeypatch, taken, name):
    monkeypatch.setattr(windowed, "SHORTEST", 128)
    op = OPERATORS[name](250, 4)
    counts = ek.tolerance_ess(op, TOLERANCES, backend="torch")
    assert taken and max(taken) < 90
    expected = whole(monkeypatch, lambda: ek.tolerance_ess(op, TOLERANCES))
    assert torch.equal(counts, expected) and torch.equal(ek.tolerance_ess(op, TOLERANCES), expected)
    entropy = ek.entropy_ess(op)
    torch.testing.assert_close(entropy, whole(monkeypatch, lambda: ek.entropy_ess(op)), rtol=1e-4, atol=0)


def test_relative_tolerances_where_a_window_pays(monkeypatch):
    monkeypatch.setattr(windowed, "SHORTEST", 128)
    for name in ("two first columns", "convolution"):
        op = OPERATORS[name](150, 3)

        def question(op=op):
            return ek.tolerance_ess(op, rtol=[0.5, 0.01], atol=[0.0, 0.1])

        assert torch.equal(question(), whole(monkeypatch, question))


@pytest.mark.parametrize("name", ["attention", "two first columns", "convolution", "gated convolution"])
def test_positions_in_any_order(always, name):
    op = OPERATORS[name](50, 4)
    for positions in ([49], [1], [7, 40, 3, 7, 41, 49, 1], list(range(1, 50, 3)), [], [25, 24]):
        if positions:
            compare_with_the_definition(op, "native", positions)
        assert ek.tolerance_ess(op, positions=positions).shape == (*op.batch_shape, len(positions))


@pytest.mark.thorough
def test_in_tritons_interpreter(always):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    for name in ("attention", "two first columns"):
        op = OPERATORS[name](24, 3)
        wanted = reference_tolerance_ess(op, 0.03)
        assert torch.equal(
            ek.tolerance_ess(op, 0.03, positions=[5, 12, 20], backend="triton"), wanted[..., [4, 11, 19]]
        )


def test_a_small_budget_changes_nothing(always):
    op = OPERATORS["two first columns"](40, 5)
    counts, entropy = ek.tolerance_ess(op, TOLERANCES), ek.entropy_ess(op)
    with ek.memory_budget("16K"):  # one chunk at a time
        assert torch.equal(ek.tolerance_ess(op, TOLERANCES), counts)
        assert torch.equal(ek.entropy_ess(op), entropy)
    with ek.memory_budget(1):  # the operator of a chunk is never whole
        assert torch.equal(ek.tolerance_ess(op, TOLERANCES), counts)
        torch.testing.assert_close(ek.entropy_ess(op), entropy, rtol=1e-6, atol=0)


def test_tolerances_of_zero_and_infinity(always):
    op = OPERATORS["attention"](30, 4)
    counts = ek.tolerance_ess(op, [0.0, torch.inf])
    # every H_i has a triangle of w - 1 columns, or less near the ends
    assert torch.equal(counts[0], reference_tolerance_ess(op, 1e-12))
    assert not bool(counts[1].any())


def test_chunks_of_unlike_units(always):
    """Each chunk has a unit of its own, so that small numbers in one are not lost beside large ones in another."""
    scale = 10.0 ** torch.linspace(-150, 150, 60, dtype=torch.float64)
    op = operators.dense(scale[:, None] * randn(60, 60).double() * band(60, 3))
    for backend in BACKENDS:
        counts = ek.tolerance_ess(op, rtol=1e-3, backend=backend)
        assert torch.equal(counts, ek.tolerance_ess(op, rtol=1e-3, backend="reference"))


def test_sequences_of_a_packed_batch(always):
    q, k, cu_seqlens = randn(1, 2, 40, 8), randn(1, 2, 40, 8), torch.tensor([0, 17, 18, 40])
    op = operators.attention(q, k, window_size=3, cu_seqlens=cu_seqlens)
    assert op.bandwidth == 3
    counts = ek.tolerance_ess(op, TOLERANCES)
    for start, stop in ((0, 17), (18, 40)):
        one = operators.attention(q[:, :, start:stop], k[:, :, start:stop], window_size=3)
        assert torch.equal(counts[..., start : stop - 1], ek.tolerance_ess(one, TOLERANCES, backend="reference"))


@pytest.mark.thorough
def test_a_compiled_graph(always):
    q, k, mask = randn(1, 2, 30, 8), randn(1, 2, 30, 8), band(30, 4, 2)

    def question(q, k, mask):
        op = operators.attention(q, k, attn_mask=mask)
        return ek.tolerance_ess(op, TOLERANCES), ek.entropy_ess(op)

    torch._dynamo.reset()
    found = torch.compile(question, fullgraph=True, backend="aot_eager")(q, k, mask)
    for mine, expected in zip(found, question(q, k, mask), strict=True):
        assert torch.equal(mine, expected)


def test_gradients(always):
    q, k = randn(1, 1, 20, 4).double().requires_grad_(), randn(1, 1, 20, 4).double()
    torch.autograd.gradcheck(lambda q: ek.entropy_ess(operators.attention(q, k, window_size=3), [4, 10, 19]), q)


def test_a_long_call_says_so_once(always, monkeypatch, caplog):
    monkeypatch.setattr(cost, "LONG", 1.0)
    ek.singular_values(OPERATORS["attention"](40, 3), range(1, 40), backend="torch")
    assert caplog.text.count("need exact singular values") == 1


# --- bad data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_data_marks_all_positions_of_its_head_and_no_other(always, backend):
    q, k = randn(1, 3, 40, 8), randn(1, 3, 40, 8)
    clean = operators.attention(q, k, window_size=3)
    spoilt = q.clone()
    spoilt[0, 1, 5, 0] = torch.nan
    op = operators.attention(spoilt, k, window_size=3)
    for positions in (None, [30, 31]):
        counts, certificate = ek.tolerance_ess(op, TOLERANCES, positions=positions, backend=backend, certificate=True)
        expected = ek.tolerance_ess(clean, TOLERANCES, positions=positions, backend=backend)
        assert bool((counts[:, 0, 1] == -1).all()) and bool(certificate.unresolved[:, 0, 1].all())
        assert torch.equal(counts[:, :, ::2], expected[:, :, ::2])
        entropy = ek.entropy_ess(op, positions, backend)
        assert bool(entropy[0, 1].isnan().all())
        assert torch.equal(entropy[:, ::2], ek.entropy_ess(clean, positions, backend)[:, ::2])
    values = ek.singular_values(op, [30], 3, backend)
    assert bool(values[0, 1].isnan().all()) and bool(values[:, ::2].isfinite().all())
    assert bool((ek.tolerance_ess(operators.attention(spoilt[:, 1:2], k[:, 1:2], window_size=3)) == -1).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_overflow_far_from_the_positions(always, backend):
    """Finite numbers whose product or sum is none mark their head, also where no position asked for reads them."""
    x = torch.ones(1, 2, 60, dtype=torch.float64)
    x[0, 0, 50:] = 1e200
    gated = operators.gated_convolution(x, kernel(60, 3, 2).double(), x)
    g = torch.zeros(1, 2, 60, dtype=torch.float64)
    g[0, 0, 50:] = 1e308
    forgetting = operators.attention(randn(1, 2, 60, 4), randn(1, 2, 60, 4), g=g, window_size=5)
    mask = torch.where(band(60, 3), 0.0, -torch.inf).double().repeat(1, 2, 1, 1)
    mask[0, 0, 55, 54] = 1.7e308
    large = torch.full((1, 2, 60, 1), 1e154, dtype=torch.float64)
    masked = operators.attention(large, large, attn_mask=mask, scale=0.9)
    T = randn(1, 2, 60, 60).double() * band(60, 3)
    T[0, 0, 58, 57] = torch.inf
    for op in (gated, forgetting, masked, operators.dense(T)):
        counts = ek.tolerance_ess(op, positions=[10, 11], backend=backend)
        assert bool((counts[0, 0] == -1).all()) and bool((counts[0, 1] >= 0).all())


# --- what is known of an operator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_bandwidth(name):
    for length, window in ((1, 1), (12, 1), (12, 5), (12, 11), (12, 12), (12, 40), (100, 9)):
        expected = window if window < length and "first" not in name else None
        assert OPERATORS[name](length, window).bandwidth == (expected if length > 1 else None)


def test_bandwidth_of_other_operators():
    assert operators.short_convolution(randn(2, 4), 10).bandwidth == 4
    assert operators.short_convolution(randn(2, 4), 3).bandwidth is None
    assert operators.short_convolution(randn(2, 1), 3).bandwidth == 1
    assert operators.gla(randn(1, 9, 1, 2), randn(1, 9, 1, 2), -randn(1, 9, 1, 2).abs()).bandwidth is None
    assert operators.attention(randn(0, 1, 9, 2), randn(0, 1, 9, 2), window_size=3).bandwidth is None
    # 8 rows below the diagonal may be in the third block below it
    T = torch.zeros(30, 30)
    T[8, 0] = 1.0
    assert operators.dense(T, block=3).bandwidth == 4
    assert operators.dense(torch.block_diag(*[randn(3, 3)] * 4), block=3).bandwidth == 1


def test_blocks_with_a_window(always):
    T = randn(2, 60, 60).double() * band(60, 6)
    # what lies in the diagonal blocks is in no H_i
    T[1, 7, 6] = torch.nan
    for backend in BACKENDS:
        op = operators.dense(T, block=3)
        counts = ek.tolerance_ess(op, TOLERANCES, backend=backend)
        assert torch.equal(counts, ek.tolerance_ess(op, TOLERANCES, backend="reference")) and bool((counts >= 0).all())


def test_patterns():
    """Widths are those of the pattern, whatever it is."""
    generator = torch.Generator().manual_seed(0)
    length, column = 40, torch.arange(40)
    patterns = [band(length, w, s) for w in (1, 2, 9, 40) for s in (0, 1, 5)]
    patterns += [(torch.rand(length, length, generator=generator) < p).tril() for p in (0.0, 0.01, 0.1, 0.9)]
    patterns += [band(length, 4) & (column % 3 == 0), band(length, 4, 3) & (column[:, None] % 2 == 0)]
    stacked = torch.stack(patterns)
    found = sparsity_of(lambda a, b: stacked[:, a:b, :b], len(patterns), length, stacked.device)
    distance = column[:, None] - column + 1
    for pattern, bandwidth, window, first in zip(patterns, *(x.tolist() for x in found), strict=True):
        assert bandwidth == max(1, int((distance * pattern).amax()))
        assert window == max(1, int((distance * pattern)[:, first:].amax()))
    assert found.first_columns.tolist()[:12] == [0, 1, 5, 0, 1, 5, 0, 1, 5, 0, 0, 0]


def test_masks_that_broadcast(always):
    q, k = randn(2, 2, 30, 4), randn(2, 2, 30, 4)
    keys = torch.zeros(30, dtype=torch.bool)
    keys[[0, 28]] = True
    queries = torch.ones(30, 1, dtype=torch.bool)
    queries[5:] = False
    empty = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    for mask in (keys, queries, empty, band(30, 3)[None], band(30, 3).expand(2, 1, 30, 30)):
        op = operators.attention(q, k, attn_mask=mask)
        for backend in BACKENDS:
            compare_with_the_definition(op, backend)


def test_each_head_decides_for_itself(always):
    """Heads with a window, with first columns beside it, without either, and without any column."""
    masks = torch.stack([band(40, 3), band(40, 4, 2), band(40, 40), torch.zeros(40, 40, dtype=torch.bool)])
    q, k = randn(1, 4, 40, 8), randn(1, 1, 40, 8)
    op = operators.attention(q, k, attn_mask=masks)
    assert op.bandwidth is None
    for backend in BACKENDS:
        compare_with_the_definition(op, backend)
        counts, entropy = ek.tolerance_ess(op, TOLERANCES, backend=backend), ek.entropy_ess(op, backend=backend)
        for head in range(4):
            alone = operators.attention(q[:, head : head + 1], k, attn_mask=masks[head])
            assert torch.equal(ek.tolerance_ess(alone, TOLERANCES, backend=backend), counts[:, :, head : head + 1])
            assert torch.equal(ek.entropy_ess(alone, backend=backend), entropy[:, head : head + 1])


def test_low_numbers_hide_nothing_from_scores_that_are_as_large():
    """A mask of -65504 is a number, which scores of the order of 1e5 can make up for."""
    q = torch.full((1, 1, 20, 1), 400.0)
    mask = torch.where(band(20, 3), 0.0, -65504.0)
    assert operators.attention(q / 100, q / 100, attn_mask=mask, scale=1.0).bandwidth == 3
    assert operators.attention(q, q, attn_mask=mask, scale=1.0).bandwidth is None
    assert operators.attention(q, q, attn_mask=mask, scale=1.0, softcap=50.0).bandwidth == 3
    # a row whose own column is hidden as well sees them all
    mask[10] = -65504.0
    assert operators.attention(q / 100, q / 100, attn_mask=mask, scale=1.0).bandwidth == 11


# --- rows behind a chunk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_first_columns_lose_is_in_the_certificate(monkeypatch, backend):
    monkeypatch.setattr(windowed, "SHORTEST", 128)
    op = operators.attention(randn(1, 1, 250, 8), randn(1, 1, 250, 8), attn_mask=band(250, 6, 3))
    counts, certificate = ek.tolerance_ess(op, [1e-2, 1e-11], backend=backend, certificate=True)
    assert torch.equal(counts[0], whole(monkeypatch, lambda: ek.tolerance_ess(op, 1e-2)))
    # a number with all digits is not enough for what rounding has done to the rows behind a chunk
    middle = slice(50, 100)
    assert bool((certificate.width[0, ..., middle] > 1e-13).all())
    assert bool((certificate.width[1, ..., middle] > 1e-5).all() | certificate.unresolved[1, ..., middle].any())
    _, entropies = ek.entropy_ess(op, backend=backend, certificate=True)
    difference = (entropies.total - reference_singular_values(op).sum(-1)).abs()
    assert bool((difference <= 1e-4 * entropies.total).all())
