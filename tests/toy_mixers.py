"""Small modules that mix over time or do not, and what a trial for mixing finds in them: shared by its tests."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ess_kernels.capture import mixing_modules

LENGTH, WIDTH = 17, 12
REACH = LENGTH - 1  # of a mixer by which every later token hears of the first one


def tried(*arguments):
    """What mixes, and what could not be tried."""
    mixing = mixing_modules(*arguments)
    return mixing.modules, mixing.failed


class Attention(nn.Module):
    """Two heads, between projections; causal unless told otherwise."""

    def __init__(self, is_causal=True, width=WIDTH):
        super().__init__()
        self.projected, self.out, self.is_causal = nn.Linear(width, 3 * width), nn.Linear(width, width), is_causal

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in self.projected(x).chunk(3, -1))
        y = scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.down(self.up(x).relu())


class Block(nn.Module):
    """A mixer and a perceptron, each beside a path that skips it."""

    def __init__(self, mixer):
        super().__init__()
        self.norm, self.mixer, self.perceptron = nn.LayerNorm(WIDTH), mixer, Perceptron()

    def forward(self, x):
        x = x + self.mixer(self.norm(x))
        return x + self.perceptron(x)


class Cumsum(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


class Calling(nn.Module):
    """A module as a function: `function(module, *args, **kwargs)`."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def hidden(rows=1, length=LENGTH, dtype=torch.float32, seed=1):
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def found_in(model, length=LENGTH, **inputs):
    """The modules found, where none has failed and nothing of the model has changed."""
    model.eval()
    inputs = inputs or {"x": hidden(length=length)}
    before = everything_of(model)
    found, failed = tried(model, inputs, length)
    assert failed == {}
    assert everything_of(model) == before
    assert all(name == about.name for name, about in found.items())
    return found


def everything_of(model):
    found = {"random numbers": torch.random.get_rng_state().tolist()}
    for name, module in model.named_modules():
        found[name, "hooks"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found[name, "attributes"] = {key: id(x) for key, x in vars(module).items() if not isinstance(x, dict)}
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = (id(x), x.detach().double().tolist())
    return found
