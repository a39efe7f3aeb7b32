"""Gradients where they are hard: awkward heads against the gradient through a dense `T`, and second derivatives."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import logsigmoid, normalize

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.gradients.logdets import matrix_logdets
from ess_kernels.metrics import nuclear_norm, soft_ess
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import powers, randn

L, N = 32, 6
METRICS = {
    "entropy": ek.entropy_ess,
    "soft": lambda op, positions=None: soft_ess(op, [0.1, 1.0], positions),
    "nuclear": nuclear_norm,
}
every_metric = pytest.mark.parametrize("metric", METRICS)


def gradients(measure, *tensors):
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    found = measure(*tensors)
    weights = torch.linspace(0.5, 2, found.numel(), dtype=torch.float64).view_as(found)
    return found.detach(), torch.autograd.grad((found * weights).sum(), tensors)


def base():
    torch.manual_seed(0)
    q, k, x = (randn(1, L, 1, N) for _ in range(3))
    return q, k, logsigmoid(x)


def hard_heads():
    q, k, g = base()
    fall = powers(0, -8, L)[None, :, None, None]
    reset = (g / 16).clone()
    reset[:, [5, 20]] = -torch.inf
    return {
        "slow decay": (q, k, g / 16),
        "very fast decay": (q, k, g * 30),
        "skewed basis": (q * powers(-3, 3, N), k / powers(-3, 3, N), g / 16),
        "rows that fall": (q * fall, k, g / 16),
        "columns that fall": (q, k * fall, g / 16),
        "keys of rank two": (q, k[..., :2] @ randn(2, N), torch.zeros_like(g)),
        "one token repeated": (q[:, :1].expand_as(q), k, g / 16),
        "resets": (q, k, reset),
        "a dead coordinate": (q, k * (torch.arange(N) > 0), g / 16),
        "huge": (q * 1e90, k, g / 16),
        "no decay": (q, k, torch.zeros_like(g)),
    }


HARD = hard_heads()


@every_metric
@pytest.mark.parametrize("name", HARD)
def test_hard_heads(name, metric):
    """Against the same function through singular values of a dense `T`, whose gradient has no chain of QRs in it."""
    scale = 1e90 if name == "huge" else 1.0
    measure = METRICS[metric] if metric != "soft" else lambda op: soft_ess(op, [0.1 * scale, scale])
    value, found = gradients(lambda *x: measure(operators.gla(*x)), *HARD[name])
    truth, wanted = gradients(lambda *x: measure(operators.dense(operators.gla(*x).dense())), *HARD[name])
    assert_close("value", value, truth, rtol=1e-7, atol=1e-9 * float(truth.abs().max()))
    for x, y in zip(found, wanted):
        assert bool(x.isfinite().all())
        assert_close("gradient", x, y.nan_to_num(), rtol=1e-6, atol=1e-7 * float(y.nan_to_num().abs().max()))


@every_metric
def test_positions_in_any_order_and_at_the_ends(metric):
    q, k, g = base()
    every, _ = gradients(lambda *x: METRICS[metric](operators.gla(*x)), q, k, g)

    def together(positions):
        return lambda *x: METRICS[metric](operators.gla(*x), positions)

    def one_by_one(positions):
        return lambda *x: torch.cat([METRICS[metric](operators.gla(*x), [i]) for i in positions], -1)

    for positions in ([1], [L - 1], [1, L - 1], [9, 3, 9, 31], range(5, 30, 7)):
        found, some = gradients(together(positions), q, k, g)
        assert_close("value", found, every[..., [i - 1 for i in positions]], rtol=1e-9)
        for x, y in zip(some, gradients(one_by_one(positions), q, k, g)[1]):
            assert_close("gradient", x, y, rtol=1e-8, atol=1e-9)


@every_metric
def test_coincident_values(metric):
    """Finite differences along a direction, where every singular value is the same."""
    eye = torch.eye(4, dtype=torch.float64).repeat(4, 1)[None, :, None]
    x = [eye.clone(), eye.clone(), torch.zeros_like(eye)]
    torch.manual_seed(1)
    direction = [randn(*t.shape) for t in x]
    measure = lambda *x: METRICS[metric](operators.gla(*x, scale=1.0), [8])  # noqa: E731
    _, found = gradients(lambda *x: measure(*x).sum(), *x)
    ends = [measure(*(t + e * d for t, d in zip(x, direction))).sum() for e in (1e-5, -1e-5)]
    along = 0.5 * (ends[0] - ends[1]) / 2e-5
    assert_close("derivative", sum((a * b).sum() for a, b in zip(found, direction)), along, rtol=1e-5, atol=1e-6)


@every_metric
def test_zero_operators(metric):
    T = torch.zeros(6, 6, dtype=torch.float64).requires_grad_()
    METRICS[metric](T).sum().backward()
    assert bool((T.grad == 0).all())
    q, k, g = base()
    _, found = gradients(lambda *x: METRICS[metric](operators.gla(*x)), 0 * q, 0 * k, g)
    assert all(bool((x == 0).all()) for x in found)


@every_metric
def test_bad_heads_leave_the_gradients_of_others_alone(metric):
    torch.manual_seed(2)
    q, k, v = randn(2, 2, 12, 3), randn(2, 1, 12, 3), randn(2, 12, 2, 3)
    bad = q.clone()
    bad[1, 0, 4, 1] = torch.nan

    def measure(q, k, v):
        # both heads of a row share their keys, or have their own
        shared = METRICS[metric](operators.attention(q, k))
        found = shared + METRICS[metric](operators.linear_attention(q.transpose(1, 2), v))
        keep = torch.ones(2, 2, 1, dtype=torch.bool)
        keep[1, 0] = False
        return torch.where(keep, found, 0.0)

    _, found = gradients(measure, bad, k, v)
    _, clean = gradients(measure, q, k, v)
    for x, y in zip(found, clean):
        assert_close("gradient", x, y, rtol=1e-12)
    assert bool(METRICS[metric](operators.attention(bad.requires_grad_(), k))[..., 1, 0, :].isnan().all())
    T = randn(2, 8, 8)
    T[1, 5, 2] = torch.inf
    value, (of_T,) = gradients(lambda T: METRICS[metric](T)[..., 0, :], T)
    assert bool(value.isfinite().all()) and bool((of_T[1] == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@every_metric
def test_gradients_have_the_dtype_of_their_input(metric, dtype):
    tensors = [x.to(dtype).requires_grad_() for x in base()]
    METRICS[metric](operators.gla(*tensors), [8, 16]).sum().backward()
    assert all(x.grad.dtype == dtype and bool(x.grad.isfinite().all()) for x in tensors)


@every_metric
def test_packed_sequences_have_the_gradients_of_each(metric):
    q, k, g = base()
    cut = [(0, 1), (1, 12), (12, L)]

    def apart(*x):
        pieces = [METRICS[metric](operators.gla(*(t[:, a:e] for t in x))) for a, e in cut[1:]]
        return torch.cat([pieces[0][..., :0], pieces[0], pieces[1][..., :1] * 0, pieces[1]], -1)

    packed = lambda *x: METRICS[metric](operators.gla(*x, cu_seqlens=torch.tensor([0, 1, 12, L])))[..., 1:]  # noqa: E731
    value, found = gradients(packed, q, k, g)
    truth, wanted = gradients(apart, q, k, g)
    assert_close("value", value, truth, rtol=1e-9)
    for x, y in zip(found, wanted):
        assert_close("gradient", x, y, rtol=1e-8, atol=1e-10)


@every_metric
@pytest.mark.thorough
def test_growing_states_whose_gramians_overflow(metric):
    torch.manual_seed(3)
    A = torch.full((1, 24, 3), 1e14, dtype=torch.float64)
    B, C = randn(1, 24, 3) * 1e-150, randn(1, 24, 3) * 1e-150
    recurrence = lambda *x: operators.recurrence(*x, diagonal=True)  # noqa: E731
    _, found = gradients(lambda *x: METRICS[metric](recurrence(*x), [6, 12]), A, B, C)
    assert all(bool(x.isfinite().all()) for x in found)


@pytest.mark.thorough
@every_metric
def test_many_positions_of_a_long_matrix_have_log_determinants(metric):
    torch.manual_seed(4)
    T = randn(300, 300) if metric == "soft" else randn(280, 280)
    value, (found,) = gradients(METRICS[metric], T)
    chosen = list(range(20, 260, 40))

    def weighted(T):
        each = [METRICS[metric](T, [i])[..., 0] for i in chosen]
        return torch.stack(each, -1)

    few, _ = gradients(weighted, T)
    assert_close("value", value[..., [i - 1 for i in chosen]], few, rtol=1e-5)
    direction = randn(*T.shape)
    # far enough apart that the rounding of a sum over all positions, about 1e-11 of it, does not matter
    ends = [METRICS[metric](T + e * direction) for e in (1e-4, -1e-4)]
    weights = torch.linspace(0.5, 2, value.numel(), dtype=torch.float64).view_as(value)
    along = ((ends[0] - ends[1]) * weights).sum() / 2e-4
    assert_close("derivative", (found * direction).sum(), along, rtol=1e-3)


def low_rank_somewhere():
    """Two heads without pivots at small shifts: one has low rank everywhere, one where a huge corner is seen."""
    torch.manual_seed(7)
    T = torch.stack([randn(100, 3) @ randn(3, 100), randn(100, 100)])
    T[1, 60:80, 50:54] = 1e10 * (randn(20, 1) @ randn(1, 4))
    return T, torch.tensor([1e-7, 5.0])


@pytest.mark.parametrize("head", [0, 1])
def test_where_rounding_leaves_no_log_determinants_of_a_matrix(head):
    """Such positions are found from singular values, and spoil the gradient of no other."""
    T, atol = low_rank_somewhere()
    T, atol = T[head], float(atol[head])
    logdets = matrix_logdets(T.tril(-1) / T.abs().max(), torch.tensor([(atol / float(T.abs().max())) ** 2]).double())
    assert bool(logdets.isnan().any()) and (head == 0 or bool(logdets[0, :50].isfinite().all()))
    value, (found,) = gradients(lambda T: soft_ess(T, atol), T)
    assert_close("value", value, soft_ess(T, atol, backend="reference"), rtol=1e-4, atol=1e-4)
    # one position at a time comes from singular values
    _, (wanted,) = gradients(lambda T: torch.cat([soft_ess(T, atol, [i]) for i in range(1, 100)], -1), T)
    assert bool(found.isfinite().all())
    assert_close("gradient", found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_log_determinants_of_one_head_fail_alone():
    T, atol = low_rank_somewhere()
    measure = lambda T: soft_ess(T, float(atol[1]))[..., -1, :]  # noqa: E731
    value, (found,) = gradients(measure, T)
    alone, (wanted,) = gradients(measure, T[1:])
    assert torch.equal(value, alone) and torch.equal(found[1:], wanted) and not bool(found[0].any())


# --- second derivatives, and third ones -------------------------------------------------------------------------------


def small():
    torch.manual_seed(5)
    k = normalize(randn(1, 7, 2, 2), dim=-1)
    return {
        "gla": (operators.gla, (randn(1, 7, 2, 2), randn(1, 7, 2, 2), logsigmoid(randn(1, 7, 2, 2)))),
        "delta rule": (operators.delta_rule, (randn(1, 7, 2, 2), k, torch.rand(1, 7, 2, dtype=torch.float64))),
        "matrices": (
            lambda *x: operators.recurrence(*x, diagonal=False),
            (randn(7, 2, 2) / 2, randn(7, 2), randn(7, 2)),
        ),
        "attention": (operators.attention, (randn(1, 1, 6, 2), randn(1, 1, 6, 2))),
        "dense": (operators.dense, (randn(2, 6, 6),)),
    }


SMALL = small()
some_kinds = pytest.mark.parametrize(
    "name", [name if name in ("gla", "dense") else pytest.param(name, marks=pytest.mark.thorough) for name in SMALL]
)


@every_metric
@some_kinds
def test_second_derivatives_are_exact(name, metric):
    make, tensors = SMALL[name]
    tensors = [x.clone().requires_grad_() for x in tensors]
    measure = lambda *x: METRICS[metric](make(*x), [1, 3, 4])  # noqa: E731
    assert gradcheck(measure, tensors, fast_mode=True)
    assert gradgradcheck(measure, tensors, fast_mode=True)


def test_second_derivatives_at_coincident_values():
    T = torch.zeros(8, 8, dtype=torch.float64)
    T[4:, :4] = 1.5 * torch.eye(4)
    for metric in METRICS.values():
        measure = lambda T: metric(T, [4])  # noqa: B023, E731
        assert gradgradcheck(measure, (T.clone().requires_grad_(),), fast_mode=True, atol=1e-4)


def hessian_times(measure, x, direction):
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(measure(x).sum(), x, create_graph=True)
    return torch.autograd.grad((first * direction).sum(), x)[0]


@every_metric
@pytest.mark.parametrize("length", [6, 16])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_derivatives_by_log_determinants_are_those_by_decompositions(metric, length, spread, monkeypatch):
    """The way of many positions of a long head, against the way of few: singular values over `spread` powers of ten."""
    torch.manual_seed(length)
    T = randn(length, length) * 10 ** (-spread * torch.rand(length, 1, dtype=torch.float64))
    direction, weights = randn(length, length), torch.rand(length - 1, dtype=torch.float64)
    measure = lambda T: weights * METRICS[metric](T)  # noqa: E731
    found = {}
    for by_decompositions in (True, False):
        monkeypatch.setattr("ess_kernels.gradients.matrix.few", lambda *_: by_decompositions)  # noqa: B023
        leaf = T.clone().requires_grad_()
        found[by_decompositions] = (
            torch.autograd.grad(measure(leaf).sum(), leaf)[0],
            hessian_times(measure, T, direction),
        )
    for exact, other, close in zip(found[True], found[False], (1e-4, 5e-3), strict=True):
        assert float((other - exact).norm()) <= close * float(exact.norm())


def test_a_second_derivative_that_is_infinite_is_an_error():
    torch.manual_seed(6)
    T = torch.zeros(8, 8, dtype=torch.float64)
    T[4:, :4] = torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.0], dtype=torch.float64))
    direction = randn(8, 8)
    for metric in ("entropy", "nuclear"):
        with pytest.raises(RuntimeError, match=r"second derivative of .* below 1e-10 .* it is infinite"):
            hessian_times(lambda T: METRICS[metric](T, [4]), T, direction)  # noqa: B023
    assert bool(hessian_times(lambda T: soft_ess(T, 1.0, [4]), T, direction).isfinite().all())


@every_metric
@some_kinds
def test_third_derivatives_are_errors(name, metric):
    """Also of a nonlinear function of the metric, whose second derivative is right."""
    make, tensors = SMALL[name]
    tensors = [x.clone().requires_grad_() for x in tensors]
    for bend in (torch.square, torch.sin, lambda y: y):
        assert gradgradcheck(lambda *x: bend(METRICS[metric](make(*x), [3])), tensors, fast_mode=True)  # noqa: B023
        directions = [randn(*x.shape) for x in tensors]
        of = bend(METRICS[metric](make(*tensors), [3])).sum()
        for _ in (1, 2):
            of = sum((x * d).sum() for x, d in zip(torch.autograd.grad(of, tensors, create_graph=True), directions))
        with pytest.raises(RuntimeError, match=r"^a third derivative of .* was asked for"):
            torch.autograd.grad(of, tensors)


def test_third_derivatives_of_torch_func_are_errors():
    along = lambda f: lambda T: torch.func.grad(f)(T).sum()  # noqa: E731
    f = lambda T: soft_ess(T, 1.0, [3]).square().sum()  # noqa: E731
    assert bool(along(along(f))(randn(6, 6)).isfinite())
    with pytest.raises(RuntimeError, match=r"^a third derivative of SoftCount"):
        along(along(along(f)))(randn(6, 6))


@every_metric
def test_a_second_derivative_of_dependent_states_is_an_error(metric):
    q, k, g = base()
    k = k * (torch.arange(N) > 0)
    with pytest.raises(RuntimeError, match="a second derivative"):
        hessian_times(lambda k: METRICS[metric](operators.gla(q, k, g / 16), [16]), k, randn(*k.shape))


# --- torch.func -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch has no batching rule for some factorisations, and says so
@every_metric
@some_kinds
def test_torch_func(name, metric):
    make, (x, *rest) = SMALL[name]
    measure = lambda x: METRICS[metric](make(x, *rest), [1, 3, 4]).sum()  # noqa: E731
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(measure(leaf), leaf)
    assert_close("grad", torch.func.grad(measure)(x), wanted, rtol=1e-9)
    assert_close("vjp", torch.func.vjp(measure, x)[1](torch.ones((), dtype=torch.float64))[0], wanted, rtol=1e-9)
    assert_close("jacrev", torch.func.jacrev(measure)(x), wanted, rtol=1e-9)
    direction = randn(*x.shape)
    twice = torch.func.grad(lambda x: (torch.func.grad(measure)(x) * direction).sum())(x)
    assert_close("twice", twice, hessian_times(measure, x, direction), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("atol", [2.0, 1e-7])
def test_torch_func_of_many_positions_of_a_matrix(atol):
    torch.manual_seed(8)
    T = randn(100, 100) if atol == 2.0 else randn(100, 3) @ randn(3, 100)
    measure = lambda T: soft_ess(T, atol).sum()  # noqa: E731
    leaf = T.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(measure(leaf), leaf)
    assert_close("grad", torch.func.grad(measure)(T), wanted, rtol=1e-9, atol=1e-12)
    if atol == 2.0:
        direction = randn(100, 100)
        twice = torch.func.grad(lambda T: (torch.func.grad(measure)(T) * direction).sum())(T)
        assert_close("twice", twice, hessian_times(measure, T, direction), rtol=1e-7, atol=1e-9)


def test_torch_func_of_packed_rows_and_of_unknown_operators():
    q, k, g = base()
    marks = torch.tensor([0, 12, L])
    measure = lambda q: ek.entropy_ess(operators.gla(q, k, g, cu_seqlens=marks)).sum()  # noqa: E731
    leaf = q.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(measure(leaf), leaf)
    assert_close("grad", torch.func.grad(measure)(q), wanted, rtol=1e-9)
    with pytest.raises(NotImplementedError, match=r"op: torch\.func cannot take the gradient of a Tiles"):
        torch.func.grad(
            lambda T: ek.entropy_ess(
                operators.tiles(lambda heads, a, e: T[None, a:e, :e], length=8, batch_shape=(1,), device="cpu")
            ).sum()
        )(randn(8, 8))
