"""From a call to its operator: no operator is passed on that does not give what the mixer passed on."""

from dataclasses import replace

import pytest
import torch

from ess_kernels import operators
from ess_kernels.capture import MixerCall, Refused, verify
from ess_kernels.capture.call import ATTRIBUTION_ONLY
from ess_kernels.capture.one_hot import NotCausal
from ess_kernels.capture.verify import READS_PADDING, Unverified, capture_error

B, H, L, D = 2, 4, 13, 5


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def causal(*batch, seed=0):
    return randn(*batch, L, L, seed=seed).tril()


def unknown(mask):
    raise Refused("unknown mathematics")


def toy(T, *, closed=None, can_run_again=True, values=None, dtype=torch.float64, **others):
    """A call of a mixer whose matrix is `T` `[B, H, L, L]`, and whose closed form says it is `closed`."""
    values = randn(B, T.shape[1], L, D, dtype=dtype, seed=9) if values is None else values

    def again(values):
        return (T @ values.double().repeat_interleave(T.shape[1] // values.shape[1], 1)).to(values.dtype)

    closed = T if closed is None else closed
    given = {
        "operator": lambda mask: operators.dense(closed, attention_mask=mask),
        "one_hot": again if can_run_again else None,
        "any_width": True,
    }
    return MixerCall("layer", "toy", "module", values=values, output=again(values), **given | others)


# --- closed forms and one-hot values ---------------------------------------------------------------------------------


def test_a_closed_form_that_is_right():
    T = causal(B, H)
    found = verify(toy(T, can_run_again=False))
    assert torch.equal(found.operator.dense(), T)
    assert found.capture_error <= 1e-15
    assert (found.route, found.check, found.remark) == ("module", "independent", "")


def test_what_the_comparison_is_worth_is_handed_on():
    assert verify(toy(causal(B, H), check=ATTRIBUTION_ONLY)).check == "attribution only"


def test_a_closed_form_that_is_wrong_gives_way_to_one_hot_values():
    T = causal(B, H)
    found = verify(toy(T, closed=1.01 * T))
    assert torch.equal(found.operator.dense(), T)
    assert found.route == "module, one-hot"
    assert found.capture_error <= 1e-15
    with pytest.raises(Unverified, match=r"T u differs from .* by 1\.0e-02 of .*largest number") as caught:
        verify(toy(T, closed=1.01 * T, can_run_again=False))
    assert found.remark == f"T was read off by one-hot values: {caught.value}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused("unknown mathematics"), "unknown mathematics"),
        (ValueError("k: expected shape [B, T, H, K]"), "k: expected shape"),
        (TypeError("g: expected float32"), "g: expected float32"),
        (RuntimeError("The size of tensor a (3) must match"), "RuntimeError: The size of tensor a"),
        (KeyError("log_alpha"), "KeyError: 'log_alpha'"),
    ],
)
def test_a_closed_form_that_fails_gives_way_to_one_hot_values(error, reason):
    """Whatever goes wrong is a reason, and ends no model's forward pass."""

    def operator(mask):
        raise error

    T = causal(B, H)
    found = verify(toy(T, operator=operator))
    assert torch.equal(found.operator.dense(), T)
    assert found.remark.startswith(f"T was read off by one-hot values: {reason}")
    with pytest.raises(Refused, match=reason.partition(" [")[0]):
        verify(toy(T, operator=operator, can_run_again=False))


def test_a_mixer_that_fails_when_it_is_called_again():
    def again(values):
        raise RuntimeError("expected contiguous values")

    with pytest.raises(Refused, match=r"expected contiguous values \(closed form: unknown mathematics\)"):
        verify(toy(causal(B, H), operator=unknown, one_hot=again))


def test_both_wrong():
    """A mixer that does something else when it is called again: both reasons are told."""
    T = causal(B, H)
    call = toy(T, closed=1.01 * T, one_hot=lambda values: 0.5 * T @ values)
    expected = r"by 5\.0e-01 of .*largest number \(closed form: unverified: .* by \d\.\de[+-]\d\d of .*largest number\)"
    with pytest.raises(Unverified, match=expected):
        verify(call)


def test_a_mixer_that_is_not_linear():
    T = causal(B, H)
    call = toy(T, operator=unknown, one_hot=lambda values: (T @ values).square())
    with pytest.raises(Refused, match=r"not linear in its values: .* \(closed form: unknown mathematics\)") as caught:
        verify(call)
    assert not isinstance(caught.value, Unverified)


def test_a_mixer_that_sees_the_future():
    T = randn(B, H, L, L)
    with pytest.raises(NotCausal, match=r"not causal: .* \(closed form: unknown mathematics\)"):
        verify(toy(T, operator=unknown))
    runs = []

    def refused(mask):
        raise NotCausal("not causal: T has entries above its diagonal")

    # a closed form that knows as much is not asked by one-hot values again
    with pytest.raises(NotCausal, match=r"^not causal: T has entries above its diagonal$"):
        verify(toy(T, operator=refused, one_hot=runs.append))
    assert not runs


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("can_run_again", [True, False])
def test_outputs_that_are_not_numbers(bad, can_run_again):
    call = toy(causal(B, H), can_run_again=can_run_again)
    call.output[1, 2, 7, 3] = bad
    with pytest.raises(Unverified, match=r"by nan of .*largest number"):
        verify(call)


@pytest.mark.parametrize(
    ("dtype", "passes", "fails"),
    [
        (torch.float64, 5e-4, 2e-3),
        (torch.float32, 5e-4, 2e-3),
        (torch.bfloat16, 2e-2, 1e-1),
        (torch.float16, 2e-2, 1e-1),
    ],
)
def test_how_far_off_an_operator_may_be(dtype, passes, fails):
    T = causal(B, H)
    found = verify(toy(T, closed=(1 + passes) * T, dtype=dtype, can_run_again=False))
    assert found.capture_error <= 1.5 * passes
    with pytest.raises(Unverified):
        verify(toy(T, closed=(1 + fails) * T, dtype=dtype, can_run_again=False))


def test_values_in_low_precision_and_outputs_in_high():
    """The wider bound holds where either was rounded."""
    T = causal(B, H)
    call = toy(T, dtype=torch.bfloat16, closed=1.02 * T, can_run_again=False)
    assert verify(replace(call, output=T @ call.values.double())).capture_error == pytest.approx(0.02)


def test_the_error_is_in_units_of_the_largest_number():
    T = causal(B, H)
    for unit in (1e-30, 1.0, 1e30):
        call = toy(unit * T, can_run_again=False)
        largest = float(call.output.abs().max())
        call.output[0, 0, 3, 2] += 5e-4 * largest
        assert verify(call).capture_error == pytest.approx(5e-4, rel=1e-2)


def test_a_mixer_that_passes_nothing_on():
    T = torch.zeros(B, H, L, L).double()
    assert verify(toy(T)).capture_error == 0.0
    with pytest.raises(Unverified):
        verify(toy(T, closed=T + torch.eye(L).double(), can_run_again=False))


# --- skip, gate, and heads -------------------------------------------------------------------------------------------


def test_a_skip_and_a_gate():
    T, skip, gate = causal(B, H), randn(H, 1, 1, seed=1), randn(B, H, L, D, seed=2)
    call = toy(T)

    def finish(y):
        return (y + skip * call.values) * gate

    passed_on = replace(call, output=finish(call.output), passed_on=finish)
    found = verify(passed_on)
    assert torch.equal(found.operator.dense(), T)  # and they are no part of it
    assert found.capture_error <= 1e-15
    assert verify(replace(passed_on, operator=unknown)).route == "module, one-hot"
    for wrong in (None, lambda y: y * gate, lambda y: y + skip * call.values):
        with pytest.raises(Unverified):
            verify(replace(passed_on, passed_on=wrong))


@pytest.mark.parametrize("value_heads", [1, 2, 4])
def test_heads_that_share_values(value_heads):
    T, values = causal(B, H), randn(B, value_heads, L, D, seed=3)
    call = toy(T, values=values)
    assert call.heads == H
    by_head = call.values_by_head
    assert by_head.shape == (B, H, L, D)
    for head in range(H):
        assert torch.equal(by_head[:, head], values[:, head // (H // value_heads)])
    assert verify(call).capture_error <= 1e-15
    assert torch.equal(verify(replace(call, operator=unknown)).operator.dense(), T)


def test_values_of_every_head_are_not_copied():
    call = toy(causal(B, H))
    assert call.values_by_head is call.values


def test_heads_that_do_not_fit_are_a_reason():
    call = toy(causal(B, H))
    with pytest.raises(Refused):
        verify(replace(call, values=randn(B, 3, L, D), one_hot=None))


# --- padding ---------------------------------------------------------------------------------------------------------

MASK = torch.tensor([[0, 0, 0] + [1] * (L - 3), [1] * (L - 2) + [0, 0]])


def without_padding(T):
    """`T` of tokens alone; rows of padding see themselves."""
    token = MASK.bool()[:, None]
    pairs = token[..., :, None] & token[..., None, :]
    return torch.where(pairs, T, torch.eye(L).double())


@pytest.mark.parametrize("operator", [None, unknown])
def test_padding_is_left_aside(operator):
    """Rows of padding may be passed on as anything."""
    T = without_padding(causal(B, H))
    options = {} if operator is None else {"operator": operator}
    call = toy(T, attention_mask=MASK, **options)
    call.output[0, :, :3], call.output[1, :, L - 2 :] = torch.nan, 1e30
    found = verify(call)
    assert found.capture_error <= 1e-15
    assert found.remark in ("", "T was read off by one-hot values: unknown mathematics")
    expected = T * (MASK[:, None, :, None] * MASK[:, None, None, :])
    assert torch.equal(found.operator.dense(), expected)
    assert torch.equal(found.operator.valid.sum(1), MASK.sum(1) - 1)


def test_errors_at_tokens_count_beside_padding():
    call = toy(without_padding(causal(B, H)), attention_mask=MASK, can_run_again=False)
    call.output[0, 0, 3] += 1
    with pytest.raises(Unverified):
        verify(call)


@pytest.mark.parametrize("operator", [None, unknown])
def test_a_mixer_that_reads_padding_as_tokens(operator):
    T = causal(B, H)
    options = {} if operator is None else {"operator": operator}
    found = verify(toy(T, attention_mask=MASK, **options))
    assert found.remark.startswith(READS_PADDING)
    assert ("one-hot" in found.remark) == ("one-hot" in found.route) == (operator is not None)
    assert torch.equal(found.operator.dense(), T)
    assert bool(found.operator.valid.all())


def test_the_reason_with_padding_is_told_where_there_is_no_operator_without():
    def operator(mask):
        raise Refused("not with padding" if mask is not None else "not at all")

    with pytest.raises(Refused, match=r"^not with padding$"):
        verify(toy(causal(B, H), operator=operator, attention_mask=MASK, can_run_again=False))


def test_a_row_of_padding_alone():
    mask = torch.ones(B, L, dtype=torch.bool)
    call = toy(causal(B, H), attention_mask=mask)
    nothing = replace(call, attention_mask=torch.zeros_like(mask))
    assert capture_error(nothing, operators.dense(causal(B, H))) == 0.0
