"""Hard operators of families whose gates, reads or writes are made from other tensors; `cases.py` has the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from .. import operators as ops
from ..operators import Operator
from .registry import INF, case, powers, rand, randn


def _with_resets(g: Tensor) -> Tensor:
    """Log-gates `[B, T, ...]`, -inf at a token in eleven."""
    g = g.clone()
    g[:, ::11] = -INF
    return g


def _far_apart(*shape: int, drift: float = 3000.0) -> Tensor:
    """Logits `[B, T, ...]` whose exponentials would overflow, and vanish once they have drifted away and back."""
    path = 1000 + drift * torch.sin(torch.arange(shape[1]).double() / 9)
    return randn(*shape) + path.reshape(-1, *(1 for _ in shape[2:]))


@case("rwkv6: resets", 67, 9)
def _() -> Operator:
    return ops.rwkv6(randn(1, 67, 2, 9), randn(1, 67, 2, 9), _with_resets(logsigmoid(randn(1, 67, 2, 9))), randn(2, 9))


@case("rwkv4: plain", 60, 1)
def _() -> Operator:
    return ops.rwkv4(2 * randn(1, 60, 3), w=torch.tensor([-6.0, -1.0, 2.0]).double(), u=randn(3))


@case("rwkv4: keys far apart", 60, 1)
def _() -> Operator:
    # slow enough that the old tokens are not lost beside the new one: with one number of state that is all there is
    return ops.rwkv4(_far_apart(1, 60, 3, drift=20.0), w=torch.tensor([-6.0, 3.0, 6.0]).double(), u=randn(3))


@case("hgrn: resets", 50, 1)
def _() -> Operator:
    return ops.hgrn(_with_resets(logsigmoid(randn(2, 50, 3))))


@case("hgrn2: strong decay", 60, 10)
def _() -> Operator:
    return ops.hgrn2(randn(1, 60, 2, 10), -10 + logsigmoid(randn(1, 60, 2, 10)))


@case("rg_lru: resets", 50, 1)
def _() -> Operator:
    a = torch.sigmoid(4 + 3 * randn(2, 50, 3))
    return ops.rg_lru(a, reset=torch.arange(50).expand(2, -1) % 13 == 0)


@case("gsa: resets", 67, 12)
def _() -> Operator:
    q, k = randn(1, 67, 4, 6), randn(1, 67, 2, 6)
    return ops.gsa(q, k, randn(1, 67, 2, 12), g=_with_resets(logsigmoid(randn(1, 67, 2, 12))))


@case("gsa: logits far apart", 67, 12)
def _() -> Operator:
    return ops.gsa(randn(1, 67, 2, 6), randn(1, 67, 2, 6), _far_apart(1, 67, 2, 12))


@case("lightnet: plain", 60, 8)
def _() -> Operator:
    return ops.lightnet(randn(1, 60, 2, 8), 3 * randn(1, 60, 2, 8))


@case("lightnet: logits far apart", 67, 8)
def _() -> Operator:
    return ops.lightnet(randn(1, 67, 2, 8), _far_apart(1, 67, 2, 8))


@case("mesa_net: repeated keys", 60, 6)
def _() -> Operator:
    k = randn(1, 60, 2, 6)
    k = k[:, torch.arange(60) % 4]
    g = _with_resets(logsigmoid(randn(1, 60, 2)) / 8)
    return ops.mesa_net(randn(1, 60, 2, 6), k, g=g, beta=rand(1, 60, 2), lamb=powers(-1, 1, 12).view(2, 6))


@case("lightning_attention: plain", 70, 10)
def _() -> Operator:
    return ops.lightning_attention(randn(1, 70, 4, 10), randn(1, 70, 4, 10), layer_idx=5, num_layers=6)


@case("based: plain", 70, 15)
def _() -> Operator:
    return ops.based(randn(1, 70, 2, 4), randn(1, 70, 2, 4))


@case("rebased: plain", 70, 10)
def _() -> Operator:
    return ops.rebased(randn(1, 70, 2, 4), randn(1, 70, 2, 4))


@case("cyfa: resets", 60, 8)
def _() -> Operator:
    weight = torch.ones(5, dtype=torch.float64)
    return ops.cyfa(
        randn(1, 60, 2, 5),
        randn(1, 60, 2, 5),
        g=_with_resets(logsigmoid(randn(1, 60, 2)) / 8),
        delta=20 * randn(1, 60, 2),
        beta=rand(1, 60, 2),
        readout=3 * randn(2, 7, 7),
        q_norm_weight=weight,
        k_norm_weight=weight,
        q_norm_eps=1e-6,
        k_norm_eps=1e-6,
    )


@case("mlstm: plain", 60, 8)
def _() -> Operator:
    return ops.mlstm(randn(1, 2, 60, 8), randn(1, 2, 60, 8), i=2 * randn(1, 2, 60), f=3 + randn(1, 2, 60))


@case("mlstm: gates far apart", 67, 8)
def _() -> Operator:
    i = _far_apart(1, 67, 2).transpose(1, 2)
    return ops.mlstm(randn(1, 2, 67, 8), randn(1, 2, 67, 8), i=i, f=30 * randn(1, 2, 67))


@case("mamba3: steps of zero", 60, 9)
def _() -> Operator:
    dt = softplus(randn(1, 2, 60))
    dt[..., ::5] = 0
    adt = -rand(1, 2, 1) * dt
    adt[..., 30] = -INF
    return ops.mamba3(
        randn(1, 60, 1, 9),
        randn(1, 60, 1, 9),
        ADT=adt,
        DT=dt,
        Trap=3 * randn(1, 2, 60),
        Q_bias=randn(2, 9),
        K_bias=randn(2, 9),
        Angles=3 * randn(1, 60, 2, 4),
    )


@case("lfm2_conv: plain", 50, 2, "full")
def _() -> Operator:
    return ops.lfm2_conv(randn(1, 3, 50), randn(1, 3, 50), randn(3, 3))


@case("dynamic_short_convolution: plain", 50, 3, "full")
def _() -> Operator:
    return ops.dynamic_short_convolution(randn(1, 2, 50, 4))
