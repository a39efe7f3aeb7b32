"""Counts without squares at tolerances of a position's own: right or warned of, with widths that hold."""

import math

import pytest
import torch

import ess_kernels as ek
from ess_kernels.backends.native import NativeBackend
from ess_kernels.engine.certainty import EPS
from ess_kernels.engine.outside import Outside, inertia
from ess_kernels.engine.unsquared import UnsquaredEngine

L = 96


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(q, k):
    mask = torch.full((len(q), len(q)), -torch.inf, dtype=torch.float64).triu(1)
    return (q @ k.mT / math.sqrt(q.shape[1]) + mask).softmax(-1)


def kinds(length=L):
    """Attention, with sinks and without, and matrices whose spectra run through every tolerance without a gap."""
    q, k = randn(length, 32, seed=1), randn(length, 32, seed=2)
    sink, far = k.clone(), torch.arange(length, dtype=torch.float64)
    sink[0] = 1
    left, right = (torch.linalg.qr(randn(length, length, seed=s)).Q for s in (3, 4))
    scale = torch.logspace(0, -6, length, dtype=torch.float64)
    mixed = torch.randperm(length, generator=torch.Generator().manual_seed(5))
    apart = far[:, None] - far
    many = sink.clone()
    many[[0, length // 3, length // 2]] = torch.ones(32, dtype=torch.float64)
    return {
        "plain": softmax(q, k),
        "sharp": softmax(6 * q, k),
        "sink": softmax(q + 2, sink),
        "three sinks": softmax(q + 2, many),
        "falling": left @ torch.diag(torch.logspace(0, -14, length, dtype=torch.float64)) @ right.mT,
        "scaled": scale[mixed][:, None] * randn(length, length, seed=6) * scale.flip(0)[mixed],
        "three dimensions": softmax(q[:, :3], k[:, :3]),
        "one over distance": 1 / apart.clamp_min(1),
        "smooth": torch.exp(-(apart**2) / 200),
        "low rank": randn(length, 5, seed=7) @ randn(5, length, seed=8),
        "integers": torch.randint(-1, 2, (length, length), generator=torch.Generator().manual_seed(9)).double(),
    }


def spectra(T):
    values = torch.zeros(len(T), len(T), dtype=torch.float64)
    for i in range(1, len(T)):
        s = torch.linalg.svdvals(T[i:, :i])
        values[i, : len(s)] = s
    return values


def silent(values, tau, counts, width, unresolved):
    """Counts that are wrong without a value within the width, or within what `svdvals` itself may err by."""
    wrong = (values > tau[:, None]).sum(-1) != counts
    reach = 2 * width * tau + 100 * EPS * values[:, 0]
    return int((wrong & ~unresolved & ((values - tau[:, None]).abs().amin(-1) > reach)).sum())


@pytest.fixture(params=sorted(kinds()))
def known(request):
    T = kinds()[request.param].tril(-1)
    return T, spectra(T)


def outside_at(T, start, stop):
    later, own = slice(stop, None), slice(start, stop)
    T = T[None]
    return Outside.of(T[:, later, :start], T[:, later, own], T[:, own, :start], T[:, own, own])


@pytest.mark.parametrize("c", [16, 40])
def test_every_count_of_a_block_is_right_to_within_its_width(known, c):
    T, values = known
    largest = values[:, 0].clamp_min(1e-300)
    tolerances = [torch.full((L,), 10.0**-k, dtype=torch.float64) for k in (3, 5, 7, 9, 11, 13)]
    tolerances += [share * largest for share in (1e-2, 1e-5, 1e-9, 64 * EPS)]
    # beside singular values of the positions themselves
    tolerances += [values[:, 4].clamp_min(1e-14) * (1 + x) for x in (1e-4, -1e-7)]
    for start in range(0, L, c):
        stop = min(start + c, L)
        outside = outside_at(T, start, stop)
        for tau in tolerances:
            mine = tau[start:stop]
            found = outside.counts(mine[None], torch.ones(1, stop - start, dtype=torch.bool))
            missed = silent(values[start:stop], mine, found.above[0], found.width[0], torch.zeros(stop - start).bool())
            assert missed == 0


def test_widths_grow_with_the_largest_value_over_the_tolerance_and_not_its_square():
    T = kinds()["sink"].tril(-1)
    outside = outside_at(T, 32, 64)
    wanted = torch.ones(1, 32, dtype=torch.bool)
    near, far = (outside.counts(torch.full((1, 32), tau).double(), wanted).width.median() for tau in (1e-3, 1e-7))
    assert float(near) < 1e-8 and float(far / near) < 1e6


def test_the_largest_value_is_bounded_from_below(known):
    T, values = known
    for start, stop in ((0, 24), (40, 64), (72, L)):
        found = outside_at(T, start, stop).largest(12)[0]
        assert bool((found <= values[start:stop, 0] * (1 + 1e-12)).all())
        assert bool((found[1:] >= 0.9 * values[start + 1 : stop, 0] - 1e-10).all())


def test_the_largest_value_is_bounded_from_above(known):
    T, values = known
    for start, stop in ((0, 24), (40, 64), (72, L)):
        s = values[None, start:stop, 0].clamp_min(1e-300)
        outside, wanted = outside_at(T, start, stop), s > 1e-200
        for share, above in ((1 + 1e-8, 0.0), (1 + 1e-3, 0.0), (1 - 1e-8, 1.0), (0.9, 1.0)):
            found = outside.none_above(s * share, wanted)
            assert bool((found.width[wanted] < 5e-9).all())
            assert bool((found.above[wanted] == above).all())


def test_errors_of_the_outside_hold_what_its_factors_differ_by(known):
    T, values = known
    start, stop = 40, 64
    outside = outside_at(T, start, stop)
    for r in (0, 7, 23):
        n, c = outside.s.shape[1], stop - start
        top = torch.cat([torch.diag(outside.s[0]), torch.zeros(n, outside.far_rows.shape[2]).double()], 1)
        top = torch.cat([top, outside.cols[0, :, :r]], 1)
        x, y = outside.far_cols.shape[1], outside.far_rows.shape[2]
        middle = torch.cat([torch.zeros(x, n + y).double(), outside.far_cols[0, :, :r]], 1)
        low = torch.cat([outside.rows[0, r:], outside.far_rows[0, r:], outside.inner[0, r:, :r]], 1)
        s = torch.linalg.svdvals(torch.cat([top, middle, low]))
        size = min(len(s), L)
        assert c > r
        off = float((s[:size] - values[start + r, :size]).abs().max())
        assert off <= float(outside.error) + 20 * EPS * float(s[0])


def test_inertia_is_that_of_a_matrix_within_the_error():
    for seed in range(20):
        m = 3 + 5 * seed % 47
        A = randn(8, m, m, seed=seed)
        A = A + A.mT
        A.diagonal(dim1=1, dim2=2).mul_(0.0 if seed % 3 == 0 else 1.0)
        w = torch.linalg.eigvalsh(A)
        above, error = inertia(A.tril())
        sure = w.abs().amin(1) > error + 50 * EPS * w.abs().amax(1)
        assert torch.equal(above[sure], (w > 0).sum(1).double()[sure]) and bool(sure.any())
        assert bool((error < 1e-9 * w.abs().amax(1)).all())


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("tolerance", [{"atol": 1e-9}, {"atol": 1e-13}, {"rtol": 1e-2}, {"rtol": 1e-9}, {"atol": 0.0}])
def test_no_backend_is_silently_wrong(known, backend, tolerance, monkeypatch):
    if backend == "native" and NativeBackend().unavailable() is not None:
        pytest.skip("not built")
    T, values = known
    # as if the singular values of so short a sequence were dear
    monkeypatch.setattr("ess_kernels.engine.unsquared.AFFORDABLE", 0.0)
    counts, certificate = ek.tolerance_ess(T, **tolerance, certificate=True, backend=backend)
    tau = values[:, 0] * tolerance["rtol"] if "rtol" in tolerance else torch.full((L,), tolerance["atol"]).double()
    assert silent(values[1:], tau[1:], counts, certificate.width, certificate.unresolved) == 0
    assert bool((counts <= torch.minimum(torch.arange(1, L), L - torch.arange(1, L))).all())


@pytest.mark.parametrize("n", [8, 64])
def test_recurrences_are_not_silently_wrong(n):
    gates = torch.nn.functional.logsigmoid(randn(1, L, 1, n, seed=12)) / 16
    op = ek.operators.gla(randn(1, L, 1, n, seed=10), randn(1, L, 1, n, seed=11), gates)
    values = spectra(op.dense()[0, 0].tril(-1))[:, :n]
    for tolerance in ({"rtol": 1e-2}, {"rtol": 1e-8}, {"atol": 1e-12}, {"atol": 0.0}):
        counts, certificate = ek.tolerance_ess(op, **tolerance, certificate=True, backend="torch")
        counts, width, unresolved = (x.flatten() for x in (counts, certificate.width, certificate.unresolved))
        tau = values[:, 0] * tolerance["rtol"] if "rtol" in tolerance else torch.full((L,), tolerance["atol"]).double()
        assert silent(values[1:], tau[1:], counts, width, unresolved) == 0
        assert float(unresolved.double().mean()) < 0.1


def test_a_relative_tolerance_of_one_leaves_nothing():
    T = kinds()["plain"]
    counts, certificate = ek.tolerance_ess(T, rtol=[1.0, 2.0], certificate=True, backend="torch")
    assert not bool(counts.any()) and not bool(certificate.unresolved.any())


def test_a_heads_answer_does_not_depend_on_its_neighbours():
    T = torch.stack([kinds()[name] for name in ("sink", "low rank", "plain")])
    together = ek.tolerance_ess(T, rtol=1e-5, certificate=True, backend="torch")
    for head in range(3):
        alone = ek.tolerance_ess(T[head], rtol=1e-5, certificate=True, backend="torch")
        assert torch.equal(together[0][head], alone[0])
        assert all(torch.equal(x[head], y) for x, y in zip(together[1], alone[1], strict=True))


def test_threads_change_nothing():
    T, before = kinds()["sink"], torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ek.tolerance_ess(T, rtol=1e-3, certificate=True, backend="torch"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(x, y) for x, y in zip(found[0][1], found[1][1], strict=True))


def test_dense_engines_can_do_it():
    from ess_kernels.engine.state_space import Recurrence
    from ess_kernels.engine.tiled import Matrix

    assert issubclass(Matrix, UnsquaredEngine) and issubclass(Recurrence, UnsquaredEngine)
