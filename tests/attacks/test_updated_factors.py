"""Tolerances on singular values of many sub-blocks at once: factors that are updated from position to position."""

import pytest
import torch

import ess_kernels as ek
from ess_kernels.backends.native.choice import library

needs_native = pytest.mark.skipif(library().handle is None, reason="there is no compiled library")
BACKENDS = ["torch", pytest.param("native", marks=needs_native)]


def signs(length, spread, seed):
    """`[1, L, L]`, strictly lower: entries 1 or -1 of a matrix of rank 1, moved by `spread`."""
    generator = torch.Generator().manual_seed(seed)
    row, column = (2.0 * torch.randint(0, 2, (length, 1), generator=generator).double() - 1 for _ in range(2))
    noise = torch.randn(length, length, dtype=torch.float64, generator=generator)
    return (row @ column.mT * (1 + spread * noise)).tril(-1)[None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [7, 12, 33])
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-9, 1e-6])
def test_blocks_of_ones(backend, length, spread):
    """A block of r x c ones has one singular value, `sqrt(r c)`: the same for many blocks of every position."""
    for seed in range(4):
        T = signs(length, spread, seed)
        values = ek.singular_values(T, range(1, length), backend="reference")
        for product in (2, 4, 6, 12):
            tolerances = [product**0.5 * (1 + shift) for shift in (0.0, 1e-10, -1e-10, 1e-9, -1e-9, 1e-8)]
            counts, certificate = ek.tolerance_ess(T, tolerances, backend=backend, certificate=True)
            for m, tau in enumerate(tolerances):
                distance = (values - tau).abs().amin(-1)
                clear = (distance > certificate.width[m] * tau) & ~certificate.unresolved[m]
                assert torch.equal(counts[m][clear], (values > tau).sum(-1)[clear])


def usual(name):
    generator = torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    if name == "attention":
        return ek.operators.attention(2 * randn(1, 2, 700, 64), randn(1, 2, 700, 64), scale=1 / 8)
    if name == "GLA":
        gates = torch.nn.functional.logsigmoid(randn(1, 700, 2, 64)) / 16
        return ek.operators.gla(randn(1, 700, 2, 64) / 8, randn(1, 700, 2, 64), gates, scale=1.0)
    steps = 10.0 ** (-3 + 2 * torch.rand(1, 16, 700, dtype=torch.float64, generator=generator))
    A = -torch.arange(1, 17, dtype=torch.float64).expand(16, 16)
    return ek.operators.selective_scan(steps, A, randn(1, 16, 700), randn(1, 16, 700))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["attention", "GLA", "Mamba"])
def test_usual_heads_are_not_doubtful(backend, name):
    """A bound that doubts everything is no cure: at 1e-3 hardly any position needs a second look."""
    _, certificate = ek.tolerance_ess(usual(name), 1e-3, backend=backend, certificate=True)
    assert float(certificate.redone.double().mean()) < 3e-3
    assert not bool(certificate.unresolved.any())


def hidden_part(length, tiny, ratio, seed):
    """`[L, L]`: at one position a pivot of four is `tiny`, and the next two make up for it, each `ratio` times.

    Parts of a diagonal entry are then as large as `1 / tiny`, of opposite signs, and no pivot shows it.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)

    position = 5 + seed % (min(length - 5, 13) - 4)
    while True:
        lower = torch.eye(4, dtype=torch.float64) + uniform(-0.3, 0.3, 4, 4).tril(-1)
        pivots = torch.tensor([-0.25, -0.9 / ratio, -0.9 / ratio, float(uniform(-0.5, 1.0))], dtype=torch.float64)
        rest, info = torch.linalg.cholesky_ex(lower @ pivots.diag() @ lower.mT + torch.eye(4))
        if info == 0:
            break
    alpha = -0.25 / tiny
    term = [(tiny + 0.25) ** 0.5]
    for j in (1, 2):
        term.append(float((-pivots[j] * (ratio - 1) / -alpha) ** 0.5))
        alpha /= ratio
    term.append(float(uniform(0.2, 0.6)))
    T = torch.zeros(length, length, dtype=torch.float64)
    T[-4:, :4] = rest.mT
    T[1:position, :4] = torch.randn(position - 1, 4, dtype=torch.float64, generator=generator) * uniform(0.1, 1.0)
    T[position, :4] = lower @ torch.tensor(term, dtype=torch.float64)
    return T.tril(-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [12, 16, 32])
def test_parts_that_no_pivot_shows(backend, length):
    """Of such heads one in fifty was miscounted by 8 % of the tolerance, and called certain."""
    generator = torch.Generator().manual_seed(length)
    exponents = torch.rand(400, 2, generator=generator).double()
    heads = [
        hidden_part(length, 10 ** float(-16.3 + 2.3 * e), 10 ** float(7 + 1.2 * r), n)
        for n, (e, r) in enumerate(exponents)
    ]
    T = torch.stack(heads)
    # beyond four columns there is nothing
    found = [torch.linalg.svdvals(T[:, i:, : min(i, 4)]) for i in range(1, length)]
    values = torch.stack([torch.nn.functional.pad(s, (0, 4 - s.shape[-1])) for s in found], 1)
    counts, certificate = ek.tolerance_ess(T, 1.0, backend=backend, certificate=True)
    clear = ((values - 1).abs().amin(-1) > certificate.width + 1e-13) & ~certificate.unresolved
    assert torch.equal(counts[clear], (values > 1).sum(-1)[clear])
    assert float(clear.double().mean()) > 0.9
