"""The boundary of a block eliminated, for one tolerance or one shift a program: what is left is the staircase's root.

`N = I -+ S / tau^2` (counts, log-determinants) is factorised unpivoted in panels of 16, left-looking, next to its right
hand sides `[F^T X^T / tau, F^T Phi^T Q Z^T / tau^2]`; then come the products that make `R`, `K` and `C`. The factored
rows lie in scratch memory of each program, which a GPU keeps in its caches. Therefore only as many programs are
launched as run at once, and each takes one pair of a block and a shift after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....engine.elimination import eliminate as unpivoted
from ..compilation import Variant
from ..launches import Launch
from ..staircase.descent import Roots
from ..tiles import (
    diagonal16,
    factor16,
    growth16,
    indices16,
    larger,
    largest,
    ldl16,
    least_row,
    log_of_pivots16,
    magnitude16,
    reciprocal,
    smaller,
    solve16,
)
from .parts import SIZES


@triton.jit
def _solved(t, U, DI, p, j, live, ld: tl.constexpr, W: tl.constexpr):
    """Columns `j..j+W` of panel `p` after the panels before it: `L^-1 (t - sum_q U_qp^T D_q U_qj)`.

    Those that are `live` `[W]` are written to `U`, where the panel's factor lies too.
    """
    i, w = tl.arange(0, 16), tl.arange(0, W)
    for q in range(0, p, 16):
        u = tl.load(U + q * ld + p + i[:, None] * ld + i[None, :]) * tl.load(DI + q + i)[:, None]
        v = tl.load(U + q * ld + j + i[:, None] * ld + w[None, :])
        t -= tl.dot(tl.trans(u), v, out_dtype=tl.float64)
    row = U + p * ld
    at = row + j + i[:, None] * ld + w[None, :]
    tl.store(at, t, mask=live[None, :])
    solve16(row + p, ld, row + j + w, ld, live)
    return tl.load(at, mask=live[None, :], other=0.0)


@triton.jit
def boundary_kernel(
    S, AE, G, Y, WHICH, TAU, BROUGHT, RKC, VALUE, GROWTH, LEAST, U, DI, pairs,
    n: tl.constexpr, c: tl.constexpr, W: tl.constexpr, DEFINITE: tl.constexpr,
):  # fmt: skip
    """Pairs `program_id, program_id + programs, ...`; `BROUGHT` is the growth that the data come with."""
    ld: tl.constexpr = n + 2 * c
    sign: tl.constexpr = 1.0 if DEFINITE else -1.0
    slot = tl.program_id(0).to(tl.int64)
    U += slot * n * ld
    DI += slot * n
    i, w = tl.arange(0, 16), tl.arange(0, W)
    ii, jj = indices16()
    one = tl.where(ii == jj, 1.0, 0.0)
    pair = slot
    while pair < pairs:
        item = tl.load(WHICH + pair)
        inverse_tau = 1.0 / tl.load(TAU + pair)
        square = sign * inverse_tau * inverse_tau
        value = inverse_tau * 0.0
        growth = inverse_tau * 0.0
        least = inverse_tau * 0.0 + 1.0
        for p in range(0, n, 16):
            a = one + square * tl.load(S + item * n * n + p * n + p + ii * n + jj)
            for q in range(0, p, 16):
                u = tl.load(U + q * ld + p + i[:, None] * ld + i[None, :])
                a -= tl.dot(tl.trans(u * tl.load(DI + q + i)[:, None]), u, out_dtype=tl.float64)
            B = ldl16(a)
            d = diagonal16(B)
            di = reciprocal(d)
            tl.store(DI + p + i, di)
            if DEFINITE:
                value += log_of_pivots16(d)
            else:
                value += tl.sum((d < 0.0).to(tl.float64), 0)
            update = tl.zeros([W], tl.float64)
            magnitude, inside = magnitude16(B), growth16(B, di) + 0.0 * tl.sum(d, 0)
            # the barrier makes the compiler finish these few numbers here: it must not keep their tiles in registers
            tl.debug_barrier()
            tl.store(U + p * ld + p + ii * ld + jj, factor16(B, di))
            for j in range((p + 16) // W * W, n, W):
                t = square * tl.load(S + item * n * n + p * n + j + i[:, None] * n + w[None, :])
                t = _solved(t, U, DI, p, j, j + w >= p + 16, ld, W)
                if not DEFINITE:
                    update = larger(update, _updates(t, di))
                    magnitude = larger(magnitude, largest(t, 1))
            for j in range(0, 2 * c, W):
                scale = tl.where(j + w < c, inverse_tau, inverse_tau * inverse_tau)
                t = scale[None, :] * tl.load(AE + item * n * 2 * c + p * 2 * c + j + i[:, None] * 2 * c + w[None, :])
                t = _solved(t, U, DI, p, n + j, w >= 0, ld, W)
                if not DEFINITE:
                    update = larger(update, _updates(t, di))
                    magnitude = larger(magnitude, largest(t, 1))
            if not DEFINITE:
                growth += larger(largest(update), inside)
                least = smaller(least, least_row(magnitude))
            # rows and reciprocals of this panel are read by other lanes below
            tl.debug_barrier()
        out = RKC + pair * 3 * c * c
        for r in range(0, c, 16):
            for j in range(0, c, W):
                R = tl.zeros([16, W], tl.float64)
                K = tl.zeros([16, W], tl.float64)
                C = tl.zeros([16, W], tl.float64)
                for q in range(0, n, 16):
                    row = U + q * ld + n
                    di = tl.load(DI + q + i)[:, None]
                    ua = tl.trans(tl.load(row + r + i[:, None] * ld + i[None, :]) * di)
                    ue = tl.trans(tl.load(row + c + r + i[:, None] * ld + i[None, :]) * di)
                    va = tl.load(row + j + i[:, None] * ld + w[None, :])
                    ve = tl.load(row + c + j + i[:, None] * ld + w[None, :])
                    R += tl.dot(ua, va, out_dtype=tl.float64)
                    K += tl.dot(ua, ve, out_dtype=tl.float64)
                    C += tl.dot(ue, ve, out_dtype=tl.float64)
                unity = tl.where((r + i)[:, None] == (j + w)[None, :], 1.0, 0.0)
                at = r * c + j + i[:, None] * c + w[None, :]
                # barriers keep the parts apart: registers are too few for all their addresses and loads at once
                tl.store(out + at, sign * unity + R)
                tl.debug_barrier()
                tl.store(out + c * c + at, inverse_tau * tl.load(Y + item * c * c + at) - sign * K)
                tl.debug_barrier()
                tl.store(out + 2 * c * c + at, C - unity - square * tl.load(G + item * c * c + at))
        tl.store(VALUE + pair, value)
        if not DEFINITE:
            tl.store(GROWTH + pair, tl.load(BROUGHT + pair) + growth)
            tl.store(LEAST + pair, least)
        # the next pair overwrites the scratch
        tl.debug_barrier()
        pair += tl.num_programs(0)


@triton.jit
def _updates(t, di):
    """By how much each column's diagonal entry is changed by 16 rows, all terms positive."""
    return tl.sum(tl.abs(t * t * di[:, None]), 0)


class Outside(NamedTuple):
    """What a block's boundary consists of, for `items` blocks: float64, contiguous.

    Attributes:
        S: `[items, n, n]`, `F^T Phi^T Q Phi F`.
        AE: `[items, n, 2c]`, `[F^T X^T, F^T Phi^T Q Z^T]`.
        G: `[items, c, c]`, `Z Q Z^T`.
        Y: `[items, c, c]`, the block's own strictly lower `T`.
    """

    S: Tensor
    AE: Tensor
    G: Tensor
    Y: Tensor


def launch(n: int, c: int) -> tuple[int, Launch]:
    """Width of a tile, and warps.

    With 64 states in blocks of 64 tokens one warp has too few registers. From n = 128 on programs have more warps, so
    that fewer run at once: the factored rows of all of them must fit the caches. With 32 states a wider tile does not
    fit the registers of sm_80.
    """
    return (64, Launch(4)) if n >= 128 or n == c == 64 else (32 if n == 64 else 16, Launch(1))


def programs(device: torch.device, launch: Launch) -> int:
    """As many as run at once: two wide or eight narrow ones a multiprocessor; a few in the interpreter."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count * (8 // launch.num_warps)


def eliminate(
    outside: Outside, which: Tensor, tau: Tensor, growth: Tensor, place: Tensor, limit: Tensor, definite: bool
) -> Roots:
    """The staircase's roots of `J` pairs of a block and a tolerance (or a shift).

    Args:
        outside: the blocks.
        which: int64 `[J]`, the block of each pair.
        tau: float64 `[J]`, tolerances (counts) or square roots of shifts (`definite`).
        growth: float64 `[J]`, the growth that the data come with; the result holds what the elimination adds.
        place, limit: handed on to the roots.

    Twin: `eliminate_in_torch`.
    """
    n, c, J = outside.S.shape[1], outside.Y.shape[1], len(which)
    width, rule = launch(n, c)
    slots = max(1, min(J, programs(tau.device, rule)))
    new = outside.S.new_empty
    # growth and least row of log-determinants are not written
    rkc, value, total, least = new(J, 3, c, c), new(J), growth if definite else new(J), new(J)
    rows, reciprocals = new(slots, n, n + 2 * c), new(slots, n)
    if J:
        boundary_kernel[(slots,)](
            *outside, which, tau, growth, rkc, value, total, least, rows, reciprocals, J,
            n=n, c=c, W=width, DEFINITE=definite, **rule.options(),
        )  # fmt: skip
    return Roots(rkc, value, total, least, place, limit)


def eliminate_in_torch(
    outside: Outside, which: Tensor, tau: Tensor, growth: Tensor, place: Tensor, limit: Tensor, definite: bool
) -> Roots:
    """The twin of `eliminate`."""
    sign = 1.0 if definite else -1.0
    S, AE, G, Y = (x[which] for x in outside)
    c, n = Y.shape[1], S.shape[1]
    inverse = (1 / tau)[:, None, None]
    units = torch.cat([inverse.expand(-1, 1, c), inverse.square().expand(-1, 1, c)], 2)
    one = torch.eye(n, dtype=S.dtype, device=S.device)
    out = unpivoted(torch.cat([one + sign * inverse.square() * S, AE * units], -1))
    product = out.scaled.mT @ out.rows
    one = one.new_ones(c).diag()
    R = sign * one + product[:, :c, :c]
    K = inverse * Y - sign * product[:, :c, c:]
    C = product[:, c:, c:] - one - sign * inverse.square() * G
    value = out.pivots.log().sum(1) if definite else (out.pivots < 0).sum(1).to(S.dtype)
    return Roots(torch.stack([R, K, C], 1), value, growth + out.growth, out.least.clamp_max(1.0), place, limit)


def variants() -> Iterator[Variant]:
    pointers = ["S", "AE", "G", "Y", "TAU", "BROUGHT", "RKC", "VALUE", "GROWTH", "LEAST", "U", "DI"]
    arguments = dict.fromkeys(pointers, "*fp64") | {"WHICH": "*i64", "pairs": "i32"}
    # tokens that are cut by the engine, and compressed operators in their longer blocks
    for n, c in (*SIZES, (16, 64), (32, 64), (64, 64)):
        width, rule = launch(n, c)
        for definite in (False, True):
            kind = "log-determinants" if definite else "counts"
            constants = {"n": n, "c": c, "W": width, "DEFINITE": definite}
            yield Variant(f"boundary {kind} n={n} c={c}", boundary_kernel, arguments, constants, rule)
