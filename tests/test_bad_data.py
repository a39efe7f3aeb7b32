"""Bad data mark every position of their heads, in every metric and backend, and no other head."""

import math

import pytest
import torch

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import powers, rand, randn

BACKENDS = ["torch", "reference"]


def three_metrics(op, backend, positions=None):
    everywhere = range(1, op.shape[-1] if isinstance(op, torch.Tensor) else op.length)
    counts, certificate = ek.tolerance_ess(
        op, [1e-3, 0.3, 1e-9, 0.0], [0.0, 0.0, 0.0, 1e-5], positions, backend, certificate=True
    )
    return [
        counts,
        *certificate,
        ek.entropy_ess(op, positions, backend),
        ek.singular_values(op, everywhere, None, backend),
    ]


def check_marked(spoilt, clean, bad, backend):
    """Heads in `bad` (bool, batch shape) are marked everywhere, the others as if nothing had happened."""
    found, wanted = three_metrics(spoilt, backend), three_metrics(clean, backend)
    counts, _, _, unresolved, entropy, values = found
    assert bool((counts[:, bad] == -1).all()) and bool(unresolved[:, bad].all())
    assert bool(entropy[bad].isnan().all()) and bool(values[bad].isnan().all())
    for name, x, y in zip(("counts", "width", "redone", "unresolved"), found, wanted):
        assert torch.equal(x[:, ~bad], y[:, ~bad]), name
    assert torch.equal(entropy[~bad], wanted[4][~bad]), "entropy"
    assert torch.equal(values[~bad], wanted[5][~bad]), "singular values"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", ["gla", "attention", "dense", "recurrence", "convolution"])
def test_bad_data_marks_one_head_and_leaves_the_others_bit_identical(family, value, backend):
    torch.manual_seed(6)
    bad = torch.zeros(2, 3).bool()
    bad[1, 2] = True
    if family == "gla":
        tensors, at = [randn(2, 37, 3, 5), randn(2, 37, 3, 5), -rand(2, 37, 3, 5)], (1, 36, 2, 0)
        make = lambda q: operators.gla(q, *tensors[1:])  # noqa: E731
    elif family == "attention":
        tensors, at = [randn(2, 3, 37, 5), randn(2, 3, 37, 5)], (1, 2, 0, 0)
        make = lambda q: operators.attention(q, tensors[1])  # noqa: E731
    elif family == "dense":
        tensors, at = [randn(2, 3, 37, 37)], (1, 2, 36, 0)
        make = operators.dense
    elif family == "recurrence":
        tensors, at = [randn(2, 3, 37, 4, 4) / 4, randn(2, 3, 37, 4), randn(2, 3, 37, 4)], (1, 2, 0, 3, 3)
        make = lambda A: operators.recurrence(A, *tensors[1:], diagonal=False)  # noqa: E731
    else:
        tensors, at = [randn(2, 3, 37), randn(3, 37), randn(2, 3, 37)], (1, 2, 5)
        make = lambda x: operators.gated_convolution(x, *tensors[1:])  # noqa: E731
    spoilt = tensors[0].clone()
    spoilt[at] = value
    check_marked(make(spoilt), make(tensors[0]), bad, backend)
    for positions in ([20], [3, 30]):
        counts = ek.tolerance_ess(make(spoilt), 0.3, positions=positions, backend=backend)
        assert bool((counts[bad] == -1).all())
        assert torch.equal(counts[~bad], ek.tolerance_ess(make(tensors[0]), 0.3, None, positions, backend)[~bad])
        entropy = ek.entropy_ess(make(spoilt), positions, backend)
        assert bool(entropy[bad].isnan().all())
        assert torch.equal(entropy[~bad], ek.entropy_ess(make(tensors[0]), positions, backend)[~bad])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fall", [8, 16, 60])
def test_a_bad_head_changes_nothing_for_heads_that_need_more_work(backend, fall):
    """Rows that fall far below the largest: decisions about how to go on must not look at other heads."""
    torch.manual_seed(7)
    T = randn(2, 50, 50) * powers(0, -fall, 50)[:, None]
    spoilt = T.clone()
    spoilt[1, 30, 3] = math.nan
    check_marked(spoilt, T, torch.tensor([False, True]), backend)
    q, k, g = randn(1, 50, 2, 4) * powers(0, -fall, 50)[None, :, None, None], randn(1, 50, 2, 4), -rand(1, 50, 2, 4)
    spoilt_q = q.clone()
    spoilt_q[0, 3, 1] = math.inf
    check_marked(operators.gla(spoilt_q, k, g), operators.gla(q, k, g), torch.tensor([[False, True]]), backend)


@pytest.mark.parametrize("fall", [0, 8, 16, 60])
def test_a_head_alone_is_the_head_in_a_batch(fall):
    """Certificates and counts exactly, entropy to rounding."""
    torch.manual_seed(8)
    T = randn(3, 50, 50) * powers(0, -fall, 50)[:, None]
    whole = ek.tolerance_ess(T, [1e-3, 1e-9], certificate=True, backend="torch")
    for head in range(3):
        alone = ek.tolerance_ess(T[head], [1e-3, 1e-9], certificate=True, backend="torch")
        assert torch.equal(alone[0], whole[0][:, head])
    entropy = ek.entropy_ess(T, backend="torch")
    alone = torch.stack([ek.entropy_ess(head, backend="torch") for head in T])
    assert_close("entropy", entropy, alone, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_values_mark_every_head_that_reads_them(backend):
    torch.manual_seed(9)
    k = randn(1, 1, 20, 4)
    k[0, 0, 7, 1] = math.nan
    assert bool((ek.tolerance_ess(operators.attention(randn(1, 4, 20, 4), k), backend=backend) == -1).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_overflow_is_bad_data(backend):
    """Finite inputs whose operator is not."""
    torch.manual_seed(10)
    q = randn(1, 30, 2, 4)
    big = q.clone()
    big[:, :, 1] *= 1e200
    op = operators.gla(big, big, -rand(1, 30, 2, 4))
    counts, entropy = ek.tolerance_ess(op, backend=backend), ek.entropy_ess(op, backend=backend)
    assert bool((counts[:, 1] == -1).all()) and bool(entropy[:, 1].isnan().all())
    assert bool((counts[:, 0] >= 0).all()) and bool((entropy[:, 0] > 0).all())
    grows = operators.gla(q, q, torch.full_like(q, 400.0))
    for positions in (None, [15]):
        assert bool((ek.tolerance_ess(grows, positions=positions, backend=backend) == -1).all())
        assert bool(ek.entropy_ess(grows, positions, backend=backend).isnan().all())
    assert bool(ek.singular_values(grows, [15], backend=backend).isnan().all())


@pytest.mark.parametrize("start", [1.0, 1e-120, 1e120])
@pytest.mark.parametrize("growth", [10.0, 1e4, 1e6, 1e8])
def test_backends_agree_about_what_overflows(growth, start):
    """`T` grows to `start growth^29`; where that is a number, so is the answer."""
    torch.manual_seed(11)
    A = torch.full((1, 31, 3), growth, dtype=torch.float64)
    op = operators.recurrence(A, start * randn(1, 31, 3), randn(1, 31, 3), diagonal=True)
    bad = not bool(op.dense().isfinite().all())
    for backend in BACKENDS:
        counts = ek.tolerance_ess(op, 1e-3, backend=backend)
        assert bool(((counts == -1) == bad).all()), f"{backend}: {counts.tolist()}"
        assert bool((ek.entropy_ess(op, backend=backend).isnan() == bad).all()), backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_data_where_gradients_are_wanted(backend):
    if backend == "reference":
        pytest.skip("has no backward")
    torch.manual_seed(12)
    q = randn(1, 15, 2, 3)
    q[0, 4, 1] = math.nan
    entropy = ek.entropy_ess(operators.linear_attention(q.requires_grad_(), randn(1, 15, 2, 3)))
    assert bool(entropy[0, 1].isnan().all()) and bool((entropy[0, 0] >= 1).all())
    entropy[0, 0].sum().backward()
    assert bool(q.grad[0, :, 0].isfinite().all())
