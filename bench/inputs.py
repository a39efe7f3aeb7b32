"""The operators that the benchmarks measure, float64, one seed each."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ess_kernels import operators
from ess_kernels.operators import Operator


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gla(length: int, n: int, heads: int = 1) -> Operator:
    """`q = randn / sqrt(n)`, `k = randn`, `g = logsigmoid(randn) / 16`: the gates of a GLA layer at initialisation."""
    q, k, g = (_normal(seed, 1, length, heads, n) for seed in (0, 1, 2))
    return operators.gla(q / math.sqrt(n), k, logsigmoid(g) / 16, scale=1.0)


def attention(length: int, heads: int = 1, d: int = 64) -> Operator:
    """Softmax of `2 randn . randn / sqrt(64)`."""
    q, k = (_normal(seed, 1, heads, length, d) for seed in (3, 4))
    return operators.attention(2 * q, k, scale=1 / math.sqrt(d))


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
