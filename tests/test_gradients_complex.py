"""Gradients with respect to complex transitions, near zero and at it: the angle of zero has no derivative, T has."""

import pytest
import torch
from torch.autograd import gradcheck

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.metrics import nuclear_norm, soft_ess
from ess_kernels.operators.structure import StateSpace
from ess_kernels.testing import assert_close

LENGTH = 12
METRICS = {
    "dense": lambda op: op.dense().square(),
    "soft": lambda op: soft_ess(op, [0.3, 1.0]),
    "nuclear": nuclear_norm,
    "entropy": ek.entropy_ess,
}


def inputs(batch=2, length=LENGTH, n=3):
    torch.manual_seed(length + n)
    shape, options = (batch, length, n), {"dtype": torch.float64}
    A = torch.polar(0.2 + 0.8 * torch.rand(*shape, **options), 6 * torch.rand(*shape, **options))
    B, C = torch.randn(2, *shape, dtype=torch.complex128)
    return A, B, C


def dense_complex(A, B, C):
    """`Re(C_i A_{i-1} .. A_{j+1} B_j)` by products of complex numbers, and nothing else."""
    length = B.shape[-2]
    rows = []
    for i in range(length):
        row = [torch.zeros_like(B[..., 0, 0].real)] * length
        passed = C[..., i, :]
        for j in range(i - 1, -1, -1):
            row[j] = (passed * B[..., j, :]).sum(-1).real
            passed = passed * A[..., j, :]
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def small_at(A, kind):
    """Transitions with small ones among them."""
    A = A.clone()
    if kind == "row":
        A[0, 5] = 0
    elif kind == "all":
        A.zero_()
    else:
        A[0, 5, 0] = kind
    return A


def gradients(measure, op, *tensors):
    values = measure(op)
    return values, torch.autograd.grad(values.sum(), tensors)


@pytest.mark.parametrize("kind", ["row", "all", 0, 1e-300j, 1e-16, -1e-9 + 1e-9j, 1e-6j, 2e-5, 1e-4 - 1e-4j])
@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_those_of_the_complex_products(metric, kind):
    A, B, C = inputs()
    tensors = [x.requires_grad_() for x in (small_at(A, kind), B, C)]
    op = operators.recurrence(*tensors, diagonal=True)
    T = dense_complex(*tensors)
    values, found = gradients(METRICS[metric], op, *tensors)
    expected_values, expected = gradients(METRICS[metric], operators.dense(T), *tensors)
    assert_close("values", values, expected_values)
    for name, x, y in zip("ABC", found, expected, strict=True):
        assert bool((x - y).abs().max() <= 1e-9 * (1 + y.abs().max())), name


@pytest.mark.parametrize("kind", ["row", 0, 1e-16])
def test_gradients_agree_with_finite_differences(kind):
    A, B, C = inputs(batch=1, length=7, n=2)
    A = small_at(A, kind).requires_grad_()
    assert gradcheck(lambda A: soft_ess(operators.recurrence(A, B, C, diagonal=True), 0.3), (A,), atol=1e-6)
    assert gradcheck(lambda A: operators.recurrence(A, B, C, diagonal=True).dense(), (A,), atol=1e-6)


def test_real_transitions_that_change_their_sign():
    A, B, C = inputs()
    real = A.real.clone()
    real[:, 4] = 0
    real[1, 7, 1] = -1e-12
    real.requires_grad_()
    (found,) = torch.autograd.grad(soft_ess(operators.recurrence(real, B, C, diagonal=True), 0.3).sum(), real)
    T = dense_complex(real.to(torch.complex128), B, C)
    (expected,) = torch.autograd.grad(soft_ess(operators.dense(T), 0.3).sum(), real)
    assert bool((found - expected).abs().max() < 1e-10)


def test_constant_transitions():
    _, B, C = (x[:, 0] for x in inputs())
    A = torch.tensor([[0, 0.5j, 0.9], [1e-14, -0.7, 0.3 + 0.3j]], dtype=torch.complex128, requires_grad=True)
    op = operators.recurrence(A, B, C, diagonal=True, length=LENGTH)
    (found,) = torch.autograd.grad(nuclear_norm(op).sum(), A)
    T = dense_complex(*(x[:, None].expand(-1, LENGTH, -1) for x in (A, B, C)))
    (expected,) = torch.autograd.grad(nuclear_norm(operators.dense(T)).sum(), A)
    assert bool((found - expected).abs().max() < 1e-9)


def test_packed_sequences():
    A, B, C = inputs(batch=1)
    A = small_at(A, "row").requires_grad_()
    packed = operators.recurrence(A, B, C, diagonal=True, cu_seqlens=torch.tensor([0, 4, LENGTH]))
    (found,) = torch.autograd.grad(soft_ess(packed, 0.3).sum(), A)
    T = [dense_complex(*(x[:, a:e] for x in (A, B, C))) for a, e in ((0, 4), (4, LENGTH))]
    (expected,) = torch.autograd.grad(sum(soft_ess(operators.dense(x), 0.3).sum() for x in T), A)
    assert bool((found - expected).abs().max() < 1e-10)


@pytest.mark.parametrize("metric", ["dense", "soft"])
@pytest.mark.parametrize("other", ["complex", "real", "attention"])
def test_sums(metric, other):
    A, B, C = inputs()
    A = small_at(A, "row")[:, None].requires_grad_()
    B, C = B[:, None], C[:, None]
    q, k = torch.randn(2, 2, LENGTH, 1, 3, dtype=torch.float64)
    second = {
        "complex": lambda: operators.recurrence(0.5 * A, C, B, diagonal=True),
        "real": lambda: operators.recurrence(A.detach().abs(), C.real, B.real, diagonal=True),
        "attention": lambda: operators.attention(q.transpose(1, 2), k.transpose(1, 2)),
    }[other]()
    op = operators.sum_of(operators.recurrence(A, B, C, diagonal=True), second, weights=(1.0, 0.7))
    (found,) = torch.autograd.grad(METRICS[metric](op).sum(), A)
    T = dense_complex(A, B, C) + 0.7 * (dense_complex(0.5 * A, C, B) if other == "complex" else second.dense())
    (expected,) = torch.autograd.grad(METRICS[metric](operators.dense(T)).sum(), A)
    assert bool((found - expected).abs().max() < 1e-9)


def test_a_head_does_not_depend_on_the_others():
    A, B, C = inputs(batch=3)
    A = small_at(A, 0).requires_grad_()
    together = soft_ess(operators.recurrence(A, B, C, diagonal=True), 0.3)
    (found,) = torch.autograd.grad(together.sum(), A)
    for head in range(3):
        own = A[head : head + 1].detach().requires_grad_()
        alone = soft_ess(operators.recurrence(own, B[head : head + 1], C[head : head + 1], diagonal=True), 0.3)
        assert torch.equal(alone[0], together[head])
        assert torch.equal(torch.autograd.grad(alone.sum(), own)[0][0], found[head])


def test_a_head_that_holds_nan_leaves_the_others_alone():
    A, B, C = inputs()
    A = small_at(A, 0)
    A[1, 3, 1] = torch.nan
    A.requires_grad_()
    value = soft_ess(operators.recurrence(A, B, C, diagonal=True), 0.3)
    (found,) = torch.autograd.grad(value[0].sum(), A)
    assert bool(value[1].isnan().all()) and bool(found.isfinite().all()) and bool((found[1] == 0).all())


def test_matrices_are_for_gradients_only(monkeypatch):
    A, B, C = inputs()
    A = small_at(A, "row")
    plain = operators.recurrence(A, B, C, diagonal=True)
    expected = plain.dense(), soft_ess(plain, 0.3), ek.tolerance_ess(plain, atol=0.1)

    def refuse(*_):
        raise AssertionError("nobody asked for a gradient")

    monkeypatch.setattr(StateSpace, "matrix_tokens", refuse)
    monkeypatch.setattr(type(plain), "matrix_tokens", refuse)
    wanted = operators.recurrence(A.requires_grad_(), B, C, diagonal=True)
    assert torch.equal(ek.tolerance_ess(wanted, atol=0.1), expected[2])
    with torch.no_grad():
        assert torch.equal(wanted.dense(), expected[0]) and torch.equal(soft_ess(wanted, 0.3), expected[1])
