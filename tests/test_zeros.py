"""Positions at which a recurrence is known to be zero: entropies there are 0, and cost no singular values."""

from unittest import mock

import pytest
import torch

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.engine.zeros import zero_positions, zero_positions_of
from ess_kernels.operators.structure import Tokens
from ess_kernels.testing.cases import rand, randn


@pytest.mark.parametrize("kind", ["diagonal", "rank one", "full"])
@pytest.mark.parametrize("reads_before", [False, True])
def test_against_the_matrix(kind, reads_before):
    torch.manual_seed(0)
    N, L, n = 200, 6, 2
    keep = [rand(N, L, 1) < 0.6 for _ in range(5)]
    read, write, diagonal, lookup, update = (
        torch.where(kept, randn(N, L, n), torch.zeros((), dtype=torch.float64)) for kept in keep
    )
    if kind == "full":
        tokens = Tokens(read, write, randn(N, L, n, n) * keep[2][..., None], reads_before)
    elif kind == "rank one":
        tokens = Tokens(read, write, diagonal * keep[3], reads_before, lookup, update)
    else:
        tokens = Tokens(read, write, diagonal, reads_before)
    found = zero_positions(tokens)
    op = operators.recurrence(tokens.matrices(), write, read, diagonal=False)
    if not reads_before:
        op = type(op)(op.A, op.B, op.C, diagonal=False, length=L, constant=False, reads_before=False)
    T = op.dense()
    zero = torch.stack([(T[:, i:, :i] == 0).flatten(1).all(1) for i in range(L)], 1)
    assert not bool((found & ~zero).any()), "said to be zero, and is not"
    # several transitions that are zero only together are not looked for
    assert float(found.double().mean()) > 0.8 * float(zero.double().mean()) > 0


def test_reads_and_writes_that_end():
    q, k, g = randn(1, 9, 2, 3), randn(1, 9, 2, 3), -rand(1, 9, 2, 3)
    q[0, 6:, 0], k[0, :3, 1], g[0, 4, 1] = 0, 0, -torch.inf
    op = operators.gla(q, k, g)
    found = zero_positions_of(op, op.all_heads())
    assert found.int().tolist() == [[1, 0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("n", [4, 20])
def test_zeros_cost_no_singular_values(backend, n):
    if backend == "native" and not ek.show_config().native:
        pytest.skip("no compiled kernels")
    torch.manual_seed(0)
    q, k, g = randn(1, 90, 2, n), randn(1, 90, 2, n), -0.1 * rand(1, 90, 2, n)
    q[:, 70:] = 0
    g[:, [17, 32, 45]] = -torch.inf
    op = operators.gla(q, k, g)
    with mock.patch("ess_kernels.engine.cost.Cost.note") as note:
        ess, certificate = ek.entropy_ess(op, backend=backend, certificate=True)
    zero = torch.zeros(89, dtype=torch.bool)
    zero[[16, 31, 44]], zero[69:] = True, True
    assert bool((ess[..., zero] == 0).all()) and bool((ess[..., ~zero] >= 1).all())
    assert not bool(certificate.error[..., zero].any()) and not bool(certificate.unresolved.any())
    asked = sum(call.args[0] for call in note.call_args_list)
    assert asked < 10, f"{asked} positions needed singular values"


@pytest.mark.parametrize("backend", ["reference", "torch", "native"])
@pytest.mark.parametrize("kind", ["rank one", "full"])
def test_rounding_takes_nothing_from_what_is_zero(kind, backend):
    """The first tokens write nothing: no tolerance is so small that a count of zero would be doubtful."""
    torch.manual_seed(0)
    q, k, g = randn(1, 30, 2, 3), randn(1, 30, 2, 3), -0.1 * rand(1, 30, 2, 3)
    if kind == "rank one":
        beta = rand(1, 30, 2)
        beta[:, :2] = 0
        op = operators.kda(q, k / k.norm(dim=-1, keepdim=True), g=g, beta=beta)
    else:
        k[:, :2] = 0
        A = 0.9 * torch.linalg.qr(randn(1, 2, 30, 3, 3)).Q
        op = operators.recurrence(A, k.transpose(1, 2), q.transpose(1, 2), diagonal=False)
    counts, certificate = ek.tolerance_ess(op, [1e-3, 1e-40], backend=backend, certificate=True)
    assert not bool(counts[..., :2].any()) and bool((counts[..., 2:25] > 0).all())
    assert not bool(certificate.unresolved[..., :2].any())
    assert not bool(certificate.unresolved[0].any())
