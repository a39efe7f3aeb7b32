"""Operators that are hard for some part of the engine, of every family, by name: `build(name)` makes one.

Small on purpose (lengths around 40 to 100), always the same random numbers. `truth(name)` has the singular values that
the definition gives. `CASES` says beside the names what lists of parameters ask, such as lengths, so that collecting
tests builds nothing. `test_cases.py` compares that with the operators.
"""

# a lambda that binds the variable of a loop has no type that mypy knows
# mypy: disable-error-code="misc"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from .. import operators as ops
from ..operators import Operator
from . import attention_cases, delta_cases, diagonal_cases  # noqa: F401 (they add cases of their own)
from .registry import CASES, INF, build, case, matrix_of, names, powers, rand, randn, spectra, truth

__all__ = ["CASES", "INF", "build", "case", "matrix_of", "names", "powers", "rand", "randn", "spectra", "truth"]


# --- gated recurrences ------------------------------------------------------------------------------------------------


def qkg(length: int = 67, n: int = 12, heads: int = 2, decay: float = 1 / 16) -> tuple[Tensor, Tensor, Tensor]:
    shape = (1, length, heads, n)
    return randn(*shape) / n**0.5, randn(*shape), logsigmoid(randn(*shape)) * decay


def gla(change: Callable[..., tuple[Tensor, Tensor, Tensor]], **sizes: Any) -> Callable[[], Operator]:
    return lambda: ops.gla(*change(*qkg(**sizes)), scale=1.0)


def _resets(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q, k, g.masked_fill(torch.rand(g.shape) < 0.05, -INF)


def _documents(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    g[:, [13, 32, 33, 50]] = -INF
    return q, k, g


def _zeros_and_resets(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q, k, torch.where(torch.rand(g.shape) < 0.1, -INF, 0.0).double()


def _repeated(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q, k[:, :3].repeat(1, 40, 1, 1)[:, : k.shape[1]], g


def _zero_queries(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q[:, 20:45], q[:, ::3] = 0.0, 0.0
    return q, k, g


def _dead(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q[..., ::3], k[..., 1::3] = 0.0, 0.0
    return q, k, g


def _dense_basis(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same T in a basis of condition number about 30; only without decay is it the same T."""
    n = q.shape[-1]
    U, V = (torch.linalg.qr(randn(n, n)).Q for _ in range(2))
    s = powers(-0.75, 0.75, n)
    return q @ (U * s) @ V.T, k @ (U / s) @ V.T, torch.zeros_like(g)


def _clustered(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal tokens over and over: singular values come in equal groups."""
    n = q.shape[-1]
    token = torch.arange(q.shape[1])
    eye = torch.eye(n, dtype=torch.float64)[None, :, None]
    return eye[:, token % n].expand_as(q), eye[:, (token // 2) % n].expand_as(k), torch.zeros_like(g)


def _one_large(q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    k[..., 1:] *= 1e-4
    return q, k, torch.zeros_like(g)


for _name, _change in {
    "weak decay": lambda q, k, g: (q, k, g),
    "decay": lambda q, k, g: (q, k, 16 * g),
    "strong decay": lambda q, k, g: (q, k, -20 + g),
    "extreme decay": lambda q, k, g: (q, k, -300 + g),
    "no decay": lambda q, k, g: (q, k, torch.zeros_like(g)),
    "decay by channel": lambda q, k, g: (q, k, -powers(-4, 1.5, 12).expand(g.shape)),
    "some growth": lambda q, k, g: (q, k, 0.05 * randn(*g.shape)),
    "resets": _resets,
    "packed documents": _documents,
    "gates of zero and one": _zeros_and_resets,
    "always reset": lambda q, k, g: (q, k, torch.full_like(g, -INF)),
    "repeated keys": _repeated,
    "identical tokens": lambda q, k, g: (q[:, :1].expand_as(q), k[:, :1].expand_as(k), g),
    "zero queries": _zero_queries,
    "dead coordinates": _dead,
    "zero": lambda q, k, g: (0 * q, k, g),
    "skewed basis": lambda q, k, g: (q * powers(-6, 6, 12), k / powers(-6, 6, 12), g),
    "dense basis": _dense_basis,
    "graded spectrum": lambda q, k, g: (q, k * powers(0, -10, 12), g),
    "steep spectrum": lambda q, k, g: (q * powers(0, -8, 12), k * powers(0, -8, 12), g),
    "clustered spectrum": _clustered,
    "one large and many tiny": _one_large,
    "tiny": lambda q, k, g: (q, 1e-120 * k, g),
    "tiny times tiny": lambda q, k, g: (1e-120 * q, 1e-120 * k, g),
    "huge": lambda q, k, g: (1e80 * q, k, g),
    "huge times tiny": lambda q, k, g: (1e80 * q, 1e-120 * k, g),
    "rows fall": lambda q, k, g: (q * powers(0, -12, 67)[None, :, None, None], k, g),
    "rows fall far": lambda q, k, g: (q * powers(0, -60, 67)[None, :, None, None], k, g),
    "columns rise": lambda q, k, g: (q, k * powers(-30, 0, 67)[None, :, None, None], g),
    "rows beyond squares": lambda q, k, g: (q * powers(0, -220, 67)[None, :, None, None], k, g),
}.items():
    case(f"gla: {_name}", 67, 12, growing=_name == "some growth")(gla(_change))

for _L, _n in [(1, 4), (2, 4), (3, 4), (5, 1), (40, 1), (50, 3), (64, 8), (47, 25), (96, 33), (101, 50), (33, 40)]:
    case(f"gla: length {_L}, state {_n}", _L, _n)(gla(lambda q, k, g: (q, k, g), length=_L, n=_n))


@case("linear_attention: plain", 70, 7)
def _() -> Operator:
    return ops.linear_attention(*qkg(70, 7)[:2])


@case("linear_attention: normalised", 70, 9)
def _() -> Operator:
    q, k, _ = qkg(70, 9)
    return ops.linear_attention(q.exp(), k.exp(), normalize=True)


@case("simple_gla: gates of every head", 70, 10)
def _() -> Operator:
    q, k, g = qkg(70, 10)
    return ops.simple_gla(q, k, g=g[..., 0].masked_fill(torch.rand(g.shape[:3]) < 0.03, -INF))


@case("simple_gla: constant gates", 55, 10)
def _() -> Operator:
    q, k, _ = qkg(55, 10)
    return ops.simple_gla(q, k, g_gamma=torch.tensor([-0.01, -2.0]).double())


@case("retention: plain", 70, 10)
def _() -> Operator:
    return ops.retention(*qkg(70, 10, heads=4)[:2])


@case("wla: plain", 70, 10)
def _() -> Operator:
    q, k, _ = qkg(70, 10)
    return ops.wla(q, k, -powers(-4, 1, 20).view(2, 10))


@case("gla_s6: plain", 70, 10)
def _() -> Operator:
    q, k, _ = qkg(70, 10)
    return ops.gla_s6(q, k, softplus(randn(1, 70, 2)), 30.0)


@case("ssd: groups", 45, 9)
def _() -> Operator:
    B, C = randn(2, 45, 1, 9), randn(2, 45, 1, 9)
    return ops.ssd(randn(2, 45, 2), -rand(2), B, C, dt_bias=randn(2), dt_softplus=True, dt_limit=(0.01, 3.0))


@case("ssd: steps of zero", 70, 17)
def _() -> Operator:
    dt = rand(1, 70, 2)
    dt[:, 10:30], dt[:, 50] = 0.0, 200.0
    return ops.ssd(dt, -torch.tensor([0.05, 4.0]).double(), randn(1, 70, 2, 17), randn(1, 70, 2, 17))


@case("selective_scan: groups", 45, 5)
def _() -> Operator:
    A = -torch.arange(1.0, 6.0).double().expand(4, 5)
    B, C = randn(1, 2, 5, 45), randn(1, 2, 5, 45)
    return ops.selective_scan(randn(1, 4, 45), A, B, C, delta_bias=randn(4), delta_softplus=True)


@case("selective_scan: constant", 60, 4)
def _() -> Operator:
    return ops.selective_scan(0.1 * rand(1, 3, 60), -5 * rand(3, 4), randn(3, 4), randn(3, 4))


# --- control recurrences ----------------------------------------------------------------------------------------------


@case("recurrence: diagonal", 61, 7)
def _() -> Operator:
    A = 2 * rand(2, 61, 7) - 1
    A[:, ::9, :4] = 0.0
    return ops.recurrence(A, randn(2, 61, 7), randn(2, 61, 7), diagonal=True)


@case("recurrence: dense", 53, 6, kind="full")
def _() -> Operator:
    return ops.recurrence(randn(2, 53, 6, 6) / 3, randn(2, 53, 6), randn(2, 53, 6), diagonal=False)


@case("recurrence: rotations", 50, 10, kind="full")
def _() -> Operator:
    A = torch.linalg.qr(randn(1, 50, 10, 10)).Q
    return ops.recurrence(A, randn(1, 50, 10), randn(1, 50, 10), diagonal=False)


@case("recurrence: delta rule", 57, 8, kind="full")
def _() -> Operator:
    k = torch.nn.functional.normalize(randn(2, 57, 8), dim=-1)
    A = torch.eye(8, dtype=torch.float64) - 1.9 * k[..., None] * k[..., None, :]
    return ops.recurrence(A, k, randn(2, 57, 8), diagonal=False)


@case("recurrence: singular transitions", 60, 6, kind="full")
def _() -> Operator:
    A = randn(1, 60, 6, 6) / 3
    A[:, 7] = 0.0
    A[:, 20:30, :, 3:] = 0.0
    return ops.recurrence(A, randn(1, 60, 6), randn(1, 60, 6), diagonal=False)


@case("recurrence: unstable", 60, 3, growing=True)
def _() -> Operator:
    return ops.recurrence(
        1.4 * torch.ones(1, 60, 3).double() + 0.1 * rand(1, 60, 3), randn(1, 60, 3), randn(1, 60, 3), diagonal=True
    )


@case("recurrence: time-invariant", 60, 9, kind="full")
def _() -> Operator:
    A = randn(2, 9, 9)
    A = A * (0.95 / torch.linalg.eigvals(A).abs().amax(-1))[:, None, None]
    return ops.recurrence(A, randn(2, 9), randn(2, 9), diagonal=False, length=60)


@case("recurrence: time-invariant and diagonal", 60, 8)
def _() -> Operator:
    return ops.recurrence(powers(-0.01, -2, 8), torch.ones(8).double(), randn(8), diagonal=True, length=60)


@case("recurrence: nilpotent", 41, 7, kind="full")
def _() -> Operator:
    A = torch.diag(torch.ones(6, dtype=torch.float64), -1)
    return ops.recurrence(A, randn(7), randn(7), diagonal=False, length=41)


# --- convolutions -----------------------------------------------------------------------------------------------------


@case("convolution: noise", 60)
def _() -> Operator:
    return ops.convolution(randn(2, 60))


@case("convolution: three exponentials", 60)
def _() -> Operator:
    t = torch.arange(60.0).double()
    return ops.convolution((randn(2, 3, 1) * torch.tensor([0.99, 0.7, -0.4]).double()[:, None] ** t).sum(1))


@case("convolution: falling", 60)
def _() -> Operator:
    return ops.convolution(randn(2, 60) * torch.exp(-0.4 * torch.arange(60.0).double()))


@case("gated_convolution: plain", 47)
def _() -> Operator:
    return ops.gated_convolution(randn(2, 2, 47), randn(2, 47) / 5, randn(2, 2, 47))


@case("gated_convolution: closed gates", 63)
def _() -> Operator:
    x0, x1 = randn(1, 2, 63), randn(1, 2, 63)
    x0[..., 20:40], x1[..., ::2] = 0.0, 0.0
    return ops.gated_convolution(x0, randn(2, 63), x1)


@case("short_convolution: four taps", 41, 3, kind="full")
def _() -> Operator:
    return ops.short_convolution(randn(3, 4), 41)


@case("short_convolution: many taps", 61, 19, kind="full")
def _() -> Operator:
    return ops.short_convolution(randn(2, 20), 61)


@case("short_convolution: more taps than tokens", 9, 11, kind="full")
def _() -> Operator:
    return ops.short_convolution(randn(2, 12), 9)


@case("short_convolution: one tap", 21, 0, kind="tiled")
def _() -> Operator:
    return ops.short_convolution(randn(2, 1), 21)


# --- attention --------------------------------------------------------------------------------------------------------


def attention(length: int = 60, size: int = 8, sharpness: float = 1.0, heads: int = 2, groups: int = 2, **options: Any):
    q, k = randn(1, heads, length, size), randn(1, groups, length, size)
    return ops.attention(sharpness * q, k, **options)


def documents(length: int, *starts: int) -> Tensor:
    """bool `[L, L]`: whether two tokens are of the same document."""
    number = torch.zeros(length, dtype=torch.int64)
    number[list(starts)] = 1
    number = number.cumsum(0)
    return number[:, None] == number


def _masked_rows(length: int) -> Tensor:
    keep = torch.rand(length, length) < 0.7
    keep[5], keep[30:36] = False, False
    return keep


for _name, (_length, _builder) in {
    "attention: plain": (71, lambda: attention(71)),
    "attention: flat": (60, lambda: attention(sharpness=0.05)),
    "attention: sharp": (60, lambda: attention(sharpness=12.0)),
    "attention: window": (67, lambda: attention(67, window_size=9)),
    "attention: window of one": (20, lambda: attention(20, window_size=1)),
    "attention: softcap": (50, lambda: attention(50, sharpness=8.0, softcap=3.0)),
    "attention: sinks": (60, lambda: attention(sinks=torch.tensor([-1.0, 4.0]))),
    "attention: grouped queries": (50, lambda: attention(50, heads=4)),
    "attention: mask": (60, lambda: attention(attn_mask=_masked_rows(60))),
    "attention: additive mask": (
        60,
        lambda: attention(attn_mask=torch.where(torch.rand(1, 2, 60, 60) < 0.2, -INF, randn(1, 2, 60, 60))),
    ),
    "attention: packed documents": (61, lambda: attention(61, attn_mask=documents(61, 7, 30, 31))),
    "attention: identical keys": (45, lambda: ops.attention(randn(1, 2, 45, 4), randn(1, 2, 1, 4).expand(1, 2, 45, 4))),
    "attention: two keys": (
        45,
        lambda: ops.attention(randn(1, 1, 45, 4), randn(1, 1, 2, 4)[:, :, torch.arange(45) % 2]),
    ),
}.items():
    case(_name, _length)(_builder)
for _length in (1, 2, 3):
    case(f"attention: length {_length}", _length)(lambda length=_length: attention(length))


# --- dense ------------------------------------------------------------------------------------------------------------


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(randn(n, n)).Q


def corner(values: Tensor) -> Tensor:
    """`T` of length `2 n` whose only block is `H_n`, with these singular values."""
    n = len(values)
    T = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    T[n:, :n] = orthogonal(n) @ (values[:, None] * orthogonal(n))
    return T


def low_rank(length: int, rank: int, noise: float) -> Tensor:
    return randn(length, rank) @ randn(rank, length) + noise * randn(length, length)


def _spots(length: int) -> Tensor:
    T = torch.zeros(length, length, dtype=torch.float64)
    T[length // 2, 3], T[length - 1, 0] = 2.0, -0.25
    return T


for _name, (_length, _builder) in {
    "dense: noise": (61, lambda: ops.dense(randn(2, 61, 61))),
    "dense: positive": (61, lambda: ops.dense(rand(61, 61))),
    "dense: zero": (40, lambda: ops.dense(torch.zeros(40, 40))),
    "dense: zero above, anything on and above the diagonal": (40, lambda: ops.dense(randn(40, 40).triu())),
    "dense: ones": (45, lambda: ops.dense(torch.ones(45, 45))),
    "dense: shift": (41, lambda: ops.dense(torch.diag(torch.ones(40), -1))),
    "dense: two spots": (41, lambda: ops.dense(_spots(41))),
    "dense: orthogonal corner": (48, lambda: ops.dense(corner(torch.ones(24).double()))),
    "dense: clusters": (48, lambda: ops.dense(corner(torch.tensor([3.0, 0.02, 1e-5]).double().repeat_interleave(8)))),
    "dense: graded corner": (60, lambda: ops.dense(corner(powers(0, -9, 30)))),
    "dense: one large and many tiny": (
        80,
        lambda: ops.dense(corner(torch.cat([torch.ones(1), torch.full((39,), 4e-4)]).double())),
    ),
    "dense: one large and many tinier": (
        80,
        lambda: ops.dense(corner(torch.cat([torch.ones(1), torch.full((39,), 1e-6)]).double())),
    ),
    "dense: rank 16": (80, lambda: ops.dense(low_rank(80, 16, 0.0))),
    "dense: rank 16 plus noise": (80, lambda: ops.dense(low_rank(80, 16, 1e-6))),
    "dense: tiny": (50, lambda: ops.dense(1e-120 * randn(50, 50))),
    "dense: tiniest": (50, lambda: ops.dense(1e-290 * randn(50, 50))),
    "dense: huge": (50, lambda: ops.dense(1e80 * randn(50, 50))),
    "dense: hugest": (50, lambda: ops.dense(1e300 * randn(50, 50))),
    "dense: rows fall": (60, lambda: ops.dense(randn(60, 60) * powers(0, -8, 60)[:, None])),
    "dense: rows fall far": (60, lambda: ops.dense(randn(2, 60, 60) * powers(0, -60, 60)[:, None])),
    "dense: rows rise and columns fall": (
        60,
        lambda: ops.dense(randn(60, 60) * powers(-9, 0, 60)[:, None] * powers(0, -9, 60)),
    ),
    "dense: rows fall beyond squares": (60, lambda: ops.dense(randn(60, 60) * powers(0, -250, 60)[:, None])),
    "dense: packed documents": (61, lambda: ops.dense(randn(61, 61) * documents(61, 7, 30, 31))),
    "dense: faint second document": (
        60,
        lambda: ops.dense(
            randn(60, 60) * documents(60, 30) * torch.cat([torch.ones(30), torch.full((30,), 1e-17)]).double()
        ),
    ),
    "dense: float32": (40, lambda: ops.dense(torch.randn(2, 40, 40))),
}.items():
    case(_name, _length)(_builder)
for _length in (1, 2, 3, 5):
    case(f"dense: length {_length}", _length)(lambda length=_length: ops.dense(randn(2, length, length)))
