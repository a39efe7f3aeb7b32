"""What rounding takes from the products of states: counts that hang on it are never called certain."""

import itertools
import math

import pytest
import torch

import ess_kernels as ek
from ess_kernels.backends.native.choice import library
from ess_kernels.engine.lost import SPAN, lost_in_states
from ess_kernels.engine.scaling import scaled_tokens

needs_native = pytest.mark.skipif(library().handle is None, reason="there is no compiled library")
BACKENDS = ["reference", "torch", pytest.param("native", marks=needs_native)]


def integers(*shape, low=-3, high=4, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).double()


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_nothing_silent(counts, certificate, wanted, values, threshold):
    """A wrong count is unresolved, or a singular value lies within the width around the threshold."""
    distance = (values - threshold[..., None]).abs().amin(-1)
    silent = (counts != wanted) & ~certificate.unresolved & (distance > certificate.width * threshold)
    assert not bool(silent.any()), f"{int(silent.sum())} of {silent.numel()} counts are wrong and called certain"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length, n", [(58, 4), (130, 8), (40, 16)])
@pytest.mark.parametrize("power", [-20, -30, -40])
def test_writes_that_cancel(backend, length, n, power):
    """`q = [a, a]`, `k = [b, -b (1 - 2^power)]`: rank n, and most of the digits are lost in every product."""
    a, b = integers(1, length, 1, n), integers(1, length, 1, n, seed=1)
    op = ek.operators.linear_attention(torch.cat([a, a], -1), torch.cat([b, -b * (1 - 2.0**power)], -1), scale=1.0)
    exact = ek.operators.linear_attention(a, b * 2.0**power, scale=1.0)
    values = ek.singular_values(exact, range(1, length), n, backend="reference")
    for rtol in (1e-2, 1e-5, 1e-8):
        threshold = rtol * values[..., 0]
        wanted = (values > threshold[..., None]).sum(-1)
        counts, certificate = ek.tolerance_ess(op, rtol=rtol, certificate=True, backend=backend)
        assert_nothing_silent(counts, certificate, wanted, values, threshold)
    for atol in 2.0 ** torch.tensor([power - 20.0, power - 4.0, power + 3.0]):
        threshold = atol.expand(values.shape[:-1])
        wanted = (values > atol).sum(-1)
        counts, certificate = ek.tolerance_ess(op, float(atol), certificate=True, backend=backend)
        assert_nothing_silent(counts, certificate, wanted, values, threshold)


@pytest.mark.parametrize("backend", BACKENDS)
def test_changes_of_basis(backend):
    """The same operator in a basis of condition 1e12 is another one after rounding."""
    length, n = 70, 6
    q, k = integers(1, length, 1, n), integers(1, length, 1, n, seed=1)
    # a product of shears by whole numbers, and its inverse, both exact
    there = back = torch.eye(n, dtype=torch.float64)
    for i, j in itertools.permutations(range(n), 2):
        shear = torch.eye(n, dtype=torch.float64)
        shear[i, j] = 10.0
        inverse = torch.eye(n, dtype=torch.float64)
        inverse[i, j] = -10.0
        there, back = there @ shear, inverse @ back
    assert torch.equal(there @ back, torch.eye(n, dtype=torch.float64)) and torch.linalg.cond(there) > 1e12
    op = ek.operators.linear_attention(q @ there, k @ back.mT, scale=1.0)
    values = ek.singular_values(
        ek.operators.linear_attention(q, k, scale=1.0), range(1, length), n, backend="reference"
    )
    for atol in (1e-6, 1e-3, 1.0):
        wanted = (values > atol).sum(-1)
        counts, certificate = ek.tolerance_ess(op, atol, certificate=True, backend=backend)
        assert_nothing_silent(counts, certificate, wanted, values, torch.full(wanted.shape, atol).double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("seed", [0, 1])
def test_constant_transitions_that_are_not_normal(backend, condition, seed):
    """Powers of a matrix whose eigenvectors are nearly parallel lose digits that no elimination can bring back."""
    n, length = 12, 96
    left, _, right = torch.linalg.svd(randn(n, n, seed=seed))
    vectors = left @ torch.diag(torch.logspace(0, -torch.tensor(condition).log10().item(), n).double()) @ right
    poles = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    A = vectors @ torch.diag(poles) @ torch.linalg.inv(vectors)
    B, C = randn(n, seed=seed + 10), randn(n, seed=seed + 20)
    impulse = exact_impulse_response(A, B, C, length)
    lag = torch.arange(length)[:, None] - torch.arange(length)
    T = torch.where(lag > 0, impulse[(lag - 1).clamp_min(0)], 0.0)
    values = ek.singular_values(T, range(1, length), n, backend="reference")
    op = ek.operators.recurrence(A, B, C, diagonal=False, length=length)
    for part in (0.3, 1e-3, 1e-6):
        threshold = float(part * values.max())
        wanted = (values > threshold).sum(-1)
        counts, certificate = ek.tolerance_ess(op, threshold, certificate=True, backend=backend)
        assert_nothing_silent(counts, certificate, wanted, values, torch.full(wanted.shape, threshold).double())


def exact_impulse_response(A, B, C, length):
    """`C A^t B` in integers, rounded once."""
    # 200 binary digits after the point: what is cut off is far below the last digit of the result
    matrix = [[_fixed(x) for x in row] for row in A.tolist()]
    state, read = [_fixed(x) for x in B.tolist()], [_fixed(x) for x in C.tolist()]
    response = []
    for _ in range(length):
        response.append(sum(c * s for c, s in zip(read, state, strict=True)) / 2**400)
        state = [sum(a * s for a, s in zip(row, state, strict=True)) >> 200 for row in matrix]
    return torch.tensor(response, dtype=torch.float64)


def _fixed(x):
    numerator, denominator = x.as_integer_ratio()
    return (numerator << 200) // denominator


def test_the_bound_holds():
    """Against the errors of products in double precision, known from integers."""
    length, n = 200, 5
    for seed in range(20):
        q, k = integers(1, length, 1, n, seed=seed), integers(1, length, 1, n, seed=seed + 100)
        scale = 2.0 ** integers(n, low=-8, high=9, seed=seed)
        fraction = 1 + 2.0**-30
        op = ek.operators.linear_attention(
            torch.cat([q * scale, q * scale], -1), torch.cat([k / scale, -k / scale * fraction], -1), scale=1.0
        )
        exact = ek.operators.linear_attention(q, -k * 2.0**-30, scale=1.0).dense()[0, 0]
        error = op.dense()[0, 0] - exact
        tokens, unit, _ = scaled_tokens(op.tokens(op.all_heads()))
        for size in (1, SPAN):
            lost = (lost_in_states(tokens, size) * unit[:, None])[0]
            for i in range(1, length):
                assert torch.linalg.matrix_norm(error[i:, :i], 2) <= lost[i // size]


def test_gates_of_one_cost_next_to_nothing():
    """Without decay nothing is multiplied, however long the sequence: the bound grows with the norms alone."""
    q, k = randn(1, 4096, 1, 8), randn(1, 4096, 1, 8, seed=1)
    undecayed = ek.operators.linear_attention(q, k, scale=1.0)
    decayed = ek.operators.gla(q, k, torch.full_like(q, -1e-9), scale=1.0)
    found = [lost_in_states(op.tokens(op.all_heads())).max() for op in (undecayed, decayed)]
    assert found[0] < found[1] / 4


@pytest.mark.parametrize("change", ["gates", "growth", "before"])
def test_spans_of_any_size_bound_the_same(change):
    """Larger spans know less of decay: their bound is the larger one."""
    q, k, g = randn(1, 96, 2, 5), randn(1, 96, 2, 5, seed=1), -randn(1, 96, 2, 5, seed=2).abs()
    if change == "before":
        op = ek.operators.recurrence(g.exp().transpose(1, 2), k.transpose(1, 2), q.transpose(1, 2), diagonal=True)
    else:
        op = ek.operators.gla(q, k, -0.1 * g if change == "growth" else g)
    tokens = op.tokens(op.all_heads())
    single, small, large = (lost_in_states(tokens, size) for size in (1, SPAN, 4 * SPAN))
    assert bool((large.repeat_interleave(4, 1)[:, : small.shape[1]] >= small * (1 - 1e-12)).all())
    assert bool((small.repeat_interleave(SPAN, 1)[:, : op.length] >= single * (1 - 1e-12)).all())
    assert bool((single > 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_fall_are_not_doubted(backend):
    """What is lost at a position depends on the rows from there on, however large the ones before it are."""
    length, n = 64, 4
    fall = torch.logspace(0, -60, length).double()[None, :, None, None]
    op = ek.operators.gla(randn(1, length, 1, n) * fall, randn(1, length, 1, n, seed=1), torch.zeros(1, length, 1, n))
    values = ek.singular_values(op, range(1, length), n, backend="reference")
    counts, certificate = ek.tolerance_ess(op, rtol=1e-6, certificate=True, backend=backend)
    assert torch.equal(counts, (values > 1e-6 * values[..., :1]).sum(-1))
    assert not bool(certificate.unresolved.any())


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
@pytest.mark.parametrize("family", ["kda", "gated_delta_rule"])
def test_a_token_that_nearly_empties_the_state(family, backend):
    """What passes it is 2^-45 of all else, and known as well as all else: it is only another unit."""
    L, at, power = 40, 13, -45
    q, k = randn(1, L, 2, 5, seed=1), torch.nn.functional.normalize(randn(1, L, 2, 5, seed=2), dim=-1)
    beta, g = torch.rand(1, L, 2, dtype=torch.float64), -0.1 * randn(1, L, 2, 5, seed=3).abs()
    if family == "gated_delta_rule":
        g = g[..., 0]
    emptied = g.clone()
    emptied[:, at] += power * math.log(2)
    op, other = (getattr(ek.operators, family)(q, k, g=x, beta=beta) for x in (emptied, g))
    tolerances = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    wanted = ek.tolerance_ess(other, tolerances, positions=[at])
    for positions in ([at], None):
        counts, certificate = ek.tolerance_ess(
            op, tolerances * 2.0**power, positions=positions, backend=backend, certificate=True
        )
        counts, doubted = ((x if positions else x[..., at - 1 : at]) for x in (counts, certificate.unresolved))
        assert torch.equal(counts, wanted) and not bool(doubted.any())
    values, right = (ek.singular_values(x, [at], backend=backend) for x in (op, other))
    torch.testing.assert_close(values, right * 2.0**power, rtol=1e-11, atol=0.0)
