"""Entropy where there is nothing but rounding errors, and what its certificate says."""

import pytest
import torch

import ess_kernels as ek
from ess_kernels.backends.native.choice import library
from ess_kernels.reference import reference_entropy_ess, reference_singular_values

needs_native = pytest.mark.skipif(library().handle is None, reason="there is no compiled library")
BACKENDS = ["reference", "torch", pytest.param("native", marks=needs_native)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def cancelling(length: int = 40, n: int = 4):
    """`q = [a, a]`, `k = [b, -b]` without decay: every entry of `T` is exactly zero."""
    a, b = integers(1, length, 1, n, seed=0), integers(1, length, 1, n, seed=1)
    return ek.operators.linear_attention(torch.cat([a, a], -1), torch.cat([b, -b], -1))


def repeated_key(length: int = 40, n: int = 8):
    """A delta rule with `beta = 1` whose tokens all have one key: each overwrites what was there before."""
    k = torch.nn.functional.normalize(randn(1, n), dim=-1)
    erase = torch.eye(n).double() - k.mT @ k
    return ek.operators.recurrence(
        erase.expand(length, n, n), k.expand(length, n), randn(length, n, seed=2), diagonal=False
    )


NOTHING = {"cancelling states": cancelling, "a key that repeats": repeated_key}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("positions", [None, [7], [3, 20, 21]], ids=str)
def test_rounding_errors_have_no_entropy(name, backend, positions):
    op = NOTHING[name]()
    entropy, certificate = ek.entropy_ess(op, positions, backend=backend, certificate=True)
    assert bool((ek.tolerance_ess(op, 1e-9, positions=positions, backend=backend) <= 1).all())
    inside = slice(None) if name == "cancelling states" else slice(0, 0)
    assert bool((entropy[..., inside] == 0).all())
    nothing = entropy == 0
    assert torch.equal(certificate.unresolved, nothing & (certificate.total > 0))
    assert bool(certificate.error[certificate.unresolved].isinf().all())
    # what is left of a key that repeats is the last token's write: rank one, or nothing
    assert bool(((entropy[~nothing] - 1).abs() <= 1e-4).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [4, 20])
def test_exact_zeros_are_not_unresolved(backend, n):
    q, k = randn(1, 30, 1, n), randn(1, 30, 1, n, seed=1)
    q[:, 15:] = 0.0
    for op in (
        ek.operators.linear_attention(q, torch.zeros_like(k)),
        ek.operators.dense(torch.zeros(1, 30, 30).double()),
    ):
        entropy, certificate = ek.entropy_ess(op, backend=backend, certificate=True)
        assert bool((entropy == 0).all()) and bool((certificate.total == 0).all())
        assert bool((certificate.error == 0).all()) and not bool(certificate.unresolved.any())


def operators():
    q, k, g = (randn(1, 50, 2, 6, seed=seed) for seed in range(3))
    T = randn(2, 50, 50, seed=3)
    return {
        "gla": ek.operators.gla(q, k, -g.abs()),
        "delta rule": repeated_key(),
        "dense": ek.operators.dense(T * 1e-150),
        "graded": ek.operators.dense(T * torch.logspace(0, -12, 50, dtype=torch.float64)[:, None]),
        "attention": ek.operators.attention(3 * q.transpose(1, 2), k.transpose(1, 2)),
        "growing": ek.operators.gla(q, k, 0.3 * g.abs()),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", operators())
def test_the_certificate(name, backend):
    """Errors are bounds, sums are sums, in the operator's own units."""
    op = operators()[name]
    entropy, certificate = ek.entropy_ess(op, backend=backend, certificate=True)
    error, total, unresolved = certificate
    assert isinstance(certificate, ek.EntropyCertificate)
    assert error.shape == total.shape == unresolved.shape == entropy.shape
    assert error.dtype == total.dtype == torch.float64 and unresolved.dtype == torch.bool
    sure = ~unresolved & (entropy > 0)
    wanted, sums = reference_entropy_ess(op)[sure], reference_singular_values(op).sum(-1)[sure]
    assert bool(((entropy[sure] - wanted).abs() <= (error[sure] + 1e-12) * wanted).all())
    assert bool(((total[sure] - sums).abs() <= (error[sure] + 1e-12) * sums).all())
    assert name == "delta rule" or float(error[sure].max()) <= 1e-4
    assert torch.equal(ek.entropy_ess(op, backend=backend), entropy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_heads_are_unresolved(backend):
    T = randn(3, 30, 30)
    T[1, 20, 3] = torch.nan
    entropy, certificate = ek.entropy_ess(T, backend=backend, certificate=True)
    assert bool(entropy[1].isnan().all()) and bool(certificate.unresolved[1].all())
    assert bool(certificate.error[1].isnan().all()) and bool(certificate.total[1].isnan().all())
    assert bool(entropy[[0, 2]].isfinite().all()) and not bool(certificate.unresolved[[0, 2]].any())


def test_the_gradient_agrees_about_nothing():
    a, b = integers(1, 20, 1, 3, seed=0).requires_grad_(), integers(1, 20, 1, 3, seed=1)
    op = ek.operators.linear_attention(torch.cat([a, a], -1), torch.cat([b, -b], -1))
    entropy, certificate = ek.entropy_ess(op, certificate=True)
    assert bool((entropy == 0).all()) and not certificate.error.requires_grad
    q, k, g = (randn(1, 20, 1, 3, seed=seed).requires_grad_() for seed in range(3))
    op = ek.operators.gla(q, k, -g.abs())
    smooth, certificate = ek.entropy_ess(op, certificate=True)
    with torch.no_grad():
        plain, same = ek.entropy_ess(op, certificate=True)
    torch.testing.assert_close(smooth.detach(), plain, rtol=1e-4, atol=0)
    assert all(torch.equal(x, y) for x, y in zip(certificate, same, strict=True))
    assert bool(torch.autograd.grad(smooth.sum(), q)[0].isfinite().all())
