"""Every featurizer computes what its operator says, at sizes that cross blocks and with gates of every strength."""

import pytest
import torch

from ess_kernels.analysis.featurizers import FEATURIZERS, GLA, GLAS6, LA, S6, SA, WLA, QueriesAndKeys
from ess_kernels.analysis.gated_matrix import BLOCK, gated_matrix
from ess_kernels.capture.product import apply

WIDTH, HEADS = 12, 2


def made(kind, **settings):
    torch.manual_seed(0)
    return FEATURIZERS[kind](WIDTH, HEADS, **settings).double()


def inputs(length, seed=1):
    return torch.randn(2, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def applied(featurizer, x):
    """What the operator makes of the featurizer's own values, laid out as `mix` lays them out."""
    values = featurizer.value(x)
    if isinstance(featurizer, S6):
        return apply(featurizer.operator(x), values.mT[..., None])[..., 0].mT
    return apply(featurizer.operator(x), featurizer.split(values)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("length", [1, 7, BLOCK + 9])
@pytest.mark.parametrize("smeared", [False, True])
@pytest.mark.parametrize("kind", FEATURIZERS)
def test_forward_is_the_operator(kind, smeared, length):
    featurizer, x = made(kind, smeared=smeared), inputs(length)
    if smeared:
        torch.nn.init.normal_(featurizer.smear)
    with torch.no_grad():
        mixed = featurizer.mix(x)
        torch.testing.assert_close(mixed, applied(featurizer, x), rtol=1e-11, atol=1e-12)
        heads = mixed.unflatten(-1, (HEADS, -1))
        heads = heads / (heads.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
        torch.testing.assert_close(featurizer(x), featurizer.out(heads.flatten(2)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", FEATURIZERS)
def test_a_state_of_another_size(kind):
    featurizer, x = made(kind, state=10), inputs(9)
    with torch.no_grad():
        torch.testing.assert_close(featurizer.mix(x), applied(featurizer, x), rtol=1e-11, atol=1e-12)
    if kind != "SA":
        assert featurizer.operator(x).state_size == 10
    assert featurizer.operator(x).batch_shape == ((2, WIDTH) if kind == "S6" else (2, HEADS))


def test_some_channels_of_s6():
    featurizer, x = made("S6"), inputs(9)
    with torch.no_grad():
        assert torch.equal(featurizer.operator(x, channels=3).dense(), featurizer.operator(x).dense()[:, :3])


@pytest.mark.parametrize("kind", FEATURIZERS)
def test_it_is_causal(kind):
    featurizer, x = made(kind, smeared=True), inputs(12)
    changed = x.clone()
    changed[:, 7:] += 1
    with torch.no_grad():
        assert torch.equal(featurizer(x)[:, :7], featurizer(changed)[:, :7])


@pytest.mark.parametrize("kind", FEATURIZERS)
def test_every_parameter_gets_a_gradient(kind):
    featurizer = made(kind, smeared=True)
    featurizer(inputs(9)).square().sum().backward()
    for name, parameter in featurizer.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_smeared_keys_see_the_token_before():
    x = inputs(5)
    featurizer = made("LA", smeared=True)
    with torch.no_grad():
        featurizer.smear.fill_(100.0)  # the blend is then all of the token before
    torch.testing.assert_close(featurizer.key_input(x)[:, 1:], x[:, :-1])
    assert not featurizer.key_input(x)[:, 0].any()
    plain = made("LA")
    assert plain.key_input(x) is x


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_gated_matrix_of_weak_and_strong_gates(strength):
    torch.manual_seed(0)
    length = BLOCK + 20
    q, k = torch.randn(2, 3, length, 4)
    gates = -strength * torch.rand(3, length, 4)
    q, k, gates = (t.requires_grad_() for t in (q, k, gates))
    decay = gates.double().cumsum(-2)
    lag = decay[:, :, None] - decay[:, None]
    lag = lag.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril()[..., None], -torch.inf)
    expected = (q.double()[:, :, None] * k.double()[:, None] * lag.exp()).sum(-1)
    found = gated_matrix(q, k, gates)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn(length, length)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, gates)),
        torch.autograd.grad((expected * weights).sum(), (q, k, gates)),
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_strong_gates_stay_finite_in_float32():
    torch.manual_seed(0)
    featurizer = GLA(WIDTH, HEADS, beta=0.01)
    y = featurizer(inputs(40).float())
    y.sum().backward()
    assert bool(y.isfinite().all()) and bool(featurizer.gate_up.weight.grad.isfinite().all())


def test_first_gates_are_the_papers():
    """WLA starts at `sigmoid(0)^(1/16)`; the gates of GLA-S6 in one head are powers of one another up to the input."""
    featurizer = WLA(WIDTH, HEADS)
    assert float(featurizer.log_gates(inputs(3)).detach().exp().unique()) == pytest.approx(0.5 ** (1 / 16))
    other = GLAS6(WIDTH, HEADS, alpha=10.0)
    x = inputs(3).float()
    ratio = (other.log_gates(x) / other.steps(x)).detach()
    torch.testing.assert_close(ratio[0, 0, 0], -torch.arange(1, 7) / 10.0)


def test_time_steps_at_initialisation():
    torch.manual_seed(0)
    steps = torch.nn.functional.softplus(S6(256, 4).step.bias.detach())
    assert bool(((steps > 0.9e-3) & (steps < 0.11)).all())
    assert not S6(256, 4, step_bias="zero").step.bias.any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LA(10, 3), "heads: expected a number that divides width=10, got 3"),
        (lambda: SA(12, 4), "state: expected an even size for rotary positions, got 3"),
        (lambda: GLA(12, 2, beta=0), "beta: expected a positive finite number, got 0"),
        (lambda: WLA(12, 2, beta=-1.0), "beta: expected a positive finite number"),
        (lambda: GLAS6(12, 2, alpha=float("nan")), "alpha: expected a positive finite number"),
        (lambda: S6(12, 2, step_bias="plain"), "step_bias: expected 'mamba' or 'zero', got 'plain'"),
        (lambda: GLA(12, 2, state=0), "state: expected at least 1, got 0"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_is_no_featurizer():
    with pytest.raises(NotImplementedError):
        QueriesAndKeys(12, 2)(inputs(3).float())
