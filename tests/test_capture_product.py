"""`T u` without `T`: of every operator there is, also of packed and padded ones, whatever room there is for it."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

from ess_kernels import operators
from ess_kernels.capture import product
from ess_kernels.operators.structure import StateSpace
from ess_kernels.testing import OperatorTestCase
from ess_kernels.testing.cases import build, names
from ess_kernels.testing.packed_case import BOUNDARIES, LENGTH


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def check(op, channels=3):
    """`apply` against the product with `T`, in units of what the largest row adds up."""
    rows, columns = op.block
    u = randn(*op.batch_shape, op.length * columns, channels)
    found, T = product.apply(op, u), op.dense()
    assert found.shape == (*op.batch_shape, op.length * rows, channels)
    assert found.dtype == torch.float64
    if not found.numel():
        return
    unit = (T.abs() @ u.abs()).amax((-1, -2), keepdim=True).clamp_min(1e-300)
    assert float(((found - T @ u).abs() / unit).max()) <= 1e-12


@pytest.mark.parametrize("name", names())
def test_hard_operators(name):
    check(build(name))


def families():
    """Every test case of an operator family in the files of operators' tests, as `(its name, the class)`."""
    found = {}
    for file in [*Path(__file__).parent.glob("test_operators*.py"), *Path(__file__).parent.glob("test_attention*.py")]:
        for name, value in vars(importlib.import_module(file.stem)).items():
            if inspect.isclass(value) and issubclass(value, OperatorTestCase) and not inspect.isabstract(value):
                found[name.removeprefix("Test")] = value
    found.pop(OperatorTestCase.__name__, None)
    return sorted(found.items())


FAMILIES = families()


@pytest.mark.parametrize("family", [family for _, family in FAMILIES], ids=[name for name, _ in FAMILIES])
def test_every_family_whole_packed_and_padded(family):
    case = family()
    inputs = case.inputs(LENGTH)
    check(case.make_operator(inputs))
    if case._takes("cu_seqlens"):
        check(case._packed(case._first_row(), cu_seqlens=torch.tensor(BOUNDARIES)))
    if case._takes("seq_idx"):
        check(case._packed(case._first_row(), seq_idx=torch.tensor([[3, 3, 3, 3, 7, 3, 3, 3, 3]])))
    if case._takes("attention_mask"):
        rows = len(inputs[next(iter(inputs))]) if case.has_rows else 1
        mask = torch.ones(rows, LENGTH, dtype=torch.int64)
        mask[0, :2], mask[rows - 1, -3:] = 0, 0
        check(case._packed(inputs, attention_mask=mask))


def test_every_constructor_is_among_the_families():
    constructors = {inspect.unwrap(getattr(operators, name)) for name in operators.__all__}
    tested = {inspect.unwrap(family.constructor) for _, family in FAMILIES}
    hard = {name.partition(":")[0].replace(" ", "_") for name in names()}
    missing = {function.__name__ for function in constructors - tested if inspect.isfunction(function)} - hard
    # one converts, four refuse, and the test case of tiles calls it by a function
    assert missing <= {"as_operator", "mom", "titans", "ttt", "gated_oja_rule", "tiles"}


@pytest.mark.parametrize(
    ("name", "has_own"),
    [
        ("mamba3", True),
        ("rwkv4", True),
        ("rwkv6", True),
        ("lfm2_conv", True),
        ("short_convolution", True),
        ("dynamic_short_convolution", True),
        ("gla", False),
    ],
)
def test_a_diagonal_of_its_own_is_part_of_the_product(name, has_own):
    cases = [build(case) for case in names(f"{name}:")]
    owns = [op for op in cases if isinstance(op, StateSpace) and op.own_diagonal(op.all_heads()) is not None]
    assert bool(owns) == has_own
    for op in owns:
        # a one at token 3 alone, so that nothing but the diagonal is in that token's output
        u = torch.zeros(*op.batch_shape, op.length, 1, dtype=torch.float64)
        u[..., 3, 0] = 1
        own = op.own_diagonal(op.all_heads())[:, 3].reshape(op.batch_shape)
        found = product.apply(op, u)[..., 3, 0]
        assert torch.allclose(found, own, rtol=1e-12, atol=1e-14)
        assert bool(own.any())


# one of every way in which `T u` is made
WAYS = [
    "gla: decay",
    "recurrence: dense",
    "kda: ",
    "attention: ",
    "convolution: noise",
    "mamba3: ",
    "sum_of: ",
    "short_convolution: four taps",
]


@pytest.mark.parametrize("prefix", WAYS)
@pytest.mark.parametrize("budget", [1, 20_000, 60_000])
def test_little_room(monkeypatch, prefix, budget):
    """One head and one row at a time, or some: the same numbers."""
    op = build(names(prefix)[0])
    u = randn(*op.batch_shape, op.length, 2)
    whole = product.apply(op, u)
    monkeypatch.setattr(product, "BUDGET", budget)
    assert torch.allclose(product.apply(op, u), whole, rtol=1e-12, atol=1e-12 * float(whole.abs().max()))


def test_room_is_kept_to(monkeypatch):
    """Rows of `T` that exist at a time, and heads whose states do, stay within the budget."""
    made = []

    class Watched(operators.Tiled):
        def rows(self, heads, start, stop):
            made.append(8 * len(heads) * (stop - start) * stop)
            return torch.ones(len(heads), stop - start, stop, dtype=torch.float64).tril(start)

        def finite(self, heads):
            raise NotImplementedError

    op = Watched(100, (3, 5), None, [torch.zeros(1)])
    monkeypatch.setattr(product, "BUDGET", 30_000)
    found = product.apply(op, torch.ones(3, 5, 100, 2))
    assert torch.equal(found[0, 0, :, 0], torch.arange(1.0, 101).double())
    assert max(made) <= 30_000
    assert len(made) > 15

    q, k, g = randn(2, 40, 8, 6), randn(2, 40, 8, 6), -randn(2, 40, 8, 6).abs()
    heads_at_a_time = []
    whole = operators.gla(q, k, g)
    tokens = type(whole).tokens
    monkeypatch.setattr(
        type(whole), "tokens", lambda self, heads: heads_at_a_time.append(len(heads)) or tokens(self, heads)
    )
    product.apply(whole, randn(2, 8, 40, 3))
    assert sum(heads_at_a_time) == 16
    assert 1 <= max(heads_at_a_time) <= 30_000 // (8 * 40 * 6 * 4)
    heads_at_a_time.clear()  # heads of a padded row likewise
    padded = operators.gla(q, k, g, attention_mask=torch.tensor([[0] * 4 + [1] * 36, [1] * 40]))
    product.apply(padded, randn(2, 8, 40, 3))
    assert max(heads_at_a_time) <= 30_000 // (8 * 36 * 6 * 4)


def test_padding_is_neither_read_nor_written():
    q, k = randn(2, 4, 9, 5), randn(2, 4, 9, 5)
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 8 + [0]])
    u = randn(2, 4, 9, 3)
    spoilt = u.clone()
    spoilt[0, :, :2], spoilt[1, :, 8] = torch.nan, torch.inf
    for op in (operators.attention(q, k, attention_mask=mask), operators.dense(q @ k.mT, attention_mask=mask)):
        found = product.apply(op, spoilt)
        assert torch.equal(found, product.apply(op, u))
        assert not found[0, :, :2].any()
        assert not found[1, :, 8].any()


def test_sums_of_operators():
    q, k, g = randn(2, 33, 3, 4), randn(2, 33, 3, 4), -randn(2, 33, 3, 4).abs()
    gla, linear = operators.gla(q, k, g), operators.linear_attention(k, q)
    attention = operators.attention(q.transpose(1, 2), k.transpose(1, 2))
    for op in (
        operators.sum_of(gla, linear, weights=(0.5, -2.0)),
        operators.sum_of(gla, linear, weights=(randn(2, 3), randn(2, 3, 33))),
        operators.sum_of(gla, attention, weights=(1.0, randn(3))),
    ):
        check(op)


def test_sizes():
    """No tokens, no channels, low precision, and numbers that are not finite."""
    q = randn(2, 7, 3, 4)
    check(operators.gla(q[:, :0], q[:, :0], q[:, :0]))
    check(operators.dense(torch.zeros(2, 0, 0)))
    check(operators.gla(q[:0], q[:0], q[:0]))
    check(operators.gla(q, q, -q.abs()), channels=0)
    op = operators.gla(q, q, -q.abs())
    u = randn(2, 3, 7, 5).bfloat16()
    assert torch.equal(product.apply(op, u), product.apply(op, u.double()))
    # more axes of the batch, or fewer, are the values' own
    T = torch.ones(3, 7, 7).double()
    assert product.apply(operators.dense(T), u[:1]).shape == (1, 3, 7, 5)
    bad = u.clone()
    bad[0, 0, 2] = torch.nan
    found = product.apply(op, bad)
    assert bool(found[0, 0, 2:].isnan().all())
    assert bool(found[0, 0, :2].isfinite().all())
    assert bool(found[1].isfinite().all())
