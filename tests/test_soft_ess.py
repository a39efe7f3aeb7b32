"""The soft count and the nuclear norm without a gradient: the definition on every backend, and what is refused."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

import ess_kernels as ek
from ess_kernels import backends, operators
from ess_kernels.engine.soft_quadrature import soft_count_is_certain
from ess_kernels.metrics import nuclear_norm, soft_ess
from ess_kernels.reference import reference_singular_values
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import CASES, build, names, randn, truth

USABLE = [status.name for status in backends.describe() if status.usable and status.name != "triton"]
SHARES = (1e-1, 1e-3, 1e-6)  # tolerances, of the largest singular value


def some(length=40, n=5, heads=2):
    torch.manual_seed(length)
    shape = (2, length, heads, n)
    return randn(*shape), randn(*shape), logsigmoid(randn(*shape)) / 4


def by_definition(values, atol):
    return (values.square() / (values.square() + atol**2)).sum(-1)


def some_operators():
    q, k, g = some()
    return {
        "gla": operators.gla(q, k, g),
        "attention": operators.attention(q.transpose(1, 2), k.transpose(1, 2)),
        "delta product": operators.gated_delta_product(
            q, normalize(randn(2, 80, 2, 5), dim=-1), beta=torch.rand(2, 80, 2), num_householder=2
        ),
        "packed": operators.gla(q[:1], k[:1], g[:1], cu_seqlens=torch.tensor([0, 1, 13, 30, 40])),
    }


OPERATORS = some_operators()


@pytest.mark.parametrize("backend", ["auto", *USABLE])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_definition(name, backend):
    op = OPERATORS[name]
    for positions in (None, [7, 3, 30, 7], [20]):
        values = reference_singular_values(op, positions)
        found = soft_ess(op, [0.05, 3.0], positions, backend)
        assert found.dtype == torch.float64 and found.shape == (2, *values.shape[:-1])
        for row, atol in zip(found, (0.05, 3.0)):
            assert_close("soft count", row, by_definition(values, atol), rtol=1e-5, atol=1e-6)
        assert_close("one tolerance", soft_ess(op, 3.0, positions, backend), found[1], rtol=1e-12)
        total = nuclear_norm(op, positions, backend)
        assert_close("nuclear norm", total, values.sum(-1), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        name if name in names("gla: ")[::4] else pytest.param(name, marks=pytest.mark.thorough)
        for name in CASES
        if CASES[name].length > 1
    ],
)
def test_hard_operators(name):
    op, spectra = build(name), truth(name)
    largest = float(spectra.largest.max()) or 1.0
    values = spectra.values.reshape(*op.batch_shape, *spectra.values.shape[1:])
    found = soft_ess(op, [share * largest for share in SHARES])
    for share, row in zip(SHARES, found):
        expected = by_definition(values / largest, share)
        assert_close(f"soft count at {share}", row, expected, rtol=8e-5, atol=8e-5)
    assert_close("nuclear norm", nuclear_norm(op), values.sum(-1), rtol=1e-4, atol=1e-4 * largest)


def test_a_value_equal_to_the_tolerance_counts_one_half():
    T = torch.zeros(6, 6, dtype=torch.float64)
    T[3:, :3] = torch.diag(torch.tensor([2.0, 20.0, 0.2], dtype=torch.float64))
    assert float(soft_ess(T, 2.0, [3])) == pytest.approx(0.5 + 100 / 101 + 1 / 101, rel=1e-12)
    assert float(nuclear_norm(T, [3])) == pytest.approx(22.2)


def test_it_follows_tolerance_ess():
    """A soft count at a tolerance in the middle of a wide gap is the count."""
    op = operators.dense(randn(20, 20))
    for atol in (1e-9, 1e9):
        assert_close("count", soft_ess(op, atol), ek.tolerance_ess(op, atol).double(), atol=1e-6)


def few_keys(seed):
    """Recurrences whose states have a lower rank than their size: 2 to 8 distinct keys, again and again."""
    torch.manual_seed(seed)
    distinct, n, length = 2 + seed % 7, 4 + 5 * seed % 13, 24 + 7 * seed % 41
    q, k = randn(1, length, 1, n), randn(distinct, n)[torch.arange(length) % distinct][None, :, None]
    yield operators.linear_attention(q, k, scale=1.0)
    yield operators.gla(q, k, logsigmoid(randn(*q.shape)) / 4)
    yield operators.delta_rule(q, normalize(k, dim=-1), torch.rand(1, length, 1))


@pytest.mark.parametrize("backend", [name for name in USABLE if name != "reference"])
@pytest.mark.parametrize(
    "seeds",
    [
        range(8),
        pytest.param(range(8, 60), marks=pytest.mark.thorough),
        pytest.param(range(60, 200), marks=pytest.mark.slow),
    ],
)
def test_states_of_low_rank_at_tolerances_near_rounding(seeds, backend):
    """Log-determinants are then all rounding errors, whose differences have any size and either sign."""
    atol = [10.0**-e for e in range(5, 10)]
    for op in (op for seed in seeds for op in few_keys(seed)):
        expected = soft_ess(op, atol, backend="reference")
        assert_close("soft count", soft_ess(op, atol, backend=backend), expected, rtol=1e-4, atol=1e-4)


def test_an_impossible_count_does_not_vouch_for_itself():
    counts = torch.tensor([3.0, 4.0 + 1e-9, 4.1, 1e9, -6.2, 0.0, math.nan, 2.0, 2.0, 2.0])
    bound = torch.tensor([1e-6, 1e-6, 1e-6, 1e-30, math.inf, math.inf, math.inf, math.nan, math.inf, 1e-3])
    certain = soft_count_is_certain(counts.double(), bound.double(), torch.tensor(4.0))
    assert certain.tolist() == [True, True] + [False] * 8


def test_the_nuclear_norm_is_in_the_units_of_the_operator():
    q, k, g = some()
    for scale in (1e-120, 1e100):
        found = nuclear_norm(operators.gla(scale * q, k, g))
        assert_close("norm", found / scale, nuclear_norm(operators.gla(q, k, g)), rtol=1e-9)
        counts = soft_ess(operators.gla(scale * q, k, g), 0.5 * scale)
        assert_close("soft count", counts, soft_ess(operators.gla(q, k, g), 0.5), rtol=1e-6)


def test_bad_heads_have_no_answer_and_spoil_no_other():
    q, k, g = some()
    bad = q.clone()
    bad[1, 5, 0, 2] = math.nan
    for metric in (nuclear_norm, lambda op: soft_ess(op, [0.1, 1.0])):
        found, clean = metric(operators.gla(bad, k, g)), metric(operators.gla(q, k, g))
        assert bool(found[..., 1, 0, :].isnan().all())
        assert torch.equal(found[..., 0, :, :], clean[..., 0, :, :])
        assert torch.equal(found[..., 1, 1, :], clean[..., 1, 1, :])


def test_nothing_to_measure():
    for shape in ((0, 0), (1, 1)):
        assert soft_ess(torch.zeros(shape), [0.1, 1.0]).shape == (2, 0)
        assert nuclear_norm(torch.zeros(shape)).shape == (0,)
    assert soft_ess(torch.zeros(0, 5, 5), 1.0).shape == (0, 4)
    assert soft_ess(torch.eye(5), []).shape == (0, 4)
    assert float(soft_ess(torch.zeros(5, 5), 1e-3).abs().max()) == 0 == float(nuclear_norm(torch.zeros(5, 5)).max())


@pytest.mark.parametrize("atol", [0.0, -1.0, math.inf, math.nan, [1.0, 0.0]])
def test_tolerances_are_positive_and_finite(atol):
    with pytest.raises(ValueError, match=r"^atol: expected"):
        soft_ess(torch.eye(5), atol)


def test_tolerances_that_require_grad_are_refused():
    T, atol = randn(6, 6), torch.tensor(0.5).requires_grad_()
    for value in (atol, atol[None], [atol, 1.0], (1.0, atol)):
        for op in (T, T.clone().requires_grad_()):
            with pytest.raises(ValueError, match=r"^atol: expected plain numbers, got a tensor that requires grad"):
                soft_ess(op, value)
    with pytest.raises(ValueError, match=r"^atol: expected plain numbers"):
        torch.func.grad(lambda atol: soft_ess(T, atol).sum())(atol.detach())
    expected = soft_ess(T, 0.5)
    assert torch.equal(soft_ess(T, atol.detach()), expected)
    with torch.no_grad():
        assert torch.equal(soft_ess(T, atol), expected)


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match=r"^op: expected an operator or a tensor"):
        nuclear_norm(3)
    with pytest.raises(ValueError, match=r"^positions: expected integers in 1\.\.4, got 5"):
        soft_ess(torch.eye(5), 1.0, [5])
    with pytest.raises(ValueError, match=r"^backend: expected one of"):
        soft_ess(torch.eye(5), 1.0, backend="numpy")
    with pytest.raises(RuntimeError, match=r"reference.*soft_ess.*backward"):
        soft_ess(torch.eye(5).requires_grad_(), 1.0, backend="reference")


@pytest.mark.thorough
def test_compiled_graphs_give_the_same_numbers():
    def both(q, k, g):
        op = operators.gla(q, k, g)
        return soft_ess(op, [0.1, 1.0], [3, 9]), nuclear_norm(op)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for x, y in zip(compiled(*some()), both(*some())):
        assert torch.equal(x, y)
