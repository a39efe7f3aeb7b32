"""The operators that the benchmarks measure, float64, one seed each."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ess_kernels import operators
from ess_kernels.operators import Operator

# the keys of `heads_of_models`
HEADS_OF_MODELS = ("plain", "sink", "local", "sink and local")


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gla(length: int, n: int, heads: int = 1) -> Operator:
    """`q = randn / sqrt(n)`, `k = randn`, `g = logsigmoid(randn) / 16`: the gates of a GLA layer at initialisation."""
    return operators.gla(*gla_inputs(length, n, heads), scale=1.0)


def gla_inputs(length: int, n: int, heads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    q, k, g = (_normal(seed, 1, length, heads, n) for seed in (0, 1, 2))
    return q / math.sqrt(n), k, logsigmoid(g) / 16


def packed_gla(boundaries: Tensor, n: int) -> Operator:
    """As `gla`, of packed sequences."""
    return operators.gla(*gla_inputs(int(boundaries[-1]), n), scale=1.0, cu_seqlens=boundaries)


def attention(length: int, heads: int = 1, d: int = 64) -> Operator:
    """Softmax of `2 randn . randn / sqrt(64)`."""
    q, k, scale = attention_inputs(length, heads, d)
    return operators.attention(q, k, scale=scale)


def attention_inputs(length: int, heads: int = 1, d: int = 64) -> tuple[Tensor, Tensor, float]:
    q, k = (_normal(seed, 1, heads, length, d) for seed in (3, 4))
    return 2 * q, k, 1 / math.sqrt(d)


def packed_attention(boundaries: Tensor) -> Operator:
    """As `attention`, of packed sequences."""
    q, k, scale = attention_inputs(int(boundaries[-1]))
    return operators.attention(q, k, scale=scale, cu_seqlens=boundaries)


def mamba(length: int, channels: int, n: int = 16) -> Operator:
    """Mamba at initialisation: `A = -[1..n]`, steps log-uniform in [1e-3, 1e-1], B and C shared by the channels."""
    delta = torch.exp(
        math.log(1e-3)
        + math.log(100)
        * torch.rand(1, channels, length, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    )
    A = -torch.arange(1, n + 1, dtype=torch.float64).expand(channels, n)
    B, C = (_normal(seed, 1, n, length) for seed in (6, 7))
    return operators.selective_scan(delta, A, B, C)


def dense_recurrence(length: int, n: int) -> Operator:
    """`A_t` a random rotation times 0.97 (none grows, memory lasts some hundred tokens), B and C randn."""
    A = torch.linalg.qr(_normal(8, length, n, n)).Q * 0.97
    return operators.recurrence(A, _normal(9, length, n), _normal(10, length, n) / math.sqrt(n), diagonal=False)


def complex_recurrence(length: int, n: int) -> Operator:
    """`n` complex states: moduli `exp(-rand / 20)` and angles randn at every token, B and C randn."""
    modulus, angle = torch.exp(-_uniform(19, length, n) / 20), _normal(20, length, n)
    B, C = (torch.complex(_normal(seed, length, n), _normal(seed + 1, length, n)) for seed in (21, 23))
    return operators.recurrence(torch.polar(modulus, angle), B, C / math.sqrt(n), diagonal=True)


def real_recurrence(length: int, n: int) -> Operator:
    """`n` real states with the transitions that those of `complex_recurrence` of half as many have."""
    modulus = torch.exp(-_uniform(19, length, n // 2) / 20).repeat(1, 2)
    return operators.recurrence(
        modulus, _normal(21, length, n), _normal(23, length, n) / math.sqrt(n // 2), diagonal=True
    )


def heads_of_models(length: int, d: int = 64) -> dict[str, Operator]:
    """Softmax attention as in trained models, `scale=1/8` for `d = 64`, by name.

    `plain`: randn, randn. `sink`: one token that all look at, randn + 2 and randn with a first key of 1. `local`:
    neighbours, 8 rope + 0.1 randn and rope. `sink and local`: 8 rope + 1 and rope with a first key of 3.
    """
    q, k, noise = (_normal(seed, length, d) for seed in (11, 12, 13))
    sink = k.clone()
    sink[0] = 1
    angle = torch.arange(length, dtype=torch.float64)[:, None] * 1e4 ** -(torch.arange(d // 2) / (d // 2)).double()
    rope = torch.cat([angle.cos(), angle.sin()], -1)
    both = rope.clone()
    both[0] = 3
    pairs = {
        "plain": (q, k),
        "sink": (q + 2, sink),
        "local": (8 * rope + 0.1 * noise, rope),
        "sink and local": (8 * rope + 1, both),
    }
    made = {}
    for name, (query, key) in pairs.items():
        made[name] = operators.attention(query[None, None], key[None, None], scale=1 / math.sqrt(d))
    return made


def strong_gates(length: int, n: int) -> Operator:
    """As `gla`, with gates sixteen times as strong."""
    q, k, g = (_normal(seed, 1, length, 1, n) for seed in (0, 1, 2))
    return operators.gla(q / math.sqrt(n), k, logsigmoid(g), scale=1.0)


def growing_gates(length: int, n: int) -> Operator:
    """As `gla`, with gates above one."""
    q, k, g = (_normal(seed, 1, length, 1, n) for seed in (0, 1, 2))
    return operators.gla(q / math.sqrt(n), k, -logsigmoid(g) / 16, scale=1.0)


def large_steps(length: int, channels: int, n: int = 16) -> Operator:
    """As `mamba`, with steps `softplus(randn)`."""
    delta = torch.nn.functional.softplus(_normal(14, 1, channels, length))
    A = -torch.arange(1, n + 1, dtype=torch.float64).expand(channels, n)
    B, C = (_normal(seed, 1, n, length) for seed in (6, 7))
    return operators.selective_scan(delta, A, B, C)


def shift(length: int) -> Operator:
    """The identity, one token late: every `H_i` has one singular value, 1."""
    return operators.dense(torch.diag(torch.ones(length - 1, dtype=torch.float64), -1))


def one_and_many(length: int, small: float) -> Operator:
    """Rank one, and `small` times noise."""
    u, v = _normal(15, length, 1), _normal(16, 1, length)
    return operators.dense(u @ v + small * _normal(17, length, length))


def falling_rows(length: int) -> Operator:
    """Noise whose rows fall from 1 to 1e-64."""
    scale = 10.0 ** -torch.linspace(0, 64, length, dtype=torch.float64)
    return operators.dense(scale[:, None] * _normal(18, length, length))
