"""A trial for mixing leaves the model and the caller's random numbers as they were."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from toy_mixers import LENGTH, WIDTH, Attention, Block, Calling, everything_of, found_in, hidden, tried


@pytest.fixture(autouse=True)
def same_weights_every_time():
    torch.manual_seed(0)


class Recurrent(nn.Module):
    """Goes on from the state in which the last call has left it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("kept", torch.zeros(1, WIDTH))
        self.state = None
        if how == "attribute in place":
            self.state = torch.zeros(1, WIDTH)

    def forward(self, x):
        before = self.kept if self.how.startswith("buffer") else self.state
        y = x.cumsum(1) if before is None else before[:, None] + x.cumsum(1)
        if self.how == "attribute":
            self.state = y[:, -1]
        elif self.how == "attribute in place":
            self.state.copy_(y[:, -1])
        elif self.how == "new attribute":
            self.last = y[:, -1]
        elif self.how == "buffer":
            self.kept = y[:, -1]
        else:
            self.kept.copy_(y[:, -1])
        return y


@pytest.mark.parametrize("how", ["attribute", "attribute in place", "new attribute", "buffer", "buffer in place"])
def test_a_recurrent_state_is_left_as_it_was(how):
    """And no call of the trial starts from the state of another one."""
    inner = Recurrent(how)
    model = nn.Sequential(Block(inner), Block(Attention())).eval()
    before = everything_of(model)
    values = None if inner.state is None else inner.state.clone()
    found, failed = tried(model, {"input": hidden()}, LENGTH)
    assert (set(found), failed) == ({"0.mixer", "1.mixer"}, {})
    assert everything_of(model) == before
    assert inner.state is None if values is None else torch.equal(inner.state, values)
    assert not hasattr(inner, "last")


def test_numbers_of_the_model_do_not_change():
    seen = []
    model = nn.Sequential(Block(Attention()), Calling(lambda module, x: seen.append(x) or x)).eval()
    x = hidden()
    with torch.no_grad():
        plain = model[0](x)
    given = x.clone()
    tried(model, {"input": x}, LENGTH)
    assert torch.equal(seen[0], plain)
    assert torch.equal(x, given)
    assert not seen[0].requires_grad


def test_modules_that_change_their_arguments_in_place():
    def in_place(module, x):
        x.add_(1)
        return x.cumsum(1)

    x = hidden()
    model = Calling(lambda model, x: x + model.mixer(x.clone()), mixer=Calling(in_place)).eval()
    found, failed = tried(model, {"x": x}, LENGTH)
    assert (set(found), failed) == ({"mixer"}, {})


def test_random_numbers_of_the_caller_are_left_alone():
    model = Calling(lambda module, x: x.cumsum(1) + torch.rand(1))
    before = torch.random.get_rng_state()
    tried(model, {"x": hidden()}, LENGTH)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_module_that_fails_when_it_runs_again():
    """It is told apart from those that do not mix; the others are found all the same."""

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.ran = []

        def forward(self, x):
            if self.ran:
                raise RuntimeError("buffers are freed")
            self.ran.append(True)
            return x.cumsum(1)

    model = nn.Sequential(OrderedDict(first=Block(Attention()), second=Once(), third=Block(Attention()))).eval()
    found, failed = tried(model, {"input": hidden()}, LENGTH)
    assert set(found) == {"first.mixer", "third.mixer"}
    assert failed["second"] == "RuntimeError: buffers are freed"
    assert everything_of(model)["second", "hooks"] == 0


def test_an_exception_of_the_model_leaves_no_hooks():
    class Stop(Exception):
        pass

    def stop(module, x):
        raise Stop

    model = nn.Sequential(Block(Attention()), Calling(stop)).eval()
    before = everything_of(model)
    with pytest.raises(Stop):
        tried(model, {"input": hidden()}, LENGTH)
    assert everything_of(model) == before
    assert set(found_in(model[0], x=hidden())) == {"mixer"}
