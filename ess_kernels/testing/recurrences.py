"""Operators that the kernels of the state-space chain are tested on, small, on the device under test."""

from __future__ import annotations

import math

import torch

from .. import operators

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def gates(seed: int, *shape: int, strength: float = 0.3) -> torch.Tensor:
    return torch.nn.functional.logsigmoid(normal(seed, *shape)) * strength


def gla(B=2, T=37, H=2, K=5, dtype=torch.float64):
    g = gates(2, B, T, H, K)
    g[:, T // 2] = -torch.inf
    return operators.gla(normal(0, B, T, H, K, dtype=dtype), normal(1, B, T, H, K, dtype=dtype), g.to(dtype))


def ssd(B=2, T=33, H=4, G=2, n=16):
    dt = torch.rand(B, T, H, device=DEVICE, dtype=torch.float64) * 0.3
    return operators.ssd(dt, -torch.arange(1.0, H + 1, device=DEVICE), normal(0, B, T, G, n), normal(1, B, T, G, n))


def mamba(B=2, D=3, L=40, N=6, constant=False, dtype=torch.float64):
    delta = torch.rand(B, D, L, device=DEVICE, dtype=torch.float64) * 0.3
    A = -torch.rand(D, N, device=DEVICE, dtype=torch.float64) * 3
    shape = (D, N) if constant else (B, N, L)
    B_, C_ = (normal(seed, *shape, dtype=dtype) for seed in (0, 1))
    return operators.selective_scan(delta.to(dtype), A.to(dtype), B_, C_)


def control(L=35, n=7, constant=False):
    A = torch.rand(*(() if constant else (L,)), n, device=DEVICE, dtype=torch.float64)
    shape = (n,) if constant else (L, n)
    length = L if constant else None
    return operators.recurrence(A, normal(0, *shape), normal(1, *shape), diagonal=True, length=length)


def dense_transitions(N=2, L=36, n=6):
    A = torch.linalg.qr(normal(2, N, L, n, n))[0] * 0.95
    return operators.recurrence(A, normal(0, N, L, n), normal(1, N, L, n), diagonal=False)


def _hard(change):
    """A GLA head whose `(q, k, g)` `[L, n]` has been changed into something harder."""

    def build(L: int, n: int):
        q, k, g = normal(5, L, n) / math.sqrt(n), normal(6, L, n), gates(7, L, n, strength=1 / 16)
        q, k, g = (x[None, :, None] for x in change(q, k, g))
        return operators.gla(q, k, g, scale=1.0)

    return build


def _spread(n: int) -> torch.Tensor:
    return torch.logspace(3, -3, n, dtype=torch.float64, device=DEVICE)


def _every(x: torch.Tensor, step: int, value: float) -> torch.Tensor:
    x = x.clone()
    x[::step] = value
    return x


HARD = {
    "strong": _hard(lambda q, k, g: (q, k, g - 5)),
    "no-decay": _hard(lambda q, k, g: (q, k, 0 * g)),
    "mixed-decay": _hard(lambda q, k, g: (q, k, g - 20 / _spread(g.shape[1]).sqrt())),
    "few-keys": _hard(lambda q, k, g: (q, k[torch.arange(len(k), device=k.device) % 5], g)),
    "zero-tokens": _hard(lambda q, k, g: (_every(q, 3, 0.0), _every(k, 2, 0.0), g)),
    "dead-coordinates": _hard(lambda q, k, g: (q, _every(k.mT, 3, 0.0).mT, g)),
    "skewed": _hard(lambda q, k, g: (q / _spread(q.shape[1]), k * _spread(k.shape[1]), g)),
    "rank-three": _hard(lambda q, k, g: (q, k[:, :3] @ normal(8, 3, k.shape[1]), 0 * g)),
    "signs": _hard(lambda q, k, g: (q.sign(), k.sign(), 0 * g)),
    "resets": _hard(lambda q, k, g: (q, k, _every(g, 7, -math.inf))),
}
