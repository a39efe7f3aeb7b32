"""One column or row far larger than the others, as attention sinks are, where it comes first and where it does not."""

import pytest
import torch

import ess_kernels as ek
from ess_kernels.backends.native.choice import library

needs_native = pytest.mark.skipif(library().handle is None, reason="there is no compiled library")
BACKENDS = ["torch", pytest.param("native", marks=needs_native)]
EPS = torch.finfo(torch.float64).eps


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention_with_sink(length):
    """`[L, L]`: queries that all look at the first key."""
    q, k = normal(0, length, 64) + 2, normal(1, length, 64)
    k[0] = 1
    scores = (q @ k.mT / 8).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return scores.softmax(-1)


def kinds(length, size, seed):
    """Operators `[L, L]` with large columns or rows, by name."""
    noise, flat = normal(seed, length, length), normal(seed, length, 2) @ normal(seed + 1, 2, length)
    nearly_ones = 1 + 1e-9 * noise
    made = {}
    for name, base in {"noise": noise, "rank two": flat + 1e-6 * noise, "nearly ones": nearly_ones}.items():
        first, last, second, both, alike = (base.clone() for _ in range(5))
        first[:, 0] *= size
        last[-1] *= size
        second[:, 1] *= size
        both[:, :2] *= size
        alike[:, 0] = size * base[:, 0]
        alike[:, 1] = alike[:, 0] * (1 + 1e-7 * normal(seed + 2, length))
        cases = {"first": first, "last row": last, "second": second, "two": both, "two alike": alike}
        made |= {f"{name}, {which}": T for which, T in cases.items()}
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [20, 33, 70])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
def test_no_silent_count(backend, length, size):
    positions = range(1, length)
    for name, T in kinds(length, size, seed=length).items():
        T = T.tril(-1)
        values = [torch.linalg.svdvals(T[i:, :i]) for i in positions]
        some = torch.cat(values)
        some = some[some > 1e-13 * some.amax()].sort().values
        tolerances = [float(some[int(at * len(some))]) * (1 + 1e-5) for at in (0.1, 0.4, 0.7, 0.95)]
        counts, certificate = ek.tolerance_ess(T[None], tolerances, backend=backend, certificate=True)
        for m, tau in enumerate(tolerances):
            for k, s in enumerate(values):
                reach = tau * certificate.width[m, 0, k] + 20 * EPS * s[0]
                if bool(((s - tau).abs() <= reach).any()) or bool(certificate.unresolved[m, 0, k]):
                    continue
                assert int(counts[m, 0, k]) == int((s > tau).sum()), (name, tau, k + 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sink_that_comes_first_costs_no_certainty(backend):
    """At a three millionth of the largest singular value the growth of all squares would leave widths of 1e-3."""
    length = 512
    T = attention_with_sink(length)
    _, certificate = ek.tolerance_ess(T[None], 1e-5, backend=backend, certificate=True)
    # positions whose own blocks have a singular value near the tolerance are doubtful for that reason
    assert int(certificate.redone[0, : length // 2 - 1].sum()) <= 4
    assert float(certificate.width[0, : length // 2 - 1].median()) < 1e-8
