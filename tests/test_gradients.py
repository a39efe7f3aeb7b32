"""Gradients of entropy-ESS: against finite differences, and against the backward of a singular value decomposition."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.reference import reference_entropy_ess
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import corner, orthogonal, powers, rand, randn

TOLERANCE = {"atol": 1e-5, "rtol": 1e-3, "fast_mode": True}


def gradients(function, *tensors):
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    entropy = function(*tensors)
    weights = torch.linspace(0.5, 2, entropy.numel(), dtype=torch.float64).view_as(entropy)
    return entropy.detach(), torch.autograd.grad((entropy * weights).sum(), tensors)


def compare(build, *tensors, rtol=1e-6):
    """The gradient against that of the definition, by autograd through singular values that do not coincide."""
    entropy, found = gradients(lambda *x: ek.entropy_ess(build(*x)), *tensors)
    truth, wanted = gradients(lambda *x: reference_entropy_ess(build(*x)), *tensors)
    assert_close("entropy", entropy, truth, rtol=1e-5)
    for x, y in zip(found, wanted):
        assert_close("gradient", x, y, rtol=rtol, atol=rtol * float(y.abs().max()) + 1e-7)


def some(n=3, length=9, heads=1):
    torch.manual_seed(n + length)
    return [randn(1, length, heads, n), randn(1, length, heads, n), logsigmoid(randn(1, length, heads, n))]


@pytest.mark.parametrize("n", [2, 6])
def test_gradcheck_gla(n):
    """With a state smaller, and one larger, than what most positions can reach."""
    q, k, g = (x.requires_grad_() for x in some(n, 6))
    assert gradcheck(lambda *x: ek.entropy_ess(operators.gla(*x)), (q, k, g), **TOLERANCE)
    assert gradcheck(lambda *x: ek.entropy_ess(operators.gla(*x), [5, 3, 5]), (q, k, g), **TOLERANCE)


def test_gradcheck_dense():
    torch.manual_seed(0)
    T = randn(5, 5).requires_grad_()
    assert gradcheck(ek.entropy_ess, (T,), **TOLERANCE)
    T = randn(2, 7, 7).requires_grad_()
    assert gradcheck(lambda T: ek.entropy_ess(T, [5, 2, 5]), (T,), **TOLERANCE)


def test_gradcheck_attention():
    torch.manual_seed(1)
    q, k = randn(1, 1, 5, 2).requires_grad_(), randn(1, 1, 5, 2).requires_grad_()
    assert gradcheck(lambda q, k: ek.entropy_ess(operators.attention(q, k)), (q, k), **TOLERANCE)
    q, k = randn(1, 2, 7, 3).requires_grad_(), randn(1, 1, 7, 3).requires_grad_()
    windowed = lambda q, k: ek.entropy_ess(operators.attention(q, k, window_size=3))  # noqa: E731
    assert gradcheck(windowed, (q, k), **TOLERANCE)


def test_gradcheck_mamba():
    torch.manual_seed(2)
    dt, A = randn(1, 5, 2).requires_grad_(), (-rand(2)).requires_grad_()
    B, C = randn(1, 5, 1, 3).requires_grad_(), randn(1, 5, 1, 3).requires_grad_()
    function = lambda *x: ek.entropy_ess(operators.ssd(*x, dt_softplus=True))  # noqa: E731
    assert gradcheck(function, (dt, A, B, C), **TOLERANCE)
    delta, rates = randn(1, 2, 5).requires_grad_(), (-rand(2, 3)).requires_grad_()
    B, C = randn(1, 3, 5).requires_grad_(), randn(1, 3, 5).requires_grad_()
    scan = lambda *x: ek.entropy_ess(operators.selective_scan(*x, delta_softplus=True))  # noqa: E731
    assert gradcheck(scan, (delta, rates, B, C), **TOLERANCE)


@pytest.mark.parametrize("diagonal", [True, False])
def test_gradcheck_recurrence(diagonal):
    torch.manual_seed(3)
    A = (randn(7, 3) / 2 if diagonal else randn(7, 3, 3) / 3).requires_grad_()
    B, C = randn(7, 3).requires_grad_(), randn(7, 3).requires_grad_()
    assert gradcheck(lambda *x: ek.entropy_ess(operators.recurrence(*x, diagonal=diagonal)), (A, B, C), **TOLERANCE)


@pytest.mark.parametrize("length", [2, 3, 16, 37])
def test_against_the_definition(length):
    compare(operators.gla, *some(4, length))
    torch.manual_seed(length)
    compare(operators.dense, randn(2, length, length))
    compare(operators.attention, randn(1, 1, length, 4), randn(1, 1, length, 4))


@pytest.mark.parametrize("scale", [1e-120, 1e-40, 1e-3, 1e3, 1e40, 1e100])
def test_the_scale_of_the_operator_does_not_matter(scale):
    """Entropy-ESS does not change, gradients shrink as the operator grows."""
    q, k, g = some(3, 12)
    entropy, (dq, dk, dg) = gradients(lambda *x: ek.entropy_ess(operators.gla(*x)), q, k, g)
    scaled, (sq, sk, sg) = gradients(lambda *x: ek.entropy_ess(operators.gla(*x)), scale * q, k, g)
    assert_close("entropy", scaled, entropy, rtol=1e-5)
    for x, y in ((sq * scale, dq), (sk, dk), (sg, dg)):
        assert_close("gradient", x, y, rtol=1e-3, atol=1e-3 * float(y.abs().max()))
    torch.manual_seed(4)
    T = randn(9, 9)
    entropy, (dT,) = gradients(ek.entropy_ess, T)
    scaled, (sT,) = gradients(ek.entropy_ess, scale * T)
    assert_close("entropy", scaled, entropy, rtol=1e-5)
    assert_close("gradient", sT * scale, dT, rtol=1e-3, atol=1e-3 * float(dT.abs().max()))


@pytest.mark.parametrize("skew", [1e2, 1e4, 1e6])
def test_a_skewed_basis_does_not_matter(skew):
    q, k, g = some(4, 24)
    s = powers(-1, 1, 4) ** torch.tensor(skew).log10()
    compare(operators.gla, q * s, k / s, g)


def test_rows_that_fall():
    """Positions far below the others, as after strong decay."""
    torch.manual_seed(5)
    compare(operators.dense, randn(24, 24) * powers(0, -6, 24)[:, None])
    q, k, g = some(3, 24)
    compare(operators.gla, q * powers(0, -6, 24)[None, :, None, None], k, g)


def test_coincident_singular_values_have_finite_gradients():
    """Where the backward of a singular value decomposition divides by zero."""
    for T in (torch.eye(12).double().roll(1, 0).tril(), corner(torch.ones(6).double()), torch.zeros(12, 12).double()):
        T.requires_grad_()
        entropy = ek.entropy_ess(T)
        entropy.sum().backward()
        assert bool(T.grad.isfinite().all())
    q = torch.eye(4).double().repeat(3, 1)[None, :, None]
    op = [q.clone().requires_grad_(), q.clone().requires_grad_(), torch.zeros_like(q).requires_grad_()]
    ek.entropy_ess(operators.gla(*op)).sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in op)


def test_equal_values_are_a_maximum():
    """Where all values are equal, entropy is at its largest: to first order it falls along no perturbation."""
    T = corner(torch.full((6,), 2.0).double()).requires_grad_()
    (gradient,) = torch.autograd.grad(ek.entropy_ess(T, [6]).sum(), T)
    assert float(gradient[6:, :6].abs().max()) < 1e-4


def test_resets_and_zero_states():
    q, k, g = some(3, 12)
    g[:, 5] = -torch.inf
    q[:, 9:] = 0.0
    tensors = [x.requires_grad_() for x in (q, k, g)]
    entropy = ek.entropy_ess(operators.gla(*tensors))
    assert entropy[0, 0, 4] == 0 and bool((entropy[0, 0, 9:] == 0).all())
    entropy.sum().backward()
    assert bool(q.grad.isfinite().all()) and bool(k.grad.isfinite().all())
    assert bool(g.grad[g.detach() > -torch.inf].isfinite().all())


@pytest.mark.parametrize("duplicate", [True, False])
def test_rank_deficient_recurrences(duplicate):
    """Two equal coordinates, or a dead one: singular values of exactly zero."""
    q, k, g = some(4, 20)
    if duplicate:
        k[..., 1], g[..., 1] = k[..., 0], g[..., 0]
    else:
        k[..., 1] = 0.0
    tensors = [x.requires_grad_() for x in (q, k, g)]
    entropy = ek.entropy_ess(operators.gla(*tensors))
    assert_close(
        "entropy", entropy.detach(), reference_entropy_ess(operators.gla(q.detach(), k.detach(), g.detach())), 1e-4
    )
    entropy.sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in tensors)
    # coordinates that do not matter have no gradient in q
    if not duplicate:
        assert float(q.grad[..., 1].abs().max()) < 1e-3


def test_low_precision_inputs_have_gradients():
    q, k, g = (x.bfloat16().requires_grad_() for x in some(3, 9))
    ek.entropy_ess(operators.gla(q, k, g)).sum().backward()
    for x in (q, k, g):
        assert x.grad.dtype == torch.bfloat16 and bool(x.grad.isfinite().all())


def test_a_step_along_the_gradient_raises_the_entropy():
    q, k, g = some(4, 30)
    q.requires_grad_()
    entropy = ek.entropy_ess(operators.gla(q, k, g)).mean()
    (gradient,) = torch.autograd.grad(entropy, q)
    with torch.no_grad():
        moved = q + 1e-3 * gradient / gradient.norm()
    gain = float(ek.entropy_ess(operators.gla(moved, k, g)).mean() - entropy.detach())
    assert gain == pytest.approx(1e-3 * float(gradient.norm()), rel=0.05)


def test_backends_without_a_backward_refuse_by_name():
    T = randn(5, 5).requires_grad_()
    with pytest.raises(RuntimeError, match=r"reference.*entropy_ess.*backward"):
        ek.entropy_ess(T, backend="reference")
    for op in (operators.gla(*(x.requires_grad_() for x in some())), operators.attention(T[None, None], T[None, None])):
        with pytest.raises(RuntimeError, match="reference"):
            ek.entropy_ess(op, backend="reference")
        assert ek.entropy_ess(op).requires_grad and ek.entropy_ess(op, backend="torch").requires_grad


def test_nothing_to_differentiate():
    for length in (0, 1):
        T = torch.zeros(2, length, length, dtype=torch.float64, requires_grad=True)
        assert ek.entropy_ess(T).shape == (2, 0)
    empty = torch.zeros(0, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert ek.entropy_ess(operators.linear_attention(empty, empty)).shape == (0, 2, 4)
    assert ek.entropy_ess(randn(5, 5).requires_grad_(), []).shape == (0,)


def test_a_batch_has_the_gradients_of_its_heads():
    torch.manual_seed(6)
    T = randn(3, 8, 8)
    _, (together,) = gradients(lambda T: ek.entropy_ess(T).sum(-1), T)
    for head, weight in zip(range(3), torch.linspace(0.5, 2, 3).tolist()):
        (alone,) = torch.autograd.grad(ek.entropy_ess(x := T[head].clone().requires_grad_()).sum(), x)
        assert_close("gradient", together[head], weight * alone, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_longer_recurrence():
    compare(operators.gla, *some(16, 150))


@pytest.mark.slow
def test_a_longer_dense_operator():
    torch.manual_seed(7)
    compare(operators.dense, randn(120, 120))
    compare(operators.dense, orthogonal(120) @ (powers(0, -4, 120)[:, None] * orthogonal(120)))


@pytest.mark.parametrize("between", [1, 3])
def test_states_that_cancel_have_the_same_value(between):
    """Reads and writes of which hardly anything is left in `H_i`: its squares are lost in those of the Gramians."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 40, 1, 12, dtype=torch.float64)
    g = torch.full_like(q, -torch.inf)
    g[:, 1::2] = 0.0  # each odd token reads the one before it, and nothing else
    for small in (3e-4, 1e-6, 0.0):
        along, write = (q[:, 1::2] * k[:, 0::2]).sum(-1, keepdim=True), k[:, 0::2]
        q[:, 1::2] -= (along - small) * write / write.square().sum(-1, keepdim=True)
        positions = list(range(1, 40, between))
        expected = ek.entropy_ess(ek.operators.gla(q, k, g, scale=1.0), positions, backend="reference")
        op = ek.operators.gla(q.clone().requires_grad_(), k, g, scale=1.0)
        assert_close("entropy", ek.entropy_ess(op, positions).detach(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("apart", [1e-3, 1e-7, 1e-8, 1e-9, 1e-10])
def test_a_lost_determinant_leaves_a_gradient_that_is_a_number(apart):
    """Two states nearly cancel: rounding leaves some log-determinants infinite, and what they lead to is not used."""
    for seed in range(5):
        torch.manual_seed(seed)
        a, b, c = torch.randn(3, 1, 4, 1, 1, dtype=torch.float64)
        q, k = torch.cat([a, a + apart * c], -1).requires_grad_(), torch.cat([b, -b], -1)
        entropy = ek.entropy_ess(ek.operators.gla(q, k, torch.zeros_like(k)))
        assert entropy.isfinite().all()
        entropy.sum().backward()
        assert q.grad.isfinite().all()
