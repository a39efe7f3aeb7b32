"""One operator of every family with a finite state, as its layers make it at initialisation, float64, one seed each.

`FAMILIES[name](length, n)` has one head (or channel) of state size n, where the family can choose it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from ess_kernels import operators
from ess_kernels.operators import Operator

FAMILIES: dict[str, Callable[[int, int], Operator]] = {}


class Draw:
    """Random tensors of one head, `[1, L, 1, n]` or `[1, L, 1]`, each call another one."""

    def __init__(self, length: int, n: int):
        self.length, self.n = length, n
        self._generator = torch.Generator().manual_seed(21)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self._generator)

    def tokens(self) -> Tensor:
        return self.normal(1, self.length, 1, self.n)

    def keys(self) -> Tensor:
        return normalize(self.tokens(), dim=-1)

    def numbers(self) -> Tensor:
        """One a token."""
        return self.normal(1, self.length, 1)

    def gates(self) -> Tensor:
        """Weak log decays of every channel."""
        return logsigmoid(self.tokens()) / 16

    def head_gates(self) -> Tensor:
        return logsigmoid(self.numbers()) / 16

    def steps(self) -> Tensor:
        return torch.sigmoid(self.numbers())


def family(make: Callable[[Draw], Operator]) -> Callable[[Draw], Operator]:
    """Adds a maker under its own name."""
    FAMILIES[make.__name__] = lambda length, n: make(Draw(length, n))
    return make


@family
def gla(x: Draw) -> Operator:
    return operators.gla(x.tokens(), x.tokens(), x.gates())


@family
def simple_gla(x: Draw) -> Operator:
    return operators.simple_gla(x.tokens(), x.tokens(), g=x.head_gates())


@family
def ssd(x: Draw) -> Operator:
    dt, A = softplus(x.numbers() - 4), torch.tensor([-1.0])
    return operators.ssd(dt, A, x.tokens(), x.tokens())


@family
def delta_rule(x: Draw) -> Operator:
    return operators.delta_rule(x.keys(), x.keys(), x.steps())


@family
def gated_delta_rule(x: Draw) -> Operator:
    return operators.gated_delta_rule(x.keys(), x.keys(), g=x.head_gates(), beta=x.steps())


@family
def kda(x: Draw) -> Operator:
    return operators.kda(x.keys(), x.keys(), g=x.gates(), beta=x.steps())


@family
def gdn2(x: Draw) -> Operator:
    return operators.gdn2(x.keys(), x.keys(), g=x.gates(), b=torch.sigmoid(x.tokens()))


@family
def comba(x: Draw) -> Operator:
    key = x.keys()
    p = normalize(key + 0.02 * x.tokens(), dim=-1)
    return operators.comba(x.keys(), key, p=p, g=x.head_gates(), beta=x.steps())


@family
def dplr_delta_rule(x: Draw) -> Operator:
    key = x.keys()
    return operators.dplr_delta_rule(x.keys(), x.keys(), -key, key * torch.sigmoid(x.tokens()), x.gates())


@family
def iplr_delta_rule(x: Draw) -> Operator:
    key = x.keys()
    return operators.iplr_delta_rule(x.keys(), x.keys(), -key, key * x.steps()[..., None])


@family
def rwkv7(x: Draw) -> Operator:
    key, w = x.keys(), -0.6065 * torch.sigmoid(x.tokens())
    return operators.rwkv7(x.tokens(), w, x.tokens(), -key, key * torch.sigmoid(x.tokens()))


@family
def precond_gated_delta_rule(x: Draw) -> Operator:
    atk = {"g_atk": x.head_gates(), "beta_atk": x.steps()}
    return operators.precond_gated_delta_rule(x.keys(), x.keys(), g=x.head_gates(), beta=x.steps(), **atk)


@family
def precond_kda(x: Draw) -> Operator:
    atk = {"g_atk": x.head_gates(), "beta_atk": x.steps()}
    return operators.precond_kda(x.keys(), x.keys(), g=x.gates(), beta=x.steps(), **atk)


@family
def momentum_delta_rule(x: Draw) -> Operator:
    """Of half the size: its state is a memory and a velocity."""
    x.n //= 2
    key = x.keys()
    gates = {"log_alpha": x.head_gates(), "log_mu": logsigmoid(x.numbers() + 2)}
    return operators.momentum_delta_rule(x.keys(), key, p=key, beta=x.steps(), eta=x.steps(), **gates)


@family
def linear_attention(x: Draw) -> Operator:
    return operators.linear_attention(x.tokens().exp(), x.tokens().exp(), normalize=True)


@family
def retention(x: Draw) -> Operator:
    return operators.retention(x.keys(), x.keys())


@family
def hgrn2(x: Draw) -> Operator:
    return operators.hgrn2(x.tokens(), x.gates())


@family
def gsa(x: Draw) -> Operator:
    """As many slots as the state has numbers; keys of 64."""
    q, k = (x.normal(1, x.length, 1, 64) for _ in range(2))
    gates = logsigmoid(x.tokens()) / 8
    return operators.gsa(q, k, 1 - gates.exp(), g=gates)


@family
def lightnet(x: Draw) -> Operator:
    return operators.lightnet(x.tokens(), x.tokens())


@family
def mesa_net(x: Draw) -> Operator:
    lamb = torch.full((1, x.n), 0.5, dtype=torch.float64)
    return operators.mesa_net(x.keys(), x.keys(), g=x.head_gates(), beta=x.steps(), lamb=lamb)


@family
def rwkv6(x: Draw) -> Operator:
    return operators.rwkv6(x.tokens(), x.tokens(), -torch.exp(x.tokens() - 3), x.normal(1, x.n))


@family
def mlstm(x: Draw) -> Operator:
    q, k = (x.normal(1, 1, x.length, x.n) for _ in range(2))
    return operators.mlstm(q, k, i=x.normal(1, 1, x.length), f=x.normal(1, 1, x.length) + 3)


@family
def selective_scan(x: Draw) -> Operator:
    """One channel."""
    A = -torch.arange(1, x.n + 1, dtype=torch.float64)[None]
    B, C = (x.normal(1, x.n, x.length) for _ in range(2))
    return operators.selective_scan(softplus(x.normal(1, 1, x.length) - 4), A, B, C)


@family
def complex_recurrence(x: Draw) -> Operator:
    """Half as many complex states as there are real ones."""
    size = (1, x.length, x.n // 2)
    A = torch.polar(torch.exp(-0.05 * x.normal(*size).abs()), x.normal(*size))
    B, C = (torch.complex(x.normal(*size), x.normal(*size)) for _ in range(2))
    return operators.recurrence(A, B, C, diagonal=True)


@family
def rwkv4(x: Draw) -> Operator:
    """One channel, whose state is one number."""
    return operators.rwkv4(x.normal(1, x.length, 1), w=x.normal(1), u=x.normal(1))


@family
def rg_lru(x: Draw) -> Operator:
    """One channel, whose state is one number."""
    return operators.rg_lru(torch.sigmoid(x.normal(1, x.length, 1) + 3))
