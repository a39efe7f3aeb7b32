"""Recurrences through `backend="triton"`, all certainty included, against one decomposition per position."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from twins import descend_twin

from ess_kernels.testing import recurrences as ops

triton = pytest.importorskip("triton")

import ess_kernels as ek  # noqa: E402
from ess_kernels import reference  # noqa: E402
from ess_kernels.backends.sources import supported_heads  # noqa: E402
from ess_kernels.backends.triton.recurrence import boundary, passes  # noqa: E402
from ess_kernels.backends.triton.recurrence.weights import estimate  # noqa: E402
from ess_kernels.engine.certainty import count_values  # noqa: E402
from ess_kernels.engine.quadrature import FINE, STANDARD  # noqa: E402

DEVICE = ops.DEVICE


def values(op) -> torch.Tensor:
    return reference.reference_singular_values(op, torch.arange(1, op.length, device=op.device))


def check_counts(op, tolerances, **kwargs):
    """Exact counts; where a value lies on the tolerance to within rounding errors, the certificate says so."""
    found, certificate = ek.tolerance_ess(op, tolerances, backend="triton", certificate=True, **kwargs)
    s = values(op)
    for m, tolerance in enumerate(tolerances):
        expected = (s > tolerance).sum(-1)
        tied = count_values(s, torch.full_like(s[..., 0], tolerance)).unresolved
        wrong = found[m] != expected
        assert not bool((wrong & ~tied).any()), f"{int((wrong & ~tied).sum())} wrong counts at {tolerance}"
        assert not bool((wrong & ~certificate.unresolved[m]).any())
    return found, certificate


def check_entropy(op, tolerance=1e-4):
    found = ek.entropy_ess(op, backend="triton")
    expected = reference.reference_entropy_ess(op, torch.arange(1, op.length, device=op.device))
    assert float(((found - expected).abs() / expected.clamp_min(1)).max()) < tolerance


SMALL = {
    "gla": lambda: ops.gla(B=1, T=37, H=2, K=5),
    "gla-bfloat16": lambda: ops.gla(B=1, T=30, H=1, K=16, dtype=torch.bfloat16),
    "ssd": lambda: ops.ssd(B=1, T=20, H=2, G=1, n=8),
    "mamba": lambda: ops.mamba(B=1, D=2, L=37),
    "mamba-constant": lambda: ops.mamba(B=1, D=2, L=20, constant=True),
    "control": lambda: ops.control(L=35),
    "ssd-20": lambda: ops.ssd(B=1, T=36, H=1, G=1, n=20),
    "dense-transitions": lambda: ops.dense_transitions(),
}


@pytest.mark.parametrize("name", SMALL)
def test_counts(name):
    check_counts(SMALL[name](), [0.3, 1e-3])


def test_entropy_of_small_states():
    check_entropy(ops.mamba(B=1, D=1, L=20))


@pytest.fixture(
    params=["kernels"]
    if DEVICE == "cuda"
    else ["twins of boundary and staircase", pytest.param("kernels", marks=pytest.mark.thorough)]
)
def general(request, monkeypatch):
    """States above 16. Interpreted, the two kernels that run once a block and shift take most of the time."""
    if request.param != "kernels":
        monkeypatch.setattr(passes, "eliminate", boundary.eliminate_in_torch)
        monkeypatch.setattr(passes, "descend", descend_twin)


def test_entropy_of_larger_states(general):
    check_entropy(ops.gla(B=1, T=20, H=1, K=17))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_entropy_of_all_families(name):
    check_entropy(SMALL[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", ops.HARD)
@pytest.mark.parametrize("n", [16, 24])
def test_hard_cases(name, n):
    op = ops.HARD[name](40, n)
    top = float(values(op).max())
    check_counts(op, [x * top for x in (1e-1, 1e-3, 1e-5, 1e-7)] if top else [1e-3])
    check_entropy(op)


def test_tolerances_on_singular_values():
    op = ops.ssd(B=1, T=36, H=1, G=1, n=6)
    s = values(op)[0, 0]
    # of positions inside blocks and at their edges; larger and smaller values
    tolerances = [float(s[i - 1, k]) for i, k in ((16, 0), (16, 2), (20, 3))]
    check_counts(op, tolerances)


def test_tolerances_below_what_elimination_resolves(general):
    op = ops.ssd(B=1, T=36, H=1, G=1, n=20)
    top = float(values(op).max())
    _, certificate = check_counts(op, [1e-6 * top, 1e-9 * top])
    assert bool(certificate.redone[1].any())


def test_bad_heads_stay_alone():
    good = ops.gla(B=1, T=20, H=3, K=5)
    q, g = good.q.clone(), good.g.clone()
    q[0, 7, 1, 2] = torch.nan
    g[0, 3, 2, 0] = torch.inf
    bad = ek.operators.gla(q, good.k, g)
    expected = ek.tolerance_ess(good, 1e-2, backend="triton")
    found = ek.tolerance_ess(bad, 1e-2, backend="triton")
    assert torch.equal(found[0, 0], expected[0, 0])
    assert bool((found[0, 1:] == -1).all())
    entropy = ek.entropy_ess(bad, positions=[3, 17], backend="triton")
    assert bool(entropy[0, 1:].isnan().all()) and bool(entropy[0, 0].isfinite().all())


def test_transitions_that_grow_go_to_the_other_engine():
    op = ops.gla(B=1, T=20, H=2, K=4)
    g = op.g.clone()
    g[0, :, 1] = 0.5
    grown = ek.operators.gla(op.q, op.k, g)
    supported, _, _ = supported_heads(grown, grown.all_heads())
    assert supported.tolist() == [True, False]
    check_counts(grown, [1e-2])


def test_bad_steps_and_rates_are_not_supported():
    op = ops.mamba(B=1, D=4, L=20)
    A, delta = op.A.clone(), op.delta.clone()
    A[1, 0] = -torch.inf
    delta[0, 2, 5] = torch.inf
    bad = ek.operators.selective_scan(delta, A, op.B[:, 0], op.C[:, 0])
    supported, _, _ = supported_heads(bad, bad.all_heads())
    assert supported.tolist() == [True, False, False, True]
    assert (ek.tolerance_ess(bad, 1e-2, positions=[3, 9], backend="triton")[0, :, 0] == -1).tolist() == [
        False, True, True, False,
    ]  # fmt: skip


def test_heads_in_slices_give_the_same(monkeypatch):
    op = ops.mamba(B=1, D=2, L=20)
    whole = ek.tolerance_ess(op, [1e-1], backend="triton")
    monkeypatch.setenv("ESS_KERNELS_MEMORY_BUDGET", "1KiB")
    assert torch.equal(ek.tolerance_ess(op, [1e-1], backend="triton"), whole)


def test_scales_by_powers_of_two_change_nothing():
    op = ops.gla(B=1, T=20, H=1, K=5)
    scaled = ek.operators.gla(op.q * 2.0**200, op.k * 2.0**-300, op.g, scale=op.scale)
    found = ek.tolerance_ess(scaled, 1e-2 * 2.0**-100, backend="triton")
    assert torch.equal(found, ek.tolerance_ess(op, 1e-2, backend="triton"))


@pytest.mark.parametrize("quadrature", [STANDARD, FINE])
def test_sum_over_the_shifts(quadrature):
    op = ops.gla(B=1, T=20, H=2, K=5)
    s = values(op)[0]
    scale = s.max() ** 2
    nodes = quadrature.nodes(s.device)
    logdets = torch.log1p(s[:, None].square() / (scale * nodes[:, None, None])).sum(-1)
    logdets[1, :, 4] = 0.0
    cap = torch.full((op.length - 1,), 5.0, dtype=torch.float64, device=s.device)
    rounding = torch.logspace(-30, -8, op.length - 1, dtype=torch.float64, device=s.device).expand(len(s), -1)
    found, expected = (f(logdets, cap, rounding) for f in (partial(estimate, quadrature), quadrature.estimate))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("n, T", [(40, 70), (130, 70)])
def test_larger_states(n, T):
    check_counts(ops.gla(B=1, T=T, H=1, K=n), [1e-1, 1e-3])
