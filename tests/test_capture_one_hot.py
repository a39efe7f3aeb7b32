"""`T` read off by one-hot values: exactly where a mixer is linear and causal, and not at all where it is not."""

import pytest
import torch
from torch.nn.functional import layer_norm

from ess_kernels.capture import MixerCall, Refused
from ess_kernels.capture import one_hot as reading
from ess_kernels.capture.one_hot import NotCausal, check_linear, read_off, refuse_future


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def causal(*batch, length=11, dtype=torch.float64):
    return randn(*batch, length, length, dtype=dtype).tril()


def by(T):
    """The function `T v` of values whose heads are shared."""

    def function(values):
        return T @ values.repeat_interleave(T.shape[1] // values.shape[1], 1)

    return function


def call_of(function, values, heads=None, any_width=True, attention_mask=None):
    def unknown(mask):
        raise Refused("no closed form")

    output = values.new_zeros(values.shape[0], heads or values.shape[1], *values.shape[2:])
    return MixerCall(
        "layer",
        "toy",
        "module",
        values=values,
        output=output,
        operator=unknown,
        one_hot=function,
        any_width=any_width,
        attention_mask=attention_mask,
    )


# --- what is linear --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("any_width", [True, False])
@pytest.mark.parametrize("channels", [1, 4, 11, 30])
def test_a_linear_mixer_is_its_matrix(any_width, channels):
    """Values narrower than the sequence, of which 4 is no divisor of the length, as wide, and wider."""
    T = causal(2, 3)
    widths = []

    def function(values):
        widths.append(values.shape[-1])
        return by(T)(values)

    assert torch.equal(read_off(call_of(function, randn(2, 3, 11, channels), any_width=any_width)), T)
    # the first four are those of the test for linearity
    assert widths[:4] == [channels] * 4
    assert set(widths[4:]) == ({11} if any_width else {channels})


def test_one_hot_values_are_few_at_a_time(monkeypatch):
    """Where any width may be used, memory is kept to a number of channels."""
    monkeypatch.setattr(reading, "WIDTH", 3)
    T, widths = causal(1, 2), []

    def function(values):
        widths.append(values.shape[-1])
        return by(T)(values)

    assert torch.equal(read_off(call_of(function, randn(1, 2, 11, 5))), T)
    assert widths[4:] == [3, 3, 3, 2]


@pytest.mark.parametrize("heads", [2, 4, 6])
@pytest.mark.parametrize("any_width", [True, False])
def test_heads_that_share_values(heads, any_width):
    T = causal(2, heads)
    values = randn(2, 2, 11, 4)
    assert torch.equal(read_off(call_of(by(T), values, heads, any_width)), T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("channels", [1, 4])
def test_low_precision(dtype, channels):
    """One-hot values are exact in every dtype, and so is what they read."""
    T = causal(2, 3, dtype=dtype)
    found = read_off(call_of(by(T), randn(2, 3, 11, channels, dtype=dtype), any_width=False))
    assert found.dtype == dtype
    assert torch.equal(found, T)


def test_a_mixer_without_effect_is_linear():
    values = randn(1, 2, 11, 3)
    assert not read_off(call_of(torch.zeros_like, values)).any()


# --- what it adds of its own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("any_width", [True, False])
def test_an_offset_is_taken_off(any_width):
    """A term that depends on the token and not on the values is the same for every channel."""
    T, offset = causal(2, 3), randn(2, 3, 11, 1, seed=1)
    values = randn(2, 3, 11, 4)
    assert torch.equal(check_linear(lambda v: T @ v + offset, values), offset.expand(2, 3, 11, 4))
    found = read_off(call_of(lambda v: T @ v + offset, values, any_width=any_width))
    assert torch.allclose(found, T, rtol=0, atol=1e-14)


def test_another_offset_for_every_channel_is_refused():
    T, bias = causal(2, 3), randn(4, seed=1)
    values = randn(2, 3, 11, 4)
    with pytest.raises(Refused, match="adds numbers of its own, another one to every channel"):
        read_off(call_of(lambda v: T @ v + bias, values, any_width=False))


def test_without_an_offset_there_is_nothing_to_take_off():
    assert check_linear(by(causal(2, 3)), randn(2, 3, 11, 4)) is None


# --- what is not linear ----------------------------------------------------------------------------------------------

NOT_LINEAR = {
    "squared": lambda y: y.square(),
    "cubed": lambda y: y**3,
    "softmax over values": lambda y: y.softmax(-1),
    "layer norm over values": lambda y: layer_norm(y, y.shape[-1:]),
    "normalised over time": lambda y: y / y.norm(dim=-2, keepdim=True),
    "rectified": lambda y: y.relu(),
    "absolute": lambda y: y.abs(),
    "hardly curved": lambda y: y + 3e-3 * y.square(),
    "not a number": lambda y: y * torch.nan,
    "noisy": lambda y: y + torch.rand_like(y),
}


@pytest.mark.parametrize("change", NOT_LINEAR.values(), ids=NOT_LINEAR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_mixer_that_is_not_linear_is_refused_with_the_size(change, dtype):
    T = causal(2, 3, dtype=dtype)
    with pytest.raises(Refused, match=r"not linear in its values: additivity is violated by (\d\.\de[+-]\d\d|nan)"):
        read_off(call_of(lambda v: change(T @ v), randn(2, 3, 11, 4, dtype=dtype), any_width=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_curvature_in_low_precision(dtype):
    """Rounding is no curvature; a square is one."""
    T = causal(2, 3, dtype=dtype)
    values = randn(2, 3, 11, 4, dtype=dtype)
    assert check_linear(lambda v: (T.float() @ v.float()).to(dtype), values) is None
    with pytest.raises(Refused, match="not linear"):
        check_linear(lambda v: T @ v + (T @ v).square(), values)


def test_random_numbers_of_the_caller_are_left_alone():
    before = torch.random.get_rng_state()
    read_off(call_of(by(causal(2, 3)), randn(2, 3, 11, 4)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_values_and_outputs_of_the_model_are_left_alone():
    T, values = causal(2, 3), randn(2, 3, 11, 4)
    call = call_of(by(T), values)
    before = values.clone()
    read_off(call)
    assert torch.equal(values, before)
    assert not call.output.any()


# --- what sees the future --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mixer_that_sees_the_future_is_refused(dtype):
    T = causal(2, 3, dtype=dtype)
    T[1, 2, 4, 7] = 0.25
    with pytest.raises(NotCausal, match=r"not causal: T has entries above its diagonal, up to 0\.25"):
        read_off(call_of(by(T), randn(2, 3, 11, 4, dtype=dtype), any_width=False))


def test_rounding_errors_are_no_future():
    for dtype, noise in ((torch.float64, 1e-8), (torch.float32, 1e-8), (torch.bfloat16, 1e-3)):
        T = causal(1, 1, dtype=dtype)
        T = T / T.abs().max() + torch.full_like(T, noise).triu(1)
        assert refuse_future(T, None) is T
        with pytest.raises(NotCausal):
            refuse_future(T + torch.full_like(T, 1e2 * noise).triu(1), None)


def test_what_padding_sees_is_left_aside():
    """Rows of padding may be anything, and so may what tokens have of padding, which is no part of `T`."""
    mask = torch.tensor([[0, 0, 0] + [1] * 8, [1] * 9 + [0, 0]])
    for marks in (mask, mask.bool()):
        T = causal(2, 3)
        T[0, :, :3], T[1, :, :, 9:] = 1.0, 1.0
        values = randn(2, 3, 11, 4)
        assert torch.equal(read_off(call_of(by(T), values, attention_mask=marks)), T)
        with pytest.raises(NotCausal):
            read_off(call_of(by(T), values))
        T[0, 1, 5, 6] = 1e-3  # between tokens
        with pytest.raises(NotCausal, match=r"up to 0\.001"):
            refuse_future(T, marks)


def test_bad_numbers_of_padding_hide_no_future():
    """A softmax over nothing gives rows of NaN; large numbers of padding are no measure of what is small."""
    mask = torch.tensor([[0, 0] + [1] * 9])
    for bad in (torch.nan, torch.inf, 1e9):
        T = causal(1, 2)
        T[:, :, :2] = bad
        assert refuse_future(T, mask) is T
        T[0, 0, 4, 6] = 1e-2
        with pytest.raises(NotCausal, match=r"up to 0\.01"):
            refuse_future(T, mask)


def test_sizes():
    assert refuse_future(torch.zeros(2, 3, 1, 1), None).shape == (2, 3, 1, 1)
    assert refuse_future(torch.zeros(2, 3, 0, 0), None).shape == (2, 3, 0, 0)
    T = causal(1, 1, length=1)
    assert torch.equal(read_off(call_of(by(T), randn(1, 1, 1, 1))), T)


def test_a_mixer_that_cannot_be_called_again():
    with pytest.raises(Refused, match="no closed form, and the mixer cannot be called again"):
        read_off(call_of(None, randn(1, 1, 3, 2)))
