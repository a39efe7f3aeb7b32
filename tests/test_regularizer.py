"""Regularisers: what they add up, at which positions, with which gradients."""

import pytest
import torch
from torch.nn.functional import logsigmoid

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.analysis.regularizer import ESSRegularizer, spread, transition_distance
from ess_kernels.metrics import nuclear_norm, soft_ess
from ess_kernels.testing import assert_close
from ess_kernels.testing.cases import randn


def some(batch=2, length=20, heads=2, n=3):
    torch.manual_seed(length)
    shape = (batch, length, heads, n)
    return randn(*shape), randn(*shape), logsigmoid(randn(*shape))


# --- ESSRegularizer ---------------------------------------------------------------------------------------------------


def test_positions_are_spread_evenly_without_the_ends():
    assert spread(3, 64) == [16, 32, 48]
    assert spread(4, 20) == [4, 8, 12, 16]
    assert spread(9, 4) == [1, 2, 3]
    assert spread(5, 1) == [] and spread(5, 0) == []


@pytest.mark.parametrize(
    "metric, measure",
    [("entropy", ek.entropy_ess), ("nuclear", nuclear_norm), ("soft", lambda op, at: soft_ess(op, 0.5, at))],
)
def test_the_mean_of_a_metric(metric, measure):
    op = operators.gla(*some())
    atol = 0.5 if metric == "soft" else None
    assert_close("mean", ESSRegularizer(metric, atol)(op), measure(op, [4, 8, 12, 16]).mean())
    assert_close("mean", ESSRegularizer(metric, atol, positions=[7, 3])(op), measure(op, [7, 3]).mean())


def test_a_list_of_operators_has_the_mean_of_theirs():
    ops = [operators.gla(*some()), operators.dense(randn(3, 9, 9))]
    reg = ESSRegularizer("nuclear")
    assert_close("mean", reg(ops), (reg(ops[0]) + reg(ops[1])) / 2)


def test_limits():
    op = operators.gla(*some())
    sizes = ek.entropy_ess(op, spread(4, 20))
    low, high = float(sizes.quantile(0.3)), float(sizes.quantile(0.6))
    assert_close("target", ESSRegularizer("entropy", target=2.0)(op), (sizes - 2.0).square().mean())
    lacking, beyond = (low - sizes).clamp_min(0).mean(), (sizes - high).clamp_min(0).mean()
    assert_close("floor", ESSRegularizer("entropy", floor=low)(op), lacking)
    assert_close("ceiling", ESSRegularizer("entropy", ceiling=high)(op), beyond)
    assert_close("both", ESSRegularizer("entropy", floor=low, ceiling=high)(op), lacking + beyond)


def test_a_step_against_the_gradient_lowers_the_value():
    q, k, g = some()
    for reg in (ESSRegularizer("soft", 0.3), ESSRegularizer("entropy"), ESSRegularizer("nuclear", target=1.0)):
        k = k.detach().requires_grad_()
        value = reg(operators.gla(q, k, g))
        (gradient,) = torch.autograd.grad(value, k)
        with torch.no_grad():
            assert reg(operators.gla(q, k - 1e-3 * gradient / gradient.norm(), g)) < value


@pytest.mark.parametrize("metric", ["soft", "entropy", "nuclear"])
def test_packed_sequences_count_alike_and_padding_not_at_all(metric):
    q, k, g = some(batch=1, length=30)
    reg = ESSRegularizer(metric, 0.5 if metric == "soft" else None, positions=3)
    packed = operators.gla(q, k, g, cu_seqlens=torch.tensor([0, 1, 12, 30]))
    apart = [reg(operators.gla(*(x[:, a:e] for x in (q, k, g)))) for a, e in ((1, 12), (12, 30))]
    assert_close("packed", reg(packed), (apart[0] + apart[1]) / 2)
    padded = [torch.cat([x, torch.full_like(x, torch.nan)], 1) for x in (q, k, g)]
    mask = torch.arange(60)[None] < 30
    assert_close("padded", reg(operators.gla(*padded, attention_mask=mask)), reg(operators.gla(q, k, g)))


def test_listed_positions_of_packed_rows():
    q, k, g = some(batch=2, length=20)
    mask = torch.arange(20) < torch.tensor([[20], [8]])
    op = operators.gla(q, k, g, attention_mask=mask)
    sizes = ek.entropy_ess(op, [5, 12])
    expected = torch.cat([sizes[0].flatten(), sizes[1, :, 0]]).mean()
    assert_close("mean", ESSRegularizer("entropy", positions=[5, 12])(op), expected)


def test_no_position_costs_nothing():
    assert float(ESSRegularizer("entropy")(torch.zeros(1, 1))) == 0
    assert float(ESSRegularizer("entropy", positions=[])(torch.eye(5))) == 0


def test_two_lines_in_a_training_loop():
    torch.manual_seed(0)
    layer, reg = torch.nn.Linear(8, 24), ESSRegularizer("nuclear")
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    u, values = torch.randn(2, 16, 8), []
    for _ in range(4):
        q, k, g = layer(u).unflatten(-1, (1, 24)).chunk(3, -1)
        value = reg(operators.gla(q, k, logsigmoid(g)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values == sorted(values, reverse=True) and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("spectral",), "metric: expected one of 'soft', 'entropy', 'nuclear', got 'spectral'"),
        (("soft",), "atol: expected a positive number for metric='soft', got None"),
        (("soft", -1.0), "atol: expected a positive finite number, got -1.0"),
        (("entropy", 0.1), "atol: expected None for metric='entropy', got 0.1"),
        (("entropy", None, 2.0, 1.0), "target: expected None beside a floor or a ceiling, got 2.0"),
        (("entropy", None, None, 3.0, 1.0), "floor: expected at most the ceiling 1.0, got 3.0"),
        (("entropy", None, float("nan")), "target: expected a finite number, got nan"),
        (("entropy", None, None, None, None, 0), "positions: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        ESSRegularizer(*arguments)


def test_what_is_no_operator():
    with pytest.raises(TypeError, match="op: expected an operator or a tensor"):
        ESSRegularizer("entropy")([3])
    with pytest.raises(ValueError, match="op: expected an operator or a list of them, got an empty list"):
        ESSRegularizer("entropy")([])


# --- transition_distance ----------------------------------------------------------------------------------------------


def by_matrices(op):
    tokens = op.tokens(op.all_heads())
    apart = tokens.matrices() - torch.eye(op.state_size, dtype=torch.float64)
    return apart.square().sum((-2, -1)).mean(1).sqrt().reshape(op.batch_shape)


def families():
    q, k, g = some()
    k = torch.nn.functional.normalize(k, dim=-1)
    beta = torch.rand(2, 20, 2, dtype=torch.float64)
    A = randn(2, 20, 3, 3) / 3
    return {
        "gla": operators.gla(q, k, g),
        "delta rule": operators.delta_rule(q, k, beta),
        "kda": operators.kda(q, k, g=g, beta=beta),
        "matrices": operators.recurrence(A, randn(2, 20, 3), randn(2, 20, 3), diagonal=False),
        "constant": operators.wla(q, k, g[0, 0]),
    }


def test_distance_of_every_kind_of_transitions():
    for name, op in families().items():
        assert_close(name, transition_distance(op), by_matrices(op))


def test_a_constant_transition_has_its_own_norm():
    q, k, g = some()
    distance = transition_distance(operators.wla(q, k, g[0, 0]))
    assert_close("norm", distance, (1 - g[0, 0].exp()).norm(dim=-1).expand(2, 2))


def test_distance_of_packed_rows():
    q, k, g = some(batch=1)
    packed = operators.gla(q, k, g, cu_seqlens=torch.tensor([0, 5, 20]))
    assert_close("packed", transition_distance(packed), transition_distance(operators.gla(q, k, g)))
    mask = torch.arange(20)[None] < 12
    padded = operators.gla(q, k, g, attention_mask=mask)
    alone = operators.gla(*(x[:, :12] for x in (q, k, g)))
    assert_close("padded", transition_distance(padded), transition_distance(alone))


def test_gradient_of_the_distance():
    q, k, g = some()
    g.requires_grad_()
    assert torch.autograd.gradcheck(lambda g: transition_distance(operators.gla(q, k, g)), (g,), fast_mode=True)
    zero = torch.zeros_like(g).requires_grad_()
    distance = transition_distance(operators.gla(q, k, zero))
    (gradient,) = torch.autograd.grad(distance.sum(), zero)
    assert bool((distance == 0).all()) and bool((gradient == 0).all())


def complex_transitions(kind):
    """An operator and its transitions as complex numbers `[..., L, n]`."""
    torch.manual_seed(7)
    A, B, C = torch.randn(3, 2, 20, 3, dtype=torch.complex128)
    if kind == "recurrence":
        return operators.recurrence(A, B, C, diagonal=True), A
    if kind == "constant":
        return operators.recurrence(A[:, 0], B[:, 0], C[:, 0], diagonal=True, length=20), A[:, :1].expand(-1, 20, -1)
    if kind == "complex reads only":
        return operators.recurrence(A.real.contiguous(), B, C, diagonal=True), A.real.to(A.dtype)
    if kind == "s4d":
        step, rate = randn(2), randn(2, 3)
        op = operators.s4d(step, rate, A[:, 0].imag, C[:, 0], 20)
        exact = (step.exp()[:, None] * torch.complex(-rate.exp(), A[:, 0].imag)).exp()
        return op, exact[:, None].expand(-1, 20, -1)
    delta, rates = torch.rand(2, 2, 20, dtype=torch.float64), torch.complex(-A[:, 0].real.abs(), 9 * A[:, 0].imag)
    op = operators.selective_scan(delta, rates, B[:, 0], C[:, 0])
    return op, (delta[..., None] * rates[:, None]).exp()


KINDS = ["recurrence", "constant", "complex reads only", "s4d", "selective scan"]


@pytest.mark.parametrize("kind", KINDS)
def test_complex_transitions_count_as_real_ones_of_twice_as_many_numbers(kind):
    op, A = complex_transitions(kind)
    expected = (2 * (A - 1).abs().square().sum(-1).mean(-1)).sqrt()
    assert_close("distance", transition_distance(op), expected.expand(op.batch_shape))


def test_a_state_that_turns_does_something():
    one = torch.ones(1, 5, 2, dtype=torch.float64)
    real = transition_distance(operators.recurrence(-one, one, one, diagonal=True))
    turning = operators.recurrence(-one.to(torch.complex128), one, one, diagonal=True)
    assert_close("half a turn", transition_distance(turning), 2**0.5 * real)
    assert float(transition_distance(operators.recurrence(one.to(torch.complex128), one, one, diagonal=True))) == 0


def test_gradient_of_the_distance_of_complex_transitions():
    A, B, C = torch.randn(3, 2, 6, 2, dtype=torch.complex128)
    A[0, 0], A[1] = 0, 1
    A.requires_grad_()
    (gradient,) = torch.autograd.grad(transition_distance(operators.recurrence(A, B, C, diagonal=True)).sum(), A)
    assert bool(gradient.isfinite().all()) and bool((gradient[1] == 0).all()) and bool((gradient[0, 0] != 0).all())
    first = A[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda A: transition_distance(operators.recurrence(A, B[:1], C[:1], diagonal=True)), (first,)
    )
    rates = torch.complex(-torch.rand(2, 2, dtype=torch.float64), randn(2, 2)).requires_grad_()
    delta = torch.rand(1, 2, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *x: transition_distance(operators.selective_scan(*x, B[0, :2], C[0, :2])), (delta, rates)
    )


def test_distance_of_packed_and_summed_complex_transitions():
    A, B, C = torch.randn(3, 1, 20, 3, dtype=torch.complex128)
    whole = operators.recurrence(A, B, C, diagonal=True)
    packed = operators.recurrence(A, B, C, diagonal=True, cu_seqlens=torch.tensor([0, 5, 20]))
    assert_close("packed", transition_distance(packed), transition_distance(whole))
    both = operators.sum_of(whole, whole, weights=(0.3, 2.0))
    assert_close("sum", transition_distance(both), 2**0.5 * transition_distance(whole))


def mamba3(pairs):
    torch.manual_seed(pairs)
    steps = {name: -torch.rand(1, 2, 9, dtype=torch.float64) for name in ("ADT", "DT", "Trap")}
    bias = {name: randn(2, 4) for name in ("Q_bias", "K_bias")}
    return operators.mamba3(randn(1, 9, 1, 4), randn(1, 9, 1, 4), **steps, **bias, Angles=randn(1, 9, 2, pairs))


def test_transitions_in_a_frame_that_turns_are_refused():
    turning, still = mamba3(2), mamba3(0)
    assert_close("no angles", transition_distance(still), by_matrices(still))
    for op in (turning, operators.sum_of(still, turning, weights=(1.0, 1.0))):
        with pytest.raises(TypeError, match="op: expected transitions that are known as they are, got an operator"):
            transition_distance(op)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["q", "k", "g"])
def test_heads_with_bad_data_have_no_distance_and_no_part_in_gradients(place, bad):
    given = dict(zip("qkg", some(), strict=True))
    expected = transition_distance(operators.gla(**given))
    given[place][1, 3, 0, 2] = bad
    given["g"].requires_grad_()
    distance = transition_distance(operators.gla(**given))
    assert bool(distance[1, 0].isnan())
    others = torch.tensor([[True, True], [False, True]])
    assert torch.equal(distance[others], expected[others])
    (gradient,) = torch.autograd.grad(distance[0, 0], given["g"])
    assert bool(gradient.isfinite().all()) and bool((gradient[1, :, 0] == 0).all())
    padded = operators.gla(**given, attention_mask=torch.arange(20) < torch.tensor([[20], [8]]))
    distance = transition_distance(padded)
    assert bool(distance[1, 0].isnan()) and torch.equal(distance[0], expected[0])
    assert bool(torch.autograd.grad(distance[0, 0], given["g"])[0].isfinite().all())


def test_heads_that_are_all_bad():
    q, k, g = some()
    assert bool(transition_distance(operators.gla(q * torch.nan, k, g)).isnan().all())
    assert bool((transition_distance(operators.gla(q, k, g - torch.inf)) == 3**0.5).all())


def test_the_distance_needs_transitions():
    for op in (operators.dense(torch.eye(4)), torch.eye(4)):
        with pytest.raises(TypeError, match="op: expected an operator with a finite state for every token, got"):
            transition_distance(op)


def test_positions_are_kept_and_checked():
    torch.manual_seed(0)
    op = ek.operators.linear_attention(*torch.randn(2, 1, 16, 2, 4))
    regularizer = ek.ESSRegularizer("nuclear", positions=(i for i in (3, 5)))
    assert regularizer(op) == regularizer(op) > 0
    for wrong in ([2.7], torch.tensor([2.7]), [True], torch.tensor([[3]])):
        with pytest.raises((TypeError, ValueError), match="positions"):
            ek.ESSRegularizer("nuclear", positions=wrong)
    for wrong in ({"a": op}, "ab"):
        with pytest.raises(TypeError, match="op: expected an operator or a list of them"):
            ek.ESSRegularizer("nuclear")(wrong)
