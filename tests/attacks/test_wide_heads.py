"""Numbers of one head that do not fit into float64 together once the largest is near 1: nothing is made of zeros.

Every operator here has numbers of about 1e-28 and one of 1e300 that is in `H_1` only. What the other positions have is
known from the same operator without the large number.
"""

import math

import pytest
import torch

import ess_kernels as ek
from ess_kernels import operators

L, n = 12, 3
SMALL, LARGE = 1e-28, 1e300
BACKENDS = ["reference", "torch", "native"]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def dense(large):
    T = SMALL * randn(2, L, L)
    T[0, 1, 0] = large
    return operators.dense(T)


def reads(large):
    """`[1, L, 2, n]`, the second token's of the first head large."""
    q = SMALL * randn(1, L, 2, n)
    q[0, 1, 0, 0] = large
    return q


def gla(large):
    return operators.gla(reads(large), randn(1, L, 2, n), -torch.rand(1, L, 2, n, dtype=torch.float64))


def delta_rule(large):
    k = torch.nn.functional.normalize(randn(1, L, 2, n), dim=-1)
    return operators.delta_rule(reads(large), k, torch.rand(1, L, 2, dtype=torch.float64))


def matrices(large):
    A = 0.5 * torch.linalg.qr(randn(1, 2, L, n, n)).Q
    return operators.recurrence(A, randn(1, 2, L, n), reads(large).transpose(1, 2), diagonal=False)


FAMILIES = [dense, gla, delta_rule, matrices]


def made(family):
    """With the large number, and without."""
    return [(torch.manual_seed(0), family(large))[1] for large in (LARGE, SMALL)]


def same_or_unknown(found, wanted, unknown):
    """Positions from the second on; the other head, which has no large number, knows everything."""
    found, wanted, unknown = (x.flatten(0, -2).movedim(-1, 0)[1:] for x in (found, wanted, unknown))
    assert bool((((found - wanted).abs() <= 1e-4 * wanted.abs()) | unknown).all())
    assert not bool(unknown[:, 1].any())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
class TestWideHeads:
    @pytest.mark.parametrize("tolerance", [{"atol": 1e-30}, {"atol": 1e-35}, {"rtol": 1e-6}])
    @pytest.mark.parametrize("positions", [None, [1, 2]])
    def test_counts(self, family, backend, tolerance, positions):
        found, wanted = made(family)
        counts, certificate = ek.tolerance_ess(
            found, **tolerance, positions=positions, backend=backend, certificate=True
        )
        right = ek.tolerance_ess(wanted, **tolerance, positions=positions, backend=backend)
        same_or_unknown(counts.double(), right.double(), certificate.unresolved)
        assert bool((certificate.width[certificate.unresolved] > 0).all())

    def test_a_tolerance_that_is_not_tiny_is_not_doubted(self, family, backend):
        found, _ = made(family)
        counts, certificate = ek.tolerance_ess(found, atol=1e295, backend=backend, certificate=True)
        assert not bool(certificate.unresolved.any())
        assert counts.flatten(0, -2)[:, 0].tolist() == [1, 0] and int(counts.sum()) == 1

    @pytest.mark.parametrize("positions", [None, [1, 2]])
    def test_entropy(self, family, backend, positions):
        found, wanted = made(family)
        ess, certificate = ek.entropy_ess(found, positions=positions, backend=backend, certificate=True)
        right = ek.entropy_ess(wanted, positions=positions, backend=backend)
        assert bool((certificate.error[certificate.unresolved] == math.inf).all())
        same_or_unknown(ess, right, certificate.unresolved)
        total, right = (ek.nuclear_norm(op, positions=positions, backend=backend) for op in (found, wanted))
        same_or_unknown(total, right, total.isnan())

    def test_values(self, family, backend):
        found, wanted = made(family)
        values, right = (ek.singular_values(op, range(1, L), 2, backend=backend) for op in (found, wanted))
        for x, y in zip(values.unbind(-1), right.unbind(-1), strict=True):
            same_or_unknown(x, y, x.isnan())
        soft, right = (ek.soft_ess(op, SMALL, backend=backend) for op in (found, wanted))
        same_or_unknown(soft, right, soft.isnan())


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_gradient(family):
    found, wanted = made(family)
    for op in (found, wanted):
        for x in op.inputs:
            x.requires_grad_()
    for metric in (ek.nuclear_norm, ek.entropy_ess, lambda op: ek.soft_ess(op, SMALL)):
        x, y = metric(found), metric(wanted)
        same_or_unknown(x, y, x.isnan() | (x == 0))


@pytest.mark.parametrize("method", ["exact", "compressed", "randomized", "strided", "auto"])
def test_bounds(method):
    found, wanted = made(dense)
    bounds = ek.bounded_ess(found, 1e-30, method=method)
    right = ek.tolerance_ess(wanted, 1e-30)[:, 1:]
    assert bool(((bounds.lower[:, 1:] <= right) & (right <= bounds.upper[:, 1:])).all())
    if method in ("exact", "compressed", "auto"):
        entropy, right = ek.bounded_entropy_ess(found, method=method), ek.entropy_ess(wanted)[:, 1:]
        low, high = entropy.lower[:, 1:] - 1e-4, entropy.upper[:, 1:] + 1e-4
        assert bool(((low <= right) & (right <= high)).all())


@pytest.mark.parametrize("position", [3, 8])
def test_one_position_that_has_both(position):
    T = SMALL * randn(40, 40)
    T[12, 0] = LARGE
    for backend in ("reference", "torch", "native"):
        _, certificate = ek.tolerance_ess(T, 1e-32, positions=[position], backend=backend, certificate=True)
        assert bool(certificate.unresolved.all()) and bool((certificate.width == math.inf).all())


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_what_is_zero_stays_known(backend):
    T = SMALL * randn(1, L, L)
    T[0, 1, 0], T[0, 6:, :6] = LARGE, 0.0
    q, k, g = reads(LARGE), randn(1, L, 2, n), torch.zeros(1, L, 2, n, dtype=torch.float64)
    g[:, 6] = -math.inf
    for op in (operators.dense(T), operators.gla(q, k, g)):
        counts, certificate = ek.tolerance_ess(op, 1e-35, positions=range(1, L), backend=backend, certificate=True)
        assert not bool(counts[..., 5].any()) and not bool(certificate.unresolved[..., 5].any())
        ess, certificate = ek.entropy_ess(op, backend=backend, certificate=True)
        assert not bool(ess[..., 5].any()) and not bool(certificate.unresolved[..., 5].any())
        assert not bool(ek.singular_values(op, [6], 2, backend=backend).any())


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_gates_that_nearly_empty_the_state_are_no_such_case(backend):
    g = torch.zeros(1, L, 1, n, dtype=torch.float64)
    g[:, 6] = -640.0
    torch.manual_seed(1)
    op = operators.gla(8 * randn(1, L, 1, n), randn(1, L, 1, n), g)
    ess, certificate = ek.entropy_ess(op, backend=backend, certificate=True)
    assert not bool(certificate.unresolved.any())
    torch.testing.assert_close(ess, ek.entropy_ess(op, backend="reference"), rtol=1e-4, atol=0.0)
    counts, certificate = ek.tolerance_ess(op, 1e-290, positions=[6], backend=backend, certificate=True)
    assert counts.tolist() == [[[n]]] and not bool(certificate.unresolved.any())


@pytest.mark.slow
@pytest.mark.parametrize("family", [dense, gla])
def test_triton(family):
    pytest.importorskip("triton")
    found, wanted = made(family)
    positions = range(1, 5)
    counts, certificate = ek.tolerance_ess(found, 1e-30, positions=positions, backend="triton", certificate=True)
    same_or_unknown(
        counts.double(), ek.tolerance_ess(wanted, 1e-30, positions=positions).double(), certificate.unresolved
    )
    ess, certificate = ek.entropy_ess(found, positions=positions, backend="triton", certificate=True)
    same_or_unknown(ess, ek.entropy_ess(wanted, positions=positions), certificate.unresolved)
    values = ek.singular_values(found, [2, 3], 1, backend="triton")[..., 0]
    same_or_unknown(values, ek.singular_values(wanted, [2, 3], 1)[..., 0], values.isnan())
