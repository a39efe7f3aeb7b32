"""Bounds of counts and entropies: the truth lies between them, at every tolerance and position, by every method."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels import operators as ops
from ess_kernels.bounds import choice
from ess_kernels.bounds.counts import Question
from ess_kernels.engine.certainty import entropy_of_values
from ess_kernels.engine.decay import surely_beyond, tails_of
from ess_kernels.engine.interlacing import interlaced
from ess_kernels.operators import Operator
from ess_kernels.operators.of_heads import Banded, OfHeads
from ess_kernels.operators.structure import Tiled
from ess_kernels.operators.tile_sources import tile_source
from ess_kernels.testing.cases import build, names, randn, truth

METHODS = ("exact", "windowed", "compressed", "randomized", "strided", "auto")
ENTROPY_METHODS = ("exact", "windowed", "compressed", "auto")
# one of every kind whose spectrum is hard
HARD = (
    "attention: sharp",
    "convolution: falling",
    "dense: rank 16 plus noise",
    "gla: packed documents",
    "gla: tiny times tiny",
)


def alibi(length: int, slope: float = 1 / 4, heads: int = 1) -> Operator:
    q, k = randn(2, 1, heads, length, 8).unbind(0)
    return ops.attention(q, k, alibi_slopes=torch.full((heads,), slope, dtype=torch.float64))


def power_law(length: int) -> Operator:
    return ops.convolution((1 / (1 + torch.arange(length, dtype=torch.float64)))[None])


def values_of(op: Operator) -> Tensor:
    """Singular values `[N, L - 1, S]` by one decomposition a position, zero padded."""
    T, L = op.dense_heads(op.all_heads()).tril(-1), op.length
    found = [torch.linalg.svdvals(T[:, i:, :i]) for i in range(1, L)]
    return torch.stack([torch.nn.functional.pad(s, (0, L // 2 - s.shape[-1])) for s in found], 1)


def interesting_tolerances(values: Tensor) -> list[float]:
    """Two that are singular values, and two that are hardly so: `values` `[N, P, S]`."""
    middle = values[0, values.shape[1] // 2]
    if not bool(middle.any()):  # a position between two documents
        middle = values[0, values[0, :, 0].argmax()]
    some = middle[middle > 1e-12 * middle[:1]]
    most = float(values.max())
    return [float(some[len(some) // 2]), float(values[-1, values.shape[1] // 3, 0]), 0.1 * most, 1e-3 * most]


def check_counts(op: Operator, values: Tensor, method: str, tolerances: list[float]) -> int:
    """Asserts that counts are within the bounds, but for what rounding has made of the truth; how many were looked at.

    What an engine takes as it comes is right but for singular values within 1e-7 of the tolerance.
    """
    found = ek.bounded_ess(op, tolerances, method=method, rank=6, stride=7)
    good = op.finite(op.all_heads())
    shape = (len(tolerances), op.num_heads, -1)
    lower, upper = found.lower.reshape(shape), found.upper.reshape(shape)
    assert (lower[:, ~good] == -1).all() and (upper[:, ~good] == -1).all()
    assert len(found.method) == len(found.why) == op.num_heads
    lower, upper, values = lower[:, good], upper[:, good], values[good]
    tau = torch.tensor(tolerances, dtype=torch.float64)[:, None, None, None]
    rounding = 1e-13 * values[..., :1]
    if method in ("exact", "windowed", "strided", "auto"):
        rounding = rounding + 1e-7 * tau
    least, most = ((values > tau + side * rounding).sum(-1) for side in (1, -1))
    assert (lower <= upper).all()
    assert (lower <= most).all(), (method, found.why)
    assert (least <= upper).all(), (method, found.why)
    return lower.numel()


def check_case(name: str, methods: tuple[str, ...]) -> int:
    op, values = build(name), truth(name).values
    good = op.finite(op.all_heads())
    if op.length < 3 or not bool(good.any()):
        return 0
    most = float(values[good].max())
    if not 0 < most < math.inf:
        return 0
    return sum(check_counts(op, values, method, interesting_tolerances(values[good])) for method in methods)


@pytest.mark.parametrize("name", HARD)
def test_counts_are_within_their_bounds(name: str):
    assert check_case(name, METHODS) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_counts_of_every_operator_are_within_their_bounds(name: str):
    check_case(name, METHODS)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [name for name in names() if not name.startswith("gla") and name.split(":")[0] != "recurrence"]
)
def test_counts_by_approximation_are_within_their_bounds(name: str):
    check_case(name, ("windowed", "compressed"))


@pytest.mark.slow
def test_trained_heads():
    """The attention of the embedded model, on a text, at tolerances of which some are singular values."""
    from ess_kernels.demo.measure import default_text, load_model

    text = (default_text() * 2)[:200]
    model, _ = load_model()
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None]
    with torch.no_grad():
        found = [op for _, op in model.operators(ids) if isinstance(op, Tiled)]
    assert found
    for op in found:
        values = values_of(op)
        for method in METHODS:
            check_counts(op, values, method, interesting_tolerances(values))


@pytest.mark.slow
def test_many_operators_tolerances_and_positions():
    """10^5 and more: decaying attention and convolutions, slowly moving keys, sinks, dense matrices of falling rank."""
    looked_at = 0
    for seed in range(2):
        torch.manual_seed(seed)
        L = 90 + 7 * seed
        t = torch.arange(L, dtype=torch.float64)
        q, k = randn(2, 1, 2, L, 8).unbind(0)
        slow = randn(1, 2, L, 8).cumsum(2)
        slow = slow / slow.norm(dim=-1, keepdim=True) * 3
        kinds: list[Operator] = [
            alibi(L, 1 / 8, 2),
            ops.attention(q, k, g=-randn(1, 2, L).abs() / 4),
            ops.attention(slow, slow),
            ops.attention(q, k, sinks=torch.full((2,), 5.0, dtype=torch.float64)),
            power_law(L),
            ops.convolution(randn(2, L) * torch.exp(-t / 8)),
            ops.dense(randn(2, L, 12) @ randn(2, 12, L) + 1e-6 * randn(2, L, L)),
        ]
        for op in kinds:
            values = values_of(op)
            most = float(values.max())
            tolerances = [*interesting_tolerances(values), *(most * torch.logspace(-7, -0.2, 6).double()).tolist()]
            for method in METHODS:
                looked_at += check_counts(op, values, method, tolerances)
    assert looked_at > 100_000


def test_exact_is_tolerance_ess_bit_for_bit():
    for op in (ops.dense(randn(3, 60, 60)), alibi(70, heads=2), build("gla: weak decay")):
        atol = [1e-3, 0.1, 1.0]
        counts = ek.tolerance_ess(op, atol=atol)
        found = ek.bounded_ess(op, atol, method="exact")
        assert torch.equal(found.lower, counts) and torch.equal(found.upper, counts)
        assert found.lower.dtype == torch.int64
        positions = [5, 3, 3, 40]
        found = ek.bounded_ess(op, 0.1, positions, method="exact")
        assert torch.equal(found.lower, counts[1][..., [4, 2, 2, 39]])


def test_shapes_orders_and_defaults():
    op = alibi(40, heads=3)
    found = ek.bounded_ess(op)
    assert found.lower.shape == (1, 3, 39) and torch.equal(found.lower, ek.tolerance_ess(op, atol=1e-3))
    for method in METHODS:
        every = ek.bounded_ess(op, [0.1], method=method, stride=1, rank=20)
        some = ek.bounded_ess(op, 0.1, range(39, 0, -1), method=method, stride=1, rank=20)
        assert every.lower.shape == (1, 1, 3, 39)
        assert torch.equal(every.lower[0].flip(-1), some.lower) and torch.equal(every.upper[0].flip(-1), some.upper)
        assert ek.bounded_ess(op, [0.1, 0.2], [], method=method).lower.shape == (2, 1, 3, 0)
        for length in (0, 1, 2, 3):
            T = randn(2, length, length)
            found = ek.bounded_ess(T, 0.1, method=method)
            assert found.lower.shape == (2, max(length - 1, 0))
            assert (found.lower <= ek.tolerance_ess(T, atol=0.1)).all()
            assert (found.upper >= ek.tolerance_ess(T, atol=0.1)).all()
        assert ek.bounded_ess(randn(0, 9, 9), 0.1, method=method).lower.shape == (0, 8)
        blocked = ops.dense(randn(2, 24, 24), block=3)
        counts = ek.tolerance_ess(blocked, atol=0.5)
        found = ek.bounded_ess(blocked, 0.5, method=method)
        assert ((found.lower <= counts) & (counts <= found.upper)).all()


def test_tolerances_of_zero_and_infinity():
    T = randn(30, 12) @ randn(12, 30)
    exact = ek.tolerance_ess(T, atol=[0.0, math.inf])
    for method in METHODS:
        found = ek.bounded_ess(T, [0.0, math.inf], method=method)
        assert ((found.lower <= exact) & (exact <= found.upper))[1].all()
        assert (found.upper[0] >= ek.tolerance_ess(T, atol=1e-9)).all()
        assert (found.lower[0] <= ek.tolerance_ess(T, atol=1e-13)).all()


@pytest.mark.parametrize("method", METHODS)
def test_bad_heads_have_no_bounds_and_leave_others_alone(method: str):
    T = randn(3, 40, 40).tril() * torch.exp(-torch.arange(40.0).double()[:, None] / 4).clamp_min(1e-3)
    alone = ek.bounded_ess(T[::2], 0.1, method=method)
    T[1, 20, 3] = torch.nan
    found = ek.bounded_ess(T, 0.1, method=method)
    assert (found.lower[1] == -1).all() and (found.upper[1] == -1).all() and "NaN" in found.why[1]
    assert torch.equal(found.lower[::2], alone.lower) and torch.equal(found.upper[::2], alone.upper)
    entropy_method = method if method in ENTROPY_METHODS else "auto"
    entropy = ek.bounded_entropy_ess(T, method=entropy_method)
    assert entropy.lower[1].isnan().all() and entropy.upper[1].isnan().all()
    assert not entropy.lower[::2].isnan().any()


def test_packed_sequences():
    q, k = randn(2, 1, 2, 60, 8).unbind(0)
    op = ops.attention(q, k, cu_seqlens=torch.tensor([0, 25, 60]))
    counts = ek.tolerance_ess(op, atol=0.05)
    for method in METHODS:
        found = ek.bounded_ess(op, 0.05, method=method)
        assert ((found.lower <= counts) & (counts <= found.upper)).all(), method
    ess = ek.entropy_ess(op)
    for method in ENTROPY_METHODS:
        bounds = ek.bounded_entropy_ess(op, method=method)
        assert ((bounds.lower <= ess * 1.0002) & (ess <= bounds.upper * 1.0002)).all(), method


# --- single methods ---------------------------------------------------------------------------------------------------


def test_windows_by_error_leave_out_no_more_than_they_say():
    for op in (alibi(150), ops.convolution(randn(1, 150) * torch.exp(-torch.arange(150.0).double() / 5))):
        source = tile_source(op, op.all_heads())
        T = op.dense_heads(op.all_heads())[0].tril(-1)
        lag = torch.arange(150)[:, None] - torch.arange(150)
        tails = tails_of(op, source, 149)
        for error in (1e-1, 1e-3, 1e-6):
            width, left = tails.narrowest(error)
            beyond = torch.where(lag >= width, T, 0.0)
            assert float(torch.linalg.matrix_norm(beyond, 2)) <= left <= error
            near = Banded(op, op.all_heads(), width).dense()[0]
            within = torch.where(lag < width, op.dense().reshape(150, 150), 0.0)
            torch.testing.assert_close(near, within, rtol=0, atol=1e-15)
            width, left = tails.narrowest(error, nuclear=True)
            beyond = torch.where(lag >= width, T, 0.0)
            assert float(torch.linalg.matrix_norm(beyond, "nuc")) <= left <= error
            assert not surely_beyond(source, width, error) or width < 20


def test_a_window_by_error_and_compression_close_most_positions():
    op = alibi(500)
    found = ek.bounded_ess(op, 1e-2, method="windowed")
    exact = ek.tolerance_ess(op, atol=1e-2)
    assert found.method == ("windowed",) and "width" in found.why[0]
    assert ((found.lower <= exact) & (exact <= found.upper)).all()
    assert float((found.lower == found.upper).double().mean()) > 0.98
    op = power_law(500)
    found = ek.bounded_ess(op, 1e-3, method="compressed")
    assert torch.equal(found.lower, ek.tolerance_ess(op, atol=1e-3)) and torch.equal(found.lower, found.upper)


def test_counts_move_by_one_at_most():
    T = randn(40, 40) * torch.logspace(0, -5, 40).double()
    counts = ek.tolerance_ess(T, atol=1e-2)
    positions = torch.arange(1, 40)
    visited = torch.zeros(39, dtype=torch.bool)
    visited[[0, 10, 25, 38]] = True
    lower = torch.where(visited, counts, 0)
    upper = torch.where(visited, counts, 40)
    low, high = interlaced(lower, upper, positions)
    assert ((low <= counts) & (counts <= high)).all()
    brute = torch.stack([torch.stack([counts[j] - abs(i - j) for j in (0, 10, 25, 38)]).amax() for i in range(39)])
    assert torch.equal(low.clamp_min(0), brute.clamp_min(0))


def test_strides_and_refinement():
    T = randn(120, 120) * torch.logspace(0, -6, 120).double()
    counts = ek.tolerance_ess(T, atol=1e-2)
    for stride, refine in ((40, None), (40, 6), (119, 1), (1, None), (500, 10)):
        found = ek.bounded_ess(T, 1e-2, method="strided", stride=stride, refine=refine)
        assert ((found.lower <= counts) & (counts <= found.upper)).all()
        if refine is not None:
            assert int((found.upper - found.lower).max()) <= refine
        if stride == 1:
            assert torch.equal(found.lower, found.upper)


# --- what auto chooses ------------------------------------------------------------------------------------------------


@pytest.fixture
def short_is_shorter(monkeypatch: pytest.MonkeyPatch):
    """So that short operators are decided about as long ones are."""
    monkeypatch.setattr(choice, "SHORT", 16)


@pytest.mark.usefixtures("short_is_shorter")
def test_auto_takes_what_fits():
    L = 600
    q, k = randn(2, 1, 3, L, 8).unbind(0)
    slopes = torch.tensor([2.0, 1.0, 1e-9], dtype=torch.float64)
    found = ek.bounded_ess(ops.attention(q, k, alibi_slopes=slopes))
    assert found.method == ("windowed", "windowed", "exact"), found.why
    assert "compression refused" in found.why[2]
    exact = ek.tolerance_ess(ops.attention(q, k, alibi_slopes=slopes))
    assert ((found.lower <= exact) & (exact <= found.upper)).all()
    found = ek.bounded_ess(power_law(L))
    assert found.method == ("compressed",), found.why
    assert ek.bounded_ess(ops.attention(q, k, window_size=20)).method == ("windowed",) * 3
    assert ek.bounded_ess(build("gla: weak decay")).method[0] == "exact"
    assert ek.bounded_entropy_ess(power_law(L)).method == ("compressed",)


@pytest.mark.usefixtures("short_is_shorter")
def test_auto_without_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "free_memory", lambda: 1000)
    q, k = randn(2, 1, 1, 300, 8).unbind(0)
    op = ops.attention(q, k)
    found = ek.bounded_ess(op, 0.05)
    assert found.method == ("randomized",) and "16 positions" in found.why[0]
    exact = ek.tolerance_ess(op, atol=0.05)
    assert ((found.lower <= exact) & (exact <= found.upper)).all()
    assert "2 positions" in ek.bounded_ess(op, 0.05, [100, 200]).why[0]
    with pytest.raises(MemoryError, match=r"one head of length 300 needs \d+\.\d MiB, which are not free"):
        ek.bounded_entropy_ess(op)


def test_some_heads_of_an_operator():
    op = alibi(50, heads=4)
    some = OfHeads(op, torch.tensor([2, 0]))
    assert torch.equal(some.dense(), op.dense()[0, [2, 0]])
    assert torch.equal(ek.tolerance_ess(some, atol=0.01), ek.tolerance_ess(op, atol=0.01)[0, [2, 0]])
    question = Question(op, torch.arange(1, 50), [0.1]).of_heads(torch.tensor([1]))
    assert question.inner.num_heads == 1 and question.cap.shape == (1, 1, 49)


# --- entropies --------------------------------------------------------------------------------------------------------


def check_entropies(name: str) -> None:
    op, values = build(name), truth(name).values
    good = op.finite(op.all_heads())
    most = float(values[good].max()) if op.length > 2 and bool(good.any()) else 0.0
    if not 0 < most < math.inf:
        return
    true = entropy_of_values(values[good] / most)
    for method in ENTROPY_METHODS:
        found = ek.bounded_entropy_ess(op, method=method)
        lower, upper = (x.reshape(op.num_heads, -1)[good] for x in (found.lower, found.upper))
        assert (lower <= upper).all()
        assert (lower <= true * (1 + 1e-9)).all(), (method, found.why)
        assert (true <= upper * (1 + 1e-9)).all(), (method, found.why)


@pytest.mark.parametrize("name", HARD)
def test_entropies_are_within_their_bounds(name: str):
    check_entropies(name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", names())
def test_entropies_of_every_operator_are_within_their_bounds(name: str):
    check_entropies(name)


def test_entropy_bounds_are_close_where_little_is_left_out():
    for op, method in ((alibi(400), "windowed"), (power_law(400), "compressed"), (alibi(300), "exact")):
        found = ek.bounded_entropy_ess(op, method=method)
        middle = slice(50, -50)
        radius = (found.upper.log() - found.lower.log())[..., middle] / 2
        assert float(radius.max()) <= 2e-4, (method, found.why)
        ess = ek.entropy_ess(op)
        assert ((found.lower <= ess) & (ess <= found.upper)).all()


# --- wrong arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"method": "guess"}, ValueError, "method"),
        ({"method": None}, ValueError, "method"),
        ({"rtol": 1e-3}, TypeError, "rtol"),
        ({"atol": -1.0}, ValueError, "atol"),
        ({"atol": math.nan}, ValueError, "atol"),
        ({"error": 0.0}, ValueError, "error"),
        ({"error": math.nan}, ValueError, "error"),
        ({"rank": 0}, ValueError, "rank"),
        ({"stride": 0}, ValueError, "stride"),
        ({"refine": -1}, ValueError, "refine"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"positions": [0]}, ValueError, "positions"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        ek.bounded_ess(randn(10, 10), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"method": "randomized"}, ValueError, "method"),
        ({"error": -1}, ValueError, "error"),
        ({"atol": 1.0}, TypeError, "atol"),
    ],
)
def test_wrong_arguments_of_entropies(arguments: dict, error: type[Exception], named: str):
    with pytest.raises(error, match=named):
        ek.bounded_entropy_ess(randn(10, 10), **arguments)


def test_every_head_is_answered_for_reasons_of_its_own():
    """Not for those of the other heads in its batch."""
    t = torch.arange(96)
    banded = torch.randn(96, 96, dtype=torch.float64) * ((t <= t[:, None]) & (t > t[:, None] - 5))
    full = torch.randn(96, 96, dtype=torch.float64)
    for bounds in (ek.bounded_ess, ek.bounded_entropy_ess):
        found = bounds(torch.stack([banded, full * torch.nan, full]))
        assert found.method == ("windowed", "exact", "exact")
        alone = bounds(banded[None])
        assert found.why[0] == alone.why[0] and found.why[1] == "it holds NaN or infinity"
        assert torch.equal(found.lower[0], alone.lower[0]) and torch.equal(found.upper[0], alone.upper[0])
