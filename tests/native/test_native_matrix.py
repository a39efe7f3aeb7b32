"""Dense operators by compiled kernels: every position against the definition, at every dispatch level."""

from __future__ import annotations

import ctypes
import gc
import logging

import pytest
import torch
from covering import covering
from every_position import singular_values
from identical import levels, running
from torch import Tensor

import ess_kernels as ek
from ess_kernels.backends.native import NativeBackend, abi, call, library, memory
from ess_kernels.backends.native.banded import NativeBandedMatrix
from ess_kernels.backends.native.matrix import NativeMatrix
from ess_kernels.engine.certainty import HOPELESS, entropy_of_values, near_tie, width_of
from ess_kernels.engine.cost import Cost
from ess_kernels.engine.tiled import Matrix
from ess_kernels.testing.cases import build, names, powers, truth

if library().handle is None:
    pytest.skip(f"native library: {library().reason}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("pinned")
BUDGET = 1 << 30
CASES = names(kind="tiled", longer_than=1)
# around whole leaves of 32 positions, odd numbers of leaves, and lengths that end in a leaf of one position
LENGTHS = [2, 3, 17, 31, 32, 33, 63, 64, 65, 96, 97, 129, 160, 193, 257, 300]


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, "ess_kernels")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(L: int, sharpness: float, heads: int = 1, window: int | None = None) -> Tensor:
    scores = sharpness * randn(heads, L, 8, seed=L) @ randn(heads, 8, L, seed=L + 1)
    distance = torch.arange(L)[:, None] - torch.arange(L)
    unseen = (distance < 0) | (distance >= (window or L))
    return scores.masked_fill(unseen, -torch.inf).softmax(-1)


def packed(L: int) -> Tensor:
    document = torch.arange(L) * 3 // L
    return softmax(L, 1.0) * (document[:, None] == document)


OPERATORS = {
    "softmax": lambda L: softmax(L, 1.0, heads=2),
    "flat": lambda L: softmax(L, 0.05),
    "sharp": lambda L: softmax(L, 8.0),
    "window": lambda L: softmax(L, 1.0, window=9),
    "packed documents": packed,
    "identical keys": lambda L: torch.ones(1, L, L).double() / torch.arange(1, L + 1)[:, None],
    "noise": lambda L: randn(1, L, L),
    "graded rows": lambda L: randn(1, L, L) * powers(0, -9, L)[:, None],
    "graded columns": lambda L: randn(1, L, L) * powers(-7, 0, L),
    "rank 16 plus noise": lambda L: randn(1, L, 16) @ randn(1, 16, L, seed=1) + 1e-6 * randn(1, L, L, seed=2),
    "zero": lambda L: torch.zeros(1, L, L).double(),
}


def engine_of(T: Tensor, kind: type[Matrix] = NativeMatrix, budget: int = BUDGET) -> Matrix:
    return kind(T.clone(), torch.ones(len(T), dtype=torch.bool), budget, Cost())


def spectra(engine: Matrix) -> Tensor:
    """Scaled singular values `[N, L-1, S]` of every `H_i`."""
    T, L = engine.T, engine.length
    values = torch.zeros(len(T), L - 1, L // 2, dtype=torch.float64)
    for i, s in enumerate(singular_values(T)[1:]):
        values[:, i, : s.shape[-1]] = s
    return values


def everywhere(N: int, S: int, L: int) -> Tensor:
    wanted = torch.ones(N, S, L, dtype=torch.bool)
    wanted[..., 0] = False
    return wanted


def staircase(engine: Matrix, shifts: Tensor, definite: bool, wanted: Tensor | None = None) -> tuple[Tensor, ...]:
    """Value, growth and least `[N, S, L]` at `shifts` `[S]` or `[N, S]`."""
    N, L, S = len(engine.unit), engine.length, shifts.shape[-1]
    wanted = everywhere(N, S, L) if wanted is None else wanted
    answer = engine.staircase(wanted, shifts.expand(N, -1), definite)
    return tuple(x.view(N, S, L) for x in (answer.value, answer.growth, answer.least))


@covering(each=4, name=list(OPERATORS), L=LENGTHS)
def test_counts_at_every_position(name, L):
    """One elimination each, without anything done again: right wherever it does not say that it may be wrong."""
    engine = engine_of(OPERATORS[name](L))
    values = spectra(engine)
    tau = values.amax().clamp_min(1e-3) * powers(-1, -7, 7)
    counts, growth, least = (x[..., 1:] for x in staircase(engine, tau, definite=False))
    difference = values[:, None] - tau[:, None, None]
    width = width_of(growth)
    sure = (width < HOPELESS) & ~near_tie(growth, least)
    clear = difference.abs().amin(-1) > width * tau[:, None]
    wrong = counts != (difference > 0).sum(-1)
    assert not bool((wrong & sure & clear).any())
    assert bool((counts >= 0).all()) and not bool(wrong[:, :4].any())


@covering(each=3, name=list(OPERATORS), L=LENGTHS[::2])
def test_log_determinants_at_every_position(name, L):
    engine = engine_of(OPERATORS[name](L))
    values = spectra(engine)
    shifts = values.amax().clamp_min(1e-3) * powers(1, -7, 9)
    found = staircase(engine, shifts, definite=True)[0][..., 1:]
    wanted = torch.log1p((values[:, None] / shifts[:, None, None]).square()).sum(-1)
    # squares of shifts that are small against the norm magnify rounding
    error = (found - wanted).abs() / (1 + wanted)
    assert bool((error <= 1e-12 + 1e-15 * (values.amax() / shifts[:, None]).square()).all())


@pytest.mark.parametrize("L", [2, 33, 64, 97, 150])
def test_every_level(level, L):
    engine = engine_of(OPERATORS["softmax"](L))
    values = spectra(engine)
    tau = values.amax() * powers(-1, -5, 5)
    counts, growth, _ = (x[..., 1:] for x in staircase(engine, tau, definite=False))
    difference = values[:, None] - tau[:, None, None]
    clear = difference.abs().amin(-1) > width_of(growth) * tau[:, None]
    assert not bool(((counts != (difference > 0).sum(-1)) & clear).any())
    found = staircase(engine, tau, definite=True)[0][..., 1:]
    wanted = torch.log1p((values[:, None] / tau[:, None, None]).square()).sum(-1)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9)


@covering(name=CASES, level=levels(), indirect=["level"])
def test_the_hard_cases(name, level):
    """The whole way through the engine: counts as the definition has them or else a warning, and the entropy."""
    op, known = build(name), truth(name)
    largest = known.largest[known.largest > 0]
    base = largest.max() if len(largest) else torch.tensor(1.0).double()
    tau = base * powers(-1, -7, 7)
    counts, certificate = ek.tolerance_ess(op, tau, backend="native", certificate=True)
    counts, unresolved = (x.reshape(len(tau), op.num_heads, -1) for x in (counts, certificate.unresolved))
    wrong = counts != (known.values > tau[:, None, None, None]).sum(-1)
    assert not bool((wrong & ~unresolved).any())
    entropy = ek.entropy_ess(op, backend="native").reshape(op.num_heads, -1)
    wanted = entropy_of_values(known.values / torch.where(known.largest > 0, known.largest, 1.0)[..., None])
    assert bool(((entropy - wanted).abs() <= 1e-4 * wanted.clamp_min(1)).all())


@pytest.mark.parametrize("L", [65, 97, 200])
def test_forced_ties(L):
    """Tolerances on singular values of blocks that the tree really eliminates, moved by nothing and by rounding."""
    engine = engine_of(OPERATORS["softmax"](L))
    values = spectra(engine)
    ties = []
    for start, stop in ((32, 64), (64, 64), (32, 32), (0, 32)):
        s = torch.linalg.svdvals(engine.T[0, stop:, : max(start, 1)])
        ties += s[s > 1e-5][:: max(1, len(s) // 4)].tolist()
    for shift in (0.0, 1e-13, -1e-13):
        tau = torch.tensor(ties, dtype=torch.float64) * (1 + shift)
        found = engine.counts(torch.arange(1, L), tau * engine.unit[0])
        difference = values[:, None] - tau[:, None, None]
        near = (difference.abs() <= 1e-13 * values[:, None, :, :1]).sum(-1)
        assert bool((((difference > 0).sum(-1) - found.counts).abs() <= near).all())


def test_threads_change_nothing():
    for L in (33, 290, 700):
        results = []
        for threads in (1, 2, 3, 7, 40):
            with running(threads=threads):
                engine = engine_of(softmax(L, 1.0, heads=2))
                tau = torch.tensor([0.3, 1e-2]).double()
                results.append(
                    [
                        *staircase(engine, tau, False),
                        *staircase(engine, tau, True)[:1],
                        engine.bound_of_squares(),
                        engine.unit,
                    ]
                )
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_company_changes_nothing(level):
    """Which heads, tolerances and positions come together, and in which slices, is of no consequence."""
    L = 290
    T = torch.cat([softmax(L, 1.0), randn(1, L, L), softmax(L, 6.0)])
    tau = torch.tensor([[0.3, 1e-2, 1e-4]]).double()
    for definite in (False, True):
        together = staircase(engine_of(T), tau, definite)
        sliced = staircase(engine_of(T, budget=1), tau, definite)
        assert all(torch.equal(x, y) for x, y in zip(together, sliced, strict=True))
        for head in range(3):
            for s in range(3):
                alone = staircase(engine_of(T[head : head + 1]), tau[:, s : s + 1], definite)
                assert all(torch.equal(x[head, s], y[0, 0]) for x, y in zip(together, alone, strict=True))


def test_subsets_of_positions():
    L = 290
    engine = engine_of(softmax(L, 1.0, heads=2))
    tau = torch.tensor([0.3, 1e-2]).double()
    for definite in (False, True):
        everything = staircase(engine, tau, definite)
        for seed in range(4):
            chosen = torch.rand(2, 2, L, generator=torch.Generator().manual_seed(seed)) < (0.5, 0.1, 0.01, 0.0)[seed]
            chosen[..., 0] = False
            some = staircase(engine, tau, definite, chosen)
            for found, whole, nothing in zip(some, everything, (0.0, 0.0, torch.inf), strict=True):
                assert torch.equal(found, torch.where(chosen, whole, nothing))


def test_the_operator_is_read_below_the_diagonal_only():
    L = 75
    T = softmax(L, 1.0, heads=2)
    spoiled = T.clone()
    spoiled[:, torch.ones(L, L, dtype=torch.bool).triu()] = torch.nan
    tau = torch.tensor([1e-2]).double()
    clean, dirty = engine_of(T), engine_of(spoiled)
    assert torch.equal(clean.unit, dirty.unit) and bool(dirty.finite.all())
    assert torch.equal(clean.T, dirty.T) and torch.equal(clean.bound_of_squares(), dirty.bound_of_squares())
    for definite in (False, True):
        for x, y in zip(staircase(clean, tau, definite), staircase(dirty, tau, definite), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_heads_have_no_answer_and_do_not_touch_others(bad):
    T = softmax(80, 1.0, heads=3)
    clean = engine_of(T)
    T[1, 50, 49] = bad
    engine = engine_of(T)
    assert engine.finite.tolist() == [True, False, True]
    positions, tau = torch.arange(1, 80), torch.tensor([0.1, 1e-3]).double()
    for x, y in zip(clean.counts(positions, tau), engine.counts(positions, tau), strict=True):
        assert torch.equal(x[[0, 2]], y[[0, 2]])
    for x, y in zip(clean.entropy(positions), engine.entropy(positions), strict=True):
        assert torch.equal(x[[0, 2]], y[[0, 2]])


@pytest.mark.parametrize("L", [1, 2, 3, 60, 65, 257])
def test_unit_and_norm(L, level):
    T = torch.cat([randn(1, L, L), 1e-200 * softmax(L, 1.0), 1e200 * randn(1, L, L), torch.zeros(1, L, L).double()])
    mine, other = engine_of(T), engine_of(T, Matrix)
    assert torch.equal(mine.unit, other.unit) and torch.equal(mine.T, other.T)
    assert torch.allclose(mine.bound_of_squares(), other.bound_of_squares(), rtol=1e-12, atol=0)
    assert torch.allclose(mine.squared_norms, other.squared_norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": 7},
        {"window_size": 1},
        {"window_size": 1000},
        {"softcap": 2.0},
        {"sinks": torch.tensor([1.0, -2.0, 30.0, -500.0])},
        {"scale": 5.0, "sinks": torch.zeros(4), "window_size": 20, "softcap": 9.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("L, E", [(1, 4), (2, 1), (16, 8), (17, 300), (33, 64), (100, 5), (257, 16)])
def test_softmax_weights(options, L, E, level):
    q, k = 3 * randn(2, 4, L, E, seed=1), randn(2, 2, L, E, seed=2)
    op = ek.operators.attention(q, k, **options)
    heads = torch.tensor([5, 0, 7])
    found = NativeBackend().rows(op, heads).tril()
    assert bool(((found - op.rows(heads, 0, L)).abs() <= 4e-14).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_low_precision_inputs_and_of_masks(dtype):
    q, k = randn(1, 2, 40, 8).to(dtype), randn(1, 2, 40, 8, seed=3).to(dtype)
    for mask in (None, torch.ones(40, 40, dtype=torch.bool).tril(2), randn(40, 40)):
        op = ek.operators.attention(q, k, attn_mask=mask)
        found = NativeBackend().rows(op, op.all_heads()).tril()
        assert bool(((found - op.rows(op.all_heads(), 0, 40)).abs() <= 1e-14).all())


def test_memory_is_kept_for_the_next_engine():
    q, k = randn(1, 1, 200, 8), randn(1, 1, 200, 8, seed=1)
    op = ek.operators.attention(q, k)
    first = ek.tolerance_ess(op, 1e-2, backend="native")
    gc.collect()
    free = {name: array.data_ptr() for name, array in memory.kept.free.items()}
    assert {"operator", "products"} <= set(free)
    assert torch.equal(ek.tolerance_ess(op, 1e-2, backend="native"), first)
    gc.collect()
    assert {name: array.data_ptr() for name, array in memory.kept.free.items()} == free


def test_what_is_borrowed_twice_is_two_arrays():
    one, two = memory.borrow("test", 100), memory.borrow("test", 100)
    assert one.data_ptr() != two.data_ptr() and one.data_ptr() % 64 == two.data_ptr() % 64 == 0
    memory.give_back("test", one)  # forgotten when the second was borrowed
    memory.give_back("test", two)
    assert memory.borrow("test", 50).untyped_storage().data_ptr() == two.untyped_storage().data_ptr()


# --- what the door refuses --------------------------------------------------------------------------------------------


KERNELS = ("matrix_largest", "matrix_norm", "matrix_products", "matrix_staircase")


class Jobs:
    """Jobs that the kernels do: operators of two heads of 70, and all arrays that they read and write."""

    def __init__(self):
        self.arrays = {
            "T": softmax(70, 1.0, heads=2),
            "scale": torch.ones(2).double(),
            "products": memory.borrow("door", 2 * library().handle.ess_matrix_products_size(70)),
            "head": torch.tensor([0, 1, 1]),
            "shift": torch.tensor([0.1, 0.1, 0.2]).double(),
            "wanted": torch.ones(3, 70, dtype=torch.bool),
            **{name: torch.zeros(3, 70).double() for name in ("value", "growth", "least")},
            **{name: torch.zeros(2, 70).double() for name in ("norm", "squares", "largest")},
        }
        T, scale = (self.arrays[name].data_ptr() for name in ("T", "scale"))
        self.operators = abi.Matrix(2, 70, T, 70, 4900, scale)

    def __call__(self, kernel, **fields):
        """The job of a kernel, with other values of some fields."""
        job = abi.JOBS[kernel]()
        given = {"matrix": ctypes.pointer(self.operators), "items": 3, "steps": 3, "definite": 0, "reserved": 0}
        for name, kind in job._fields_:
            value = self.arrays[name].data_ptr() if kind is ctypes.c_void_p else given[name]
            setattr(job, name, fields.get(name, value))
        assert fields.keys() <= {name for name, _ in job._fields_}
        return job

    def refused(self, message, kernel, **fields):
        with pytest.raises(ValueError, match=f"ess_{kernel}: {message}"):
            call.run(self(kernel, **fields))


@pytest.fixture
def jobs(pinned):
    made = Jobs()
    for kernel in KERNELS:
        call.run(made(kernel))
    return made


@pytest.mark.parametrize("kernel", KERNELS)
def test_null_pointers(jobs, kernel):
    pointers = [name for name, kind in abi.JOBS[kernel]._fields_ if kind is ctypes.c_void_p or name == "matrix"]
    assert len(pointers) == {"matrix_largest": 2, "matrix_norm": 3, "matrix_products": 2, "matrix_staircase": 8}[kernel]
    for name in pointers:
        jobs.refused("null pointer", kernel, **{name: None})


def test_counts_need_growth_and_log_determinants_do_not(jobs):
    call.run(jobs("matrix_staircase", definite=1, growth=None, least=None))


@pytest.mark.parametrize(
    "field, value",
    [
        ("heads", 0),
        ("length", 0),
        ("length", 2**20 + 1),
        ("row_stride", 69),
        ("head_stride", 4899),
        ("heads", 2**50),
        ("part", 4),
        ("part", -1),
        ("reserved", 1),
    ],
)
def test_operators_out_of_range(jobs, field, value):
    setattr(jobs.operators, field, value)
    for kernel in KERNELS:
        jobs.refused("size or stride", kernel)


@pytest.mark.parametrize("field", ["T", "scale"])
def test_operators_without_memory(jobs, field):
    setattr(jobs.operators, field, None)
    for kernel in KERNELS:
        jobs.refused("null pointer", kernel)


def test_parts_of_operators(jobs):
    """Each kernel takes the parts that it can work with, and of those no more than rows that are there."""
    handle = library().handle
    assert [handle.ess_matrix_middle(length) for length in (0, 1, 32, 33, 70, 129)] == [-2, 0, 0, 32, 64, 96]
    taken = {"matrix_products": (1, 2, 3), "matrix_staircase": (2, 3)}
    for part in (1, 2, 3):
        jobs.operators.part = part
        for kernel in KERNELS:
            if part in taken.get(kernel, ()):
                call.run(jobs(kernel))
            else:
                jobs.refused("size or stride", kernel)
    # a corner of 6 rows and 64 columns, quarters of 64 and of 6
    for part, columns, numbers in ((1, 64, 6 * 64), (2, 64, 64 * 64), (3, 6, 6 * 6)):
        jobs.operators.part, jobs.operators.row_stride, jobs.operators.head_stride = part, columns, numbers
        call.run(jobs("matrix_products"))
        jobs.operators.row_stride = columns - 1
        jobs.refused("size or stride", "matrix_products")
        jobs.operators.row_stride, jobs.operators.head_stride = columns, numbers - 1
        jobs.refused("size or stride", "matrix_products")
    # one leaf has no middle
    jobs.operators.length, jobs.operators.row_stride, jobs.operators.head_stride = 32, 70, 4900
    jobs.refused("size or stride", "matrix_products")


@pytest.mark.parametrize("name", ["softmax", "noise", "graded rows"])
@pytest.mark.parametrize("L", [33, 64, 97, 300])
def test_parts_give_the_bits_of_the_whole(name, L):
    T = OPERATORS[name](L)[:1]
    whole = engine_of(T)
    halves = NativeBandedMatrix(lambda start, stop: T[:, start:stop, :stop], None, L, torch.ones(1) > 0, 1, Cost())
    stored = NativeBandedMatrix(lambda start, stop: T[:, start:stop, :stop], T[0], L, torch.ones(1) > 0, 1, Cost())
    shifts = torch.tensor([0.3, 1e-3, 1e-7]).double()
    for definite in (False, True):
        wanted = staircase(whole, shifts, definite)
        for engine in (halves, stored):
            for mine, theirs in zip(staircase(engine, shifts, definite), wanted, strict=True):
                assert torch.equal(mine, theirs)
    right = everywhere(1, 3, L)
    right[..., : L // 2 + 20] = False
    few = staircase(halves, shifts, False, right)
    for mine, theirs in zip(few, staircase(whole, shifts, False, right), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name, value", [("head", 2), ("head", -1), ("shift", 0.0), ("shift", torch.nan)])
def test_items_out_of_range(jobs, name, value):
    jobs.arrays[name][1] = value
    jobs.refused("size", "matrix_staircase")


def test_other_refusals(jobs):
    handle = library().handle
    assert handle.ess_matrix_products_size(0) == -2 and handle.ess_matrix_products_size(32) == 0
    for items in (0, -1, 2**50):
        jobs.refused("size or stride", "matrix_staircase", items=items)
    jobs.refused("size or stride", "matrix_staircase", reserved=1)
    misaligned = jobs.arrays["products"].data_ptr() + 8
    for kernel in ("matrix_products", "matrix_staircase"):
        jobs.refused("size or stride", kernel, products=misaligned)
    jobs.refused("size", "matrix_norm", steps=0)
    run = abi.Run(1, 0, None, 0)
    assert handle.ess_matrix_products(run, jobs("matrix_products")) == abi.WORKSPACE
    run.level = 99
    assert handle.ess_matrix_products(run, jobs("matrix_products")) == 6
    for name in ("value", "growth", "least"):
        assert bool(jobs.arrays[name].isfinite().all())


def test_attention_refusals():
    x = randn(1, 20, 4)
    weights = torch.empty(32, 32, dtype=torch.float64)
    good = {"heads": 1, "length": 20, "size": 4, "q": x.data_ptr(), "k": x.data_ptr(), "scale": 1.0}
    good |= {"weights": weights.data_ptr(), "row_stride": 32, "end": 20}
    wrong = [
        ({"heads": 0}, "size"),
        ({"size": 0}, "size"),
        ({"length": 0}, "size"),
        ({"window": -1}, "size"),
        ({"softcap": -1.0}, "size"),
        ({"q": None}, "null"),
        ({"k": None}, "null"),
        ({"weights": None}, "null"),
        ({"length": 40, "end": 40}, "size"),  # rows of 32 numbers do not hold it
        ({"end": 21}, "size"),
        ({"begin": 8}, "size"),  # no whole tile
        ({"begin": -16}, "size"),
        ({"begin": 16, "end": 16}, "size"),
        ({"row_stride": 31}, "size"),
    ]
    call.run(abi.AttentionRows(**good))
    for change, message in wrong:
        with pytest.raises(ValueError, match=f"ess_attention_rows: {message}"):
            call.run(abi.AttentionRows(**{**good, **change}))
