"""Modules that mix over time are found by trying them, each for what it does itself."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from toy_mixers import LENGTH, REACH, WIDTH, Attention, Block, Calling, Cumsum, Perceptron, found_in, hidden, tried


@pytest.fixture(autouse=True)
def same_weights_every_time():
    torch.manual_seed(0)


def test_attention_in_a_residual_block():
    """The attention, and neither the block around it nor the parts of it that work by token."""
    model = nn.Sequential(OrderedDict(first=Block(Attention()), second=Block(Attention())))
    found = found_in(model, input=hidden())
    assert set(found) == {"first.mixer", "second.mixer"}
    about = found["first.mixer"]
    assert (about.kind, about.reach, about.sees_future, about.complete) == ("Attention", REACH, False, True)


def test_a_block_that_shifts_tokens_itself():
    """Both are found: the shift is the block's own, and reaches one token."""

    def shifting(block, x):
        shifted = pad(x, (0, 0, 1, 0))[:, :-1]
        return x + block.mixer(x) + 0.5 * shifted

    model = nn.Sequential(Calling(shifting, mixer=Attention()), Perceptron())
    found = found_in(model, input=hidden())
    assert set(found) == {"0", "0.mixer"}
    assert found["0.mixer"].reach == REACH
    assert (found["0"].reach, found["0"].complete) == (1, False)


@pytest.mark.parametrize("taps", [2, 4])
def test_a_depthwise_convolution(taps):
    """Padded by the module that has it, or by itself."""

    def convolved(module, x):
        return module.convolution(pad(x.transpose(1, 2), (taps - 1, 0))).transpose(1, 2)

    def padded(module, x):
        return module.convolution(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)

    for function, padding in ((convolved, 0), (padded, taps - 1)):
        convolution = nn.Conv1d(WIDTH, WIDTH, taps, groups=WIDTH, padding=padding)
        found = found_in(nn.Sequential(Calling(function, convolution=convolution)), input=hidden())
        assert set(found) == {"0"}
        assert (found["0"].reach, found["0"].complete, found["0"].sees_future) == (taps - 1, False, False)


def test_a_dilated_convolution_reaches_further():
    convolution = nn.Conv1d(WIDTH, WIDTH, 2, dilation=5)

    def convolved(module, x):
        return module.convolution(pad(x.transpose(1, 2), (5, 0))).transpose(1, 2)

    assert found_in(Calling(convolved, convolution=convolution), x=hidden())[""].reach == 5


def test_a_recurrence_of_torch():
    found = found_in(
        nn.Sequential(Calling(lambda module, x: module.gru(x)[0], gru=nn.GRU(WIDTH, 8, batch_first=True))),
        input=hidden(),
    )
    assert set(found) == {"0.gru"}
    assert found["0.gru"].kind == "GRU"
    assert found["0.gru"].reach == REACH


@pytest.mark.parametrize(
    ("function", "reach", "sees_future", "complete"),
    [
        (lambda module, x: x.cumsum(1), REACH, False, True),
        (lambda module, x: x.flip(1).cumsum(1).flip(1), 0, True, False),
        (lambda module, x: x - x.mean(1, keepdim=True), REACH, True, True),
        (lambda module, x: x.roll(-1, 1), REACH, True, True),  # the first token comes to the last one
        (lambda module, x: pad(x, (0, 0, 2, 0))[:, :-2], 2, False, False),  # its own token has no part in it
    ],
    ids=["sum", "backwards", "mean", "next", "delay"],
)
def test_functions_of_time(function, reach, sees_future, complete):
    about = found_in(Calling(function))[""]
    assert (about.kind, about.reach, about.sees_future, about.complete) == ("Calling", reach, sees_future, complete)


def test_a_bidirectional_module():
    found = found_in(nn.Sequential(Block(Attention(is_causal=False))), input=hidden())
    assert found["0.mixer"].sees_future
    assert set(found) == {"0.mixer"}


class Experts(nn.Module):
    """Every token goes to the two experts that it chooses."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList([Perceptron() for _ in range(4)])

    def forward(self, x):
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(-1).topk(2, -1)
        y = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == number)
            y.index_add_(0, token, expert(tokens[token]) * weights[token, rank, None])
        return y.view_as(x)


class RMSNorm(nn.Module):
    def forward(self, x):
        return x * x.square().mean(-1, keepdim=True).rsqrt()


@pytest.mark.parametrize("part", [Perceptron(), RMSNorm(), Experts(), nn.BatchNorm1d(LENGTH), nn.Softmax(-1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_works_by_token_is_not_found(part, dtype):
    model = nn.Sequential(part, Block(nn.Identity())).to(dtype)
    assert found_in(model, input=hidden(dtype=dtype)) == {}


@pytest.mark.parametrize("mixer", [Attention, Cumsum])
def test_bfloat16(mixer):
    model = nn.Sequential(Block(mixer()), Block(mixer())).bfloat16()
    assert set(found_in(model, input=hidden(dtype=torch.bfloat16))) == {"0.mixer", "1.mixer"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_layers_do_not_mix():
    """Tokens share the scale to which such a layer rounds all of them; that is no mixing."""
    model = nn.Sequential(Block(Attention()), Perceptron()).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found, failed = tried(quantised, {"input": hidden()}, LENGTH)
    assert set(found) == {"0.mixer"}
    assert failed == {}


# --- how modules are called ------------------------------------------------------------------------------------------


def test_a_module_called_twice():
    """One entry; of the calls the one that reaches furthest, and the future if one of them sees it."""
    attention = Attention()

    def twice(model, x):
        return x + attention(x + attention(x))

    assert set(found_in(Calling(twice, attention=attention))) == {"attention"}

    def shifted(module, x, by):
        return x.roll(by, 1)

    shift = Calling(shifted)
    found = found_in(Calling(lambda model, x: model.shift(model.shift(x, 3), -1), shift=shift))
    assert set(found) == {"shift"}
    # the first token comes to the last one, so that both calls are seen
    assert (found["shift"].reach, found["shift"].sees_future) == (REACH, True)


def test_a_module_shared_by_two_blocks():
    attention = Attention()
    found = found_in(nn.Sequential(Block(attention), Block(attention)), input=hidden())
    assert set(found) == {"0.mixer"}


def test_mixers_in_a_mixer():
    """A module is held still with everything that mixes inside of it, at any depth."""
    inner = Calling(lambda module, x: module.attention(x) + x, attention=Attention())
    outer = Calling(lambda module, x: module.inner(x).cumsum(1), inner=nn.Sequential(inner, Perceptron()))
    assert set(found_in(nn.Sequential(outer, Perceptron()), input=hidden())) == {"0", "0.inner.0.attention"}


class Result(NamedTuple):
    weights: torch.Tensor | None
    output: torch.Tensor
    count: int


def cumsum_of(value):
    return value.cumsum(1)


@pytest.mark.parametrize(
    ("give", "take"),
    [
        (lambda x: ((), {"hidden_states": x}), lambda hidden_states: hidden_states),
        (lambda x: (((x, None),), {}), lambda pair: pair[0]),
        (lambda x: (([None, (x, 3)],), {}), lambda nested: nested[1][0]),
        (lambda x: (({"states": {"hidden": x}},), {}), lambda given: given["states"]["hidden"]),
        (lambda x: ((OrderedDict(hidden=x),), {}), lambda given: given["hidden"]),
        (lambda x: ((), {"given": Result(None, x, 3)}), lambda given: given.output),
        (lambda x: ((x, torch.ones(LENGTH, LENGTH).tril()), {}), lambda x, mask: x),
    ],
    ids=["keyword", "tuple", "nested list", "nested dict", "ordered dict", "named tuple", "with a mask"],
)
def test_inputs_of_every_form(give, take):
    mixer = Calling(lambda module, *args, **kwargs: cumsum_of(take(*args, **kwargs)))

    def model(outer, x):
        args, kwargs = give(x)
        return outer.mixer(*args, **kwargs) + x

    assert set(found_in(Calling(model, mixer=mixer))) == {"mixer"}


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda y: (y, None), lambda out: out[0]),
        (lambda y: [None, y], lambda out: out[1]),
        (lambda y: Result(None, y, 3), lambda out: out.output),
        (lambda y: {"hidden": y, "cache": None}, lambda out: out["hidden"]),
        (lambda y: OrderedDict(hidden=y), lambda out: out["hidden"]),
        (lambda y: ((y,), 3), lambda out: out[0][0]),
        (lambda y: {"outputs": (y, None)}, lambda out: out["outputs"][0]),
        (lambda y: (torch.zeros_like(y), y), lambda out: out[1]),  # not only the first one
    ],
    ids=["tuple", "list", "named tuple", "dict", "ordered dict", "nested tuple", "tuple in a dict", "second"],
)
def test_outputs_of_every_form(wrap, unwrap):
    """The module is found, and held still for the one around it."""
    mixer = Calling(lambda module, x: wrap(x.cumsum(1)))
    block = Calling(lambda module, x: x + unwrap(module.mixer(x)), mixer=mixer)
    assert set(found_in(nn.Sequential(block, Perceptron()), input=hidden())) == {"0.mixer"}


@pytest.mark.parametrize("second", ["values", "keyword"])
def test_only_the_second_argument_is_mixed(second):
    mixer = Calling(lambda module, x, values: x + values.cumsum(1))

    def model(outer, x):
        return outer.mixer(x, 2 * x) if second == "values" else outer.mixer(x, values=2 * x)

    assert set(found_in(Calling(model, mixer=mixer))) == {"mixer"}


def test_one_tensor_as_several_arguments():
    mixer = Calling(lambda module, q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True))
    assert set(found_in(Calling(lambda model, x: model.mixer(x, x, v=x), mixer=mixer))) == {"mixer"}


def test_what_a_module_keeps_of_the_first_run_is_not_read_again():
    """A cache, which holds the keys of all tokens already, is taken away for the second run."""

    class ToyCache:
        def __init__(self):
            self.keys = []

    def attending(module, x, cache):
        keys = x
        if cache is not None:
            cache.keys.append(x)
            keys = torch.cat(cache.keys, 1)
        return (x @ keys.mT).tril().softmax(-1) @ keys

    cache = ToyCache()
    model = Calling(lambda model, x, cache: model.mixer(x, cache), mixer=Calling(attending))
    assert set(found_in(model, x=hidden(), cache=cache)) == {"mixer"}
    assert len(cache.keys) == 1


def test_time_on_the_first_axis():
    model = nn.Sequential(Calling(lambda module, x: x.cumsum(0)), Perceptron(), Calling(lambda module, x: x.sin()))
    assert set(found_in(model, input=hidden().transpose(0, 1))) == {"0"}


@pytest.mark.parametrize("length", [2, 3, 5])
def test_few_tokens(length):
    assert set(found_in(nn.Sequential(Block(Attention())), length, input=hidden(length=length))) == {"0.mixer"}
