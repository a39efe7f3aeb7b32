"""Attention's kin where it is hard: closed gates, keys that repeat, scores that saturate, weights that grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from .. import operators as ops
from ..operators import Operator
from .registry import case, rand, randn

INF = float("inf")
LENGTH, HEADS, SIZE = 67, 2, 8


def _tensors(count: int) -> list[Tensor]:
    return [randn(1, LENGTH, HEADS, SIZE) for _ in range(count)]


def _gates(*more: int, closed: float = 0.0) -> Tensor:
    g = logsigmoid(randn(1, LENGTH, HEADS, *more) + 2)
    return g.masked_fill(rand(*g.shape) < closed, -INF)


def _alike(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


def _attention(**options: Callable[[], Any]) -> Operator:
    q, k = (x.transpose(1, 2) for x in _tensors(2))
    return ops.attention(q, k, **{name: make() for name, make in options.items()})


def _heads_first(g: Tensor) -> Tensor:
    return g.transpose(1, 2)


def _path(beta: float, *, one_key: bool = False, closed: float = 0.0) -> Operator:
    q, k, w = _tensors(3)
    w = normalize(_alike(w) if one_key else w, dim=-1)
    return ops.path_attention(q, k, w=w, beta=torch.full((1, LENGTH, HEADS), beta).double(), g=_gates(closed=closed))


def _stickbreaking(sharpness: float, **options: Any) -> Operator:
    q, k = _tensors(2)
    return ops.stickbreaking_attention(sharpness * q, k, **options)


def _wall(closed: float, **options: Any) -> Operator:
    q, k = _tensors(2)
    return ops.wall_attention(q, k, g=_gates(SIZE, closed=closed), g_scalar=_gates(closed=closed), **options)


def _parallax(size: float) -> Operator:
    q, r, k = _tensors(3)
    return ops.parallax(q, size * r, k)


def _deltaformer(beta: float, *, one_key: bool = False) -> Operator:
    q, k = _tensors(2)
    return ops.deltaformer(q, _alike(k) if one_key else k, beta=torch.full((1, LENGTH, HEADS), beta).double())


def _log_linear(*starts: int) -> Operator:
    """Documents begin at these tokens."""
    q, k = _tensors(2)
    g = _gates()
    g[:, starts] = -INF
    levels = randn(1, LENGTH, HEADS, 8)
    levels[..., 3] = 0.0
    return ops.log_linear_attention(q, k, g=g, level_scales=levels)


def _nsa(window_size: int) -> Operator:
    q, k = _tensors(2)
    g_cmp, g_slc, g_swa = (rand(1, LENGTH, HEADS) for _ in range(3))
    chosen = torch.randint(-1, 9, (1, LENGTH, HEADS, 3))
    return ops.nsa(
        q,
        k,
        g_cmp=g_cmp,
        g_slc=g_slc,
        g_swa=g_swa,
        block_indices=chosen,
        block_size=8,
        window_size=window_size,
    )


def _difference() -> Operator:
    q, k = (x.transpose(1, 2) for x in _tensors(2))
    sharp, flat = ops.attention(3 * q, k), ops.attention(0.1 * q, k)
    return ops.sum_of(sharp, flat, weights=(1.0, -rand(HEADS, 1)[:, 0]))


def _of_states() -> Operator:
    q, k, g = _tensors(3)
    keys = normalize(k, dim=-1)
    return ops.sum_of(
        ops.gla(q, k, logsigmoid(g)),
        ops.delta_rule(q, keys, rand(1, LENGTH, HEADS)),
        weights=(0.5, randn(1, HEADS, LENGTH)),
    )


def _two_decays() -> Operator:
    q, k, g = _tensors(3)
    fast, slow = ops.gla(q, k, logsigmoid(g)), ops.retention(q, k)
    return ops.sum_of(fast, slow, weights=(randn(1, HEADS, LENGTH), -0.5))


for _name, _build in {
    "forgetting attention: open and closed gates": lambda: _attention(g=lambda: _heads_first(_gates(closed=0.1))),
    "forgetting attention: strong decay": lambda: _attention(g=lambda: _heads_first(_gates() - 30)),
    "attention: steep slopes": lambda: _attention(alibi_slopes=lambda: torch.tensor([8.0, 0.01])),
    "attention: one head without a sink": lambda: _attention(sinks=lambda: torch.tensor([-INF, 1.0])),
    "path_attention: steps of one": lambda: _path(1.0),
    "path_attention: steps of two, one key": lambda: _path(2.0, one_key=True),
    "path_attention: steps of 1.9, one key, closed gates": lambda: _path(1.9, one_key=True, closed=0.1),
    "stickbreaking_attention: plain": lambda: _stickbreaking(1.0),
    "stickbreaking_attention: saturated": lambda: _stickbreaking(60.0, attend_current=True),
    "wall_attention: plain": lambda: _wall(0.0),
    "wall_attention: closed gates, window, sinks": lambda: _wall(0.1, window_size=20, sinks=torch.tensor([-INF, 1.0])),
    "parallax: small corrections": lambda: _parallax(0.1),
    "parallax: large corrections": lambda: _parallax(30.0),
    "deltaformer: steps of one": lambda: _deltaformer(1.0),
    "deltaformer: steps of two, one key": lambda: _deltaformer(2.0, one_key=True),
    "nsa: window": lambda: _nsa(9),
    "nsa: no window": lambda: _nsa(0),
    "sum_of: sharp less flat": _difference,
}.items():
    case(_name, LENGTH)(_build)

case("log_linear_attention: plain", LENGTH, SIZE * 7, kind="tiled")(lambda: _log_linear())
case("log_linear_attention: documents", LENGTH, SIZE * 7, kind="tiled")(lambda: _log_linear(13, 32, 33, 50))
case("sum_of: two decays", LENGTH, 2 * SIZE)(_two_decays)
case("sum_of: two states", LENGTH, 2 * SIZE, kind="tiled")(_of_states)
