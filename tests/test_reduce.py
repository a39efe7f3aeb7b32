"""Model-order reduction against the definition: dense `T`, and the singular values of every `H_i`."""

import pytest
import torch
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.reduction import reduce
from ess_kernels.testing.cases import CASES, build, names, rand, randn, truth

# Cases of which states or spectra, for the reason given, lose more digits than `rank(H_i)` needs.
LOST = {
    # later rows are so small that what earlier positions take for rounding is large for them
    "stickbreaking_attention: saturated",
    # transitions that nearly cancel a state
    "kda: steps of one, close keys",
}
BALANCED = (False, True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def matrices(x):
    """`[N, L, L]`."""
    return x.reshape(-1, *x.shape[-2:])


def relative_error(op, reduced):
    """`|T - T_r|_F / |T|_F` and `error_bound / |T|_F` of each head that is not zero."""
    T, found = matrices(op.dense()), matrices(reduced.dense())
    unit = T.abs().amax((1, 2), keepdim=True)
    nonzero = unit[:, 0, 0] > 0
    assert not found[~nonzero].any()
    unit, T, found = unit[nonzero], T[nonzero], found[nonzero]
    norm = (T / unit).norm(dim=(1, 2))
    known = reduced.error_bound.reshape(-1)[nonzero] / unit[:, 0, 0]
    return ((found - T) / unit).norm(dim=(1, 2)) / norm, known / norm


def count(values, rtol):
    return (values > rtol * values[..., :1]).sum(-1)


def sizes(reduced):
    """State sizes at positions 1..L-1, `[N, L - 1]`."""
    *_, length = reduced.state_sizes.shape
    assert not reduced.state_sizes[..., :1].any()
    return reduced.state_sizes.reshape(-1, length)[:, 1:]


def check_minimal(name, balanced):
    op, values = build(name), truth(name).values
    reduced = reduce(op, balanced=balanced)
    measured, known = relative_error(op, reduced)
    assert (measured <= 1e-12).all(), float(measured.max())
    assert (known <= 1e-12).all()
    found = sizes(reduced)
    assert (found <= truth(name).cap).all()
    if values.numel() and name not in LOST:
        # a rank is known up to values between rounding errors and what is surely none
        assert (found >= count(values, 1e-12)).all()
        assert (found <= count(values, 1e-16)).all()


def check_truncated(name, relative, balanced):
    op, values = build(name), truth(name).values
    atol = relative * float(values.amax())
    reduced = reduce(op, atol=atol, balanced=balanced)
    measured, known = relative_error(op, reduced)
    torch.testing.assert_close(known, measured, rtol=1e-9, atol=1e-13)
    assert (sizes(reduced) <= (values > atol * (1 - 1e-12)).sum(-1)).all()
    if not balanced:
        cut = torch.arange(values.shape[-1]) >= sizes(reduced)[..., None]
        unit = values.amax()
        bound = (values / unit * cut).norm(dim=(1, 2)) * unit
        error = reduced.error_bound.reshape(-1)
        assert (error <= bound * (1 + 1e-9) + 1e-13 * unit).all()


def every_second_of_each_family():
    families = {name.partition(":")[0]: None for name in names()}
    return [name for family in families for name in names(f"{family}:")[::2]]


@pytest.mark.parametrize("name", every_second_of_each_family())
def test_minimal(name):
    check_minimal(name, balanced=False)


@pytest.mark.parametrize("name", names(longer_than=1)[::9])
@pytest.mark.parametrize("balanced", BALANCED)
def test_truncated(name, balanced):
    if truth(name).values.any():
        check_truncated(name, 0.05, balanced)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(longer_than=1))
def test_truncated_at_any_tolerance(name):
    if truth(name).values.any():
        for balanced in BALANCED:
            for relative in (0.5, 0.05, 1e-3):
                check_truncated(name, relative, balanced)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("balanced", BALANCED)
def test_every_case_minimal(name, balanced):
    check_minimal(name, balanced)


# --- what one operator of each structure does -------------------------------------------------------------------------


def gla(length=48, n=6, heads=3):
    q, k, g = (randn(1, length, heads, n) for _ in range(3))
    return operators.gla(q, k, logsigmoid(g) / 4)


EVERY = {
    "diagonal": gla,
    "large states": lambda: gla(90, 33, 2),
    "reads before, its own diagonal": lambda: operators.rwkv6(
        *(randn(2, 40, 2, 5) for _ in range(2)), -rand(2, 40, 2, 5), randn(2, 5)
    ),
    "rank one": lambda: operators.delta_rule(randn(1, 40, 2, 6), randn(1, 40, 2, 6) / 3, rand(1, 40, 2)),
    "matrices": lambda: operators.recurrence(randn(2, 40, 5, 5) / 3, randn(2, 40, 5), randn(2, 40, 5), diagonal=False),
    "complex": lambda: operators.recurrence(
        torch.polar(rand(3, 40, 4), randn(3, 40, 4)), randn(3, 40, 4), randn(3, 40, 4), diagonal=True
    ),
    "constant": lambda: operators.recurrence(rand(4), randn(4), randn(4), diagonal=True, length=40),
    "attention": lambda: operators.attention(3 * randn(1, 2, 50, 4), randn(1, 2, 50, 4)),
    "matrix": lambda: randn(2, 2, 30, 30),
    "float32": lambda: torch.randn(30, 30),
    "sum of states": lambda: operators.sum_of(gla(), gla(), weights=(1.0, -0.5)),
    "sum of states with their own diagonals": lambda: operators.sum_of(
        *(operators.rwkv6(*(randn(1, 70, 2, 3) for _ in range(2)), -rand(1, 70, 2, 3), randn(2, 3)) for _ in range(2)),
        weights=(0.5, randn(1, 2, 70)),
    ),
    "sum of rows": lambda: operators.sum_of(
        gla(30, 4, 2), operators.attention(randn(1, 2, 30, 4), randn(1, 2, 30, 4)), weights=(1.0, 0.3)
    ),
    "one sub-token": lambda: operators.block_recurrence(
        rand(2, 30, 4), randn(2, 30, 4, 1), randn(2, 30, 1, 4), diagonal=True
    ),
}


def dense(op):
    return op.double().tril() if isinstance(op, torch.Tensor) else op.dense()


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("balanced", BALANCED)
def test_everything_about_one(kind, balanced):
    op = EVERY[kind]()
    T = dense(op)
    minimal = reduce(op, balanced=balanced)
    torch.testing.assert_close(minimal.dense(), T, rtol=1e-11, atol=1e-11)
    largest = float(torch.linalg.matrix_norm(T.tril(-1), 2).amax())
    reduced = reduce(op, atol=0.1 * largest, balanced=balanced)
    assert (reduced.A.dtype, reduced.state_sizes.dtype) == (torch.float64, torch.int64)
    *batch, length, n = reduced.B.shape
    assert reduced.A.shape == (*batch, length, n, n)
    assert reduced.C.shape == reduced.B.shape
    assert reduced.D.shape == reduced.state_sizes.shape == (*batch, length) == T.shape[:-1]
    assert reduced.error_bound.shape == tuple(batch)
    torch.testing.assert_close(reduced.D, T.diagonal(dim1=-2, dim2=-1))
    # no more states than the ESS, and the known error
    assert (reduced.state_sizes[..., 1:] <= ek.tolerance_ess(op, atol=0.1 * largest)).all()
    error = torch.linalg.matrix_norm(T - reduced.dense())
    torch.testing.assert_close(reduced.error_bound, error, rtol=1e-9, atol=1e-12)
    assert (error > 0).all()
    # it can be measured again, and is minimal
    again = ek.tolerance_ess(reduced.operator(), rtol=1e-9, atol=1e-9 * largest)
    assert torch.equal(again, reduced.state_sizes[..., 1:])
    # applied as a recurrence
    u = randn(*batch, length, 3)
    torch.testing.assert_close(reduced.apply(u), reduced.dense() @ u, rtol=1e-11, atol=1e-11)
    # zeros beyond every head's own state
    inside = torch.arange(n) < reduced.state_sizes[..., None]
    after = torch.cat([inside[..., 1:, :], torch.zeros_like(inside[..., :1, :])], -2)
    assert not reduced.A[~(after[..., :, None] & inside[..., None, :])].any()
    assert not reduced.B[~after].any()
    assert not reduced.C[~inside].any()


@pytest.mark.parametrize("kind", ["diagonal", "large states", "rank one", "attention", "matrix"])
@pytest.mark.parametrize("balanced", BALANCED)
def test_rank(kind, balanced):
    op = EVERY[kind]()
    T = dense(op)
    for rank in (0, 2):
        reduced = reduce(op, rank=rank, balanced=balanced)
        assert int(reduced.state_sizes.max()) == rank
        assert reduced.B.shape[-1] == max(rank, 1)
        error = torch.linalg.matrix_norm(T - reduced.dense())
        torch.testing.assert_close(reduced.error_bound, error, rtol=1e-9, atol=1e-12)
        if rank == 0:
            torch.testing.assert_close(reduced.dense(), torch.diag_embed(T.diagonal(dim1=-2, dim2=-1)))


def test_both_limits():
    op = gla()
    atol = 0.5
    both, by_atol = reduce(op, atol=atol, rank=2), reduce(op, atol=atol)
    assert int(by_atol.state_sizes.max()) > 2
    assert int(both.state_sizes.max()) == 2
    assert (both.error_bound > by_atol.error_bound).all()
    everything = reduce(op, atol=1e300)
    assert not everything.state_sizes.any()


def test_a_sweep_keeps_an_orthonormal_basis_of_past_inputs():
    reduced = reduce(gla(), atol=1.0)
    steps = torch.cat([reduced.A, reduced.B[..., None]], -1)
    kept = torch.arange(steps.shape[-2]) < reduced.state_sizes[..., 1:, None]
    expected = torch.diag_embed(kept.double())
    torch.testing.assert_close((steps @ steps.mT)[..., :-1, :, :], expected, rtol=0, atol=1e-13)


def test_a_future_cut_does_not_change_the_past_of_attention():
    """Blocks of tokens are cut with all of their future in view: the answer is that of a sweep token by token."""
    T = operators.attention(3 * randn(1, 1, 90, 4), randn(1, 1, 90, 4)).dense()[0, 0]
    atol = 0.1
    M, found, cut = T.new_zeros(90, 0), [], []
    for i in range(89):
        _, s, V = torch.linalg.svd(torch.cat([M[1:], T[i + 1 :, i, None]], 1), full_matrices=False)
        n = int((s > atol).sum())
        M = torch.cat([M[1:], T[i + 1 :, i, None]], 1) @ V[:n].mT
        found.append(n)
        cut.append(s[n:].norm())
    reduced = reduce(T, atol=atol)
    assert reduced.state_sizes[1:].tolist() == found
    torch.testing.assert_close(reduced.error_bound, torch.stack(cut).norm(), rtol=1e-10, atol=0)


def test_lengths_without_positions():
    for op in (gla(1), gla(2), operators.dense(torch.ones(1, 1)), operators.dense(torch.ones(0, 0)), gla(5, heads=0)):
        for balanced in BALANCED:
            reduced = reduce(op, balanced=balanced)
            torch.testing.assert_close(reduced.dense(), op.dense())
            assert reduced.apply(randn(*op.batch_shape, op.length, 2)).shape == (*op.batch_shape, op.length, 2)
            assert "Reduced" in repr(reduced)


def test_cases_cover_every_kind_of_transition():
    assert {about.kind for about in CASES.values()} == {"diagonal", "rank one", "full", "tiled"}
