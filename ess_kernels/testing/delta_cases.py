"""Delta rules that are hard for some part of the engine: keys repeat, gates close, states empty themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import operators as ops
from ..operators import Operator
from .registry import INF, case, powers, rand, randn

LENGTH, SIZE = 67, 12


def _unit(*shape: int) -> Tensor:
    return normalize(randn(*shape), dim=-1)


def _kda(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[], Operator]:
    """KDA of random unit keys with weak gates, with some of its inputs changed."""

    def build() -> Operator:
        shape = (1, LENGTH, 2, SIZE)
        inputs = {"q": _unit(*shape), "k": _unit(*shape), "g": -0.05 * rand(*shape), "beta": rand(*shape[:3])}
        inputs |= change(inputs)
        return ops.kda(inputs["q"], inputs["k"], g=inputs["g"], beta=inputs["beta"], scale=1.0)

    return build


def _one_key(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["k"][:, :1].expand_as(inputs["k"])


def _step(inputs: dict[str, Tensor], beta: float) -> Tensor:
    return torch.full_like(inputs["beta"], beta)


def _every(x: Tensor, step: int, value: float) -> Tensor:
    x = x.clone()
    x[:, ::step] = value
    return x


def _close(inputs: dict[str, Tensor]) -> Tensor:
    return normalize(_one_key(inputs) + 1e-3 * inputs["k"], dim=-1)


def _axes(inputs: dict[str, Tensor]) -> Tensor:
    """Unit vectors along the coordinates, in turn."""
    one = torch.eye(SIZE, dtype=torch.float64)
    return one[torch.arange(LENGTH) % SIZE][None, :, None].expand_as(inputs["k"])


for _name, _change in {
    "weak decay": lambda x: {},
    "no decay": lambda x: {"g": 0 * x["g"]},
    "strong decay": lambda x: {"g": x["g"] - 20.7},
    "closed gates": lambda x: {"g": x["g"].masked_fill(torch.rand(x["g"].shape) < 0.1, -INF)},
    "documents": lambda x: {"g": _every(x["g"], 13, -INF)},
    "decay by channel": lambda x: {"g": -powers(-4, 1.5, SIZE).expand(x["g"].shape)},
    "steps of two": lambda x: {"g": 0 * x["g"], "beta": _step(x, 2.0)},
    "steps of two, one key": lambda x: {"g": 0 * x["g"], "k": _one_key(x), "beta": _step(x, 2.0)},
    "steps of one, close keys": lambda x: {"g": 0 * x["g"], "k": _close(x), "beta": _step(x, 1.0)},
    "steps of 1.9, close keys": lambda x: {"g": 0 * x["g"], "k": _close(x), "beta": _step(x, 1.9)},
    "five keys": lambda x: {"k": x["k"][:, torch.arange(LENGTH) % 5]},
    "orthonormal keys": lambda x: {"k": _axes(x)},
    "a step of zero": lambda x: {"beta": _every(x["beta"], 9, 0.0)},
    "steps of zero": lambda x: {"beta": 0 * x["beta"]},
    "zero queries": lambda x: {"q": _every(x["q"], 3, 0.0)},
    "dead coordinates": lambda x: {"k": normalize(x["k"] * (torch.arange(SIZE) % 3 > 0), dim=-1)},
    "skewed reads": lambda x: {"q": x["q"] * powers(-6, 6, SIZE)},
    "tiny": lambda x: {"q": 1e-120 * x["q"]},
    "huge": lambda x: {"q": 1e100 * x["q"]},
}.items():
    case(f"kda: {_name}", LENGTH, SIZE, kind="rank one")(_kda(_change))


for _L, _n in [(1, 4), (2, 4), (3, 4), (40, 1), (64, 8), (47, 25), (96, 33), (33, 40)]:

    @case(f"delta_rule: length {_L}, state {_n}", _L, _n, kind="rank one")
    def _(length: int = _L, n: int = _n) -> Operator:
        return ops.delta_rule(_unit(1, length, 2, n), _unit(1, length, 2, n), 2 * rand(1, length, 2))


@case("gated_delta_rule: value heads", 61, 9, kind="rank one")
def _() -> Operator:
    g, beta = -0.1 * rand(1, 61, 4), 2 * rand(1, 61, 4)
    return ops.gated_delta_rule(_unit(1, 61, 2, 9), _unit(1, 61, 2, 9), g=g, beta=beta)


@case("rwkv7: as layers have it", 70, 10, kind="rank one")
def _() -> Operator:
    shape = (1, 70, 2, 10)
    key, rate, w = _unit(*shape), rand(*shape), -0.6065 * torch.sigmoid(randn(*shape))
    return ops.rwkv7(randn(*shape), w, randn(*shape), -key, key * rate)


@case("iplr_delta_rule: shears", 50, 8, kind="rank one")
def _() -> Operator:
    """Transitions whose norm is far from their eigenvalues, which are 1."""
    a, b = _unit(1, 50, 2, 8), randn(1, 50, 2, 8) / 4
    b = b - (b * a).sum(-1, keepdim=True) * a
    return ops.iplr_delta_rule(_unit(1, 50, 2, 8), _unit(1, 50, 2, 8), a, b)
