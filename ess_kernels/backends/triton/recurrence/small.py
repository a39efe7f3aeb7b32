"""Small states (`n <= 16`) in blocks of 16 tokens: everything between the caller's tensors and the staircase's roots.

Mamba has hundreds of thousands of such blocks, each too small for a batched product to pay. One warp takes a block from
its tokens to `R`, `K`, `C` for every tolerance or shift without leaving its registers. Only the Gramians at the edges
come from memory: a scan runs first. It loads the tokens too, for storing them in float64 would cost more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...sources import Source
from ..compilation import Variant
from ..launches import Launch
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
from .arguments import KINDS, arguments_of
from .roots import EPS, cholesky16, root16, shift
from .tokens import at_block, inner16, load16, widened

# one warp works on a block, or on a head in the scans
LAUNCH = Launch(1)
# constants, because a Python number among the other arguments would be rounded to float32
ROOT = {"root_shift": shift(16), "root_factor": shift(16) / EPS / 2}


@triton.jit
def _carried(q, k, a, after, last, BEFORE: tl.constexpr):
    """`X`, `Z` and `Phi` of 16 tokens."""
    r = tl.arange(0, 16)
    upto = tl.cumprod(a, 0)
    phi = tl.sum(tl.where((r == 15)[:, None], upto, 0.0), 0)
    if BEFORE:
        upto = tl.cumprod(last, 0)
    return q * upto, k * tl.cumprod(after, 0, reverse=True), phi


@triton.jit
def scan16_kernel(
    Q, K, G, RATE, QS, KS, HEADS, QUNIT, KUNIT, length, H, q_repeat, k_repeat,
    q_b, q_t, q_h, q_n, k_b, k_t, k_h, k_n, g_b, g_t, g_h, g_n, rate_h, rate_n, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
    OUT, blocks,
    n: tl.constexpr, SHARED: tl.constexpr, RATED: tl.constexpr, LOG: tl.constexpr, BEFORE: tl.constexpr,
    QSCALED: tl.constexpr, KSCALED: tl.constexpr, FORWARD: tl.constexpr,
):  # fmt: skip
    """One program a head: `P` at the left (`FORWARD`) or `Q` at the right edge of its blocks, `[items, 16, 16]`."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.load((KUNIT if FORWARD else QUNIT) + row)
    Q, K, G, RATE, QS, KS = at_block(
        Q, K, G, RATE, QS, KS, HEADS, row, 0, H, q_repeat, k_repeat,
        q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, g_h, rate_h, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
    )  # fmt: skip
    w = tl.arange(0, 16)
    ii, jj = indices16()
    rate = tl.full([16], 1.0, tl.float64)
    if RATED:
        rate = widened(RATE + w * rate_n, w < n, 0.0, length)
    gramian = tl.zeros([16, 16], tl.float64)
    step = 0
    while step < blocks:
        block = (step if FORWARD else blocks - 1 - step) + row * 0
        tl.store(OUT + (row * blocks + block) * 256 + ii * 16 + jj, gramian)
        first = block * 16
        q, k, a, after, last = load16(
            Q + first * q_t, K + first * k_t, G + first * g_t, QS + first * qs_t, KS + first * ks_t, rate,
            q_t, q_n, k_t, k_n, g_t, g_n, qs_t, ks_t, (length - first).to(tl.int32), w < n,
            16, SHARED, LOG, BEFORE, QSCALED, KSCALED,
        )  # fmt: skip
        X, Z, phi = _carried(q, k, a, after, last, BEFORE)
        rows = (Z if FORWARD else X) * unit
        gramian = phi[:, None] * gramian * phi[None, :] + tl.dot(tl.trans(rows), rows, out_dtype=tl.float64)
        step += 1


@triton.jit
def _norm_bound16(A):
    """As `engine.boundary.norm_bound` for one symmetric 16 x 16 matrix."""
    peak = largest(largest(A, 1))
    peak = tl.where(peak < 1e-300, 1e-300, peak)
    A = A / peak
    A = tl.dot(A, A, out_dtype=tl.float64)
    A = tl.dot(A, A, out_dtype=tl.float64)
    square = tl.sum(tl.sum(A * A, 1), 0)
    return peak * tl.sqrt(tl.sqrt(tl.sqrt(square)))


@triton.jit
def block16_kernel(
    Q, K, G, RATE, QS, KS, HEADS, QUNIT, KUNIT, length, H, q_repeat, k_repeat,
    q_b, q_t, q_h, q_n, k_b, k_t, k_h, k_n, g_b, g_t, g_h, g_n, rate_h, rate_n, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
    REACH, SEE, ITEM, TAU, SLOT, RKC, VALUE, GROWTH, LEAST, COARSE, SCALE, blocks, shifts,
    n: tl.constexpr, SHARED: tl.constexpr, RATED: tl.constexpr, LOG: tl.constexpr, BEFORE: tl.constexpr,
    QSCALED: tl.constexpr, KSCALED: tl.constexpr, DEFINITE: tl.constexpr,
    root_shift: tl.constexpr, root_factor: tl.constexpr,
):  # fmt: skip
    """One program a block, `ITEM[program]`. Its shift `m` goes to node `SLOT[program, m]`, or nowhere if that is -1.

    `TAU` `[programs, shifts]` holds tolerances, or (`DEFINITE`) the nodes of a quadrature in units of the block's own
    scale. `COARSE` `[programs]`: what the root's shift adds to a squared singular value, at most, in units of eps;
    (`DEFINITE`) with its rounding errors, and `SCALE` `[programs]` is the block's scale.
    """
    program = tl.program_id(0).to(tl.int64)
    item = tl.load(ITEM + program)
    row = item // blocks
    first = item % blocks * 16
    Q, K, G, RATE, QS, KS = at_block(
        Q, K, G, RATE, QS, KS, HEADS, row, first, H, q_repeat, k_repeat,
        q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, g_h, rate_h, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
    )  # fmt: skip
    w = tl.arange(0, 16)
    ii, jj = indices16()
    square = ii * 16 + jj
    # the 32 columns of two tiles that lie one after the other
    columns = tl.arange(0, 32) // 16 * 256 + tl.arange(0, 32) % 16
    one = tl.where(ii == jj, 1.0, 0.0)
    rate = tl.full([16], 1.0, tl.float64)
    if RATED:
        rate = widened(RATE + w * rate_n, w < n, 0.0, length)
    q, k, a, after, last = load16(
        Q, K, G, QS, KS, rate, q_t, q_n, k_t, k_n, g_t, g_n, qs_t, ks_t, (length - first).to(tl.int32), w < n,
        16, SHARED, LOG, BEFORE, QSCALED, KSCALED,
    )  # fmt: skip
    q *= tl.load(QUNIT + row)
    k *= tl.load(KUNIT + row)
    Y = inner16(q, k, a, after, last, 16, BEFORE)
    X, Z, phi = _carried(q, k, a, after, last, BEFORE)

    # the barrier keeps later loads from being moved up among the tokens: there are not enough registers for both
    tl.debug_barrier()
    P = tl.load(REACH + item * 256 + square)
    reached = diagonal16(P)
    P = tl.where(ii == jj, P * (1.0 + root_shift), P)
    F = root16(cholesky16(P))
    seen = tl.load(SEE + item * 256 + square)
    carried = F * phi[None, :]
    QZ = tl.dot(seen, tl.trans(Z), out_dtype=tl.float64)
    S = tl.dot(tl.dot(carried, seen, out_dtype=tl.float64), tl.trans(carried), out_dtype=tl.float64)
    A0 = tl.dot(F, tl.trans(X), out_dtype=tl.float64)
    E0 = tl.dot(carried, QZ, out_dtype=tl.float64)
    corner = tl.dot(Z, QZ, out_dtype=tl.float64)
    sign: tl.constexpr = 1.0 if DEFINITE else -1.0
    if DEFINITE:
        own = _norm_bound16(S) + _norm_bound16(tl.dot(tl.trans(A0), A0, out_dtype=tl.float64))
        own += _norm_bound16(corner) + _norm_bound16(tl.dot(tl.trans(Y), Y, out_dtype=tl.float64))
        tl.store(SCALE + program, own)
        own = tl.where(own == 0.0, 1.0, own)
    mass = tl.sum(tl.where(ii == jj, seen, 0.0), 0)
    size = largest(tl.sum(carried * carried * mass[None, :], 1))
    coarse = tl.sum(reached * diagonal16(phi[:, None] * seen * phi[None, :]), 0) * root_factor
    brought = coarse + larger(size, largest(tl.sum(Z * Z * mass[None, :], 1)))
    tl.store(COARSE + program, brought if DEFINITE else coarse)
    m = 0
    while m < shifts:
        slot = tl.load(SLOT + program * shifts + m)
        if slot >= 0:
            tau = tl.load(TAU + program * shifts + m)
            if DEFINITE:
                tau = tl.sqrt(tau * own)
            inverse_tau = 1.0 / tau
            B = ldl16(one + sign * inverse_tau * inverse_tau * S)
            d = diagonal16(B)
            di = reciprocal(d)
            if DEFINITE:
                tl.store(VALUE + slot, log_of_pivots16(d))
            else:
                tl.store(VALUE + slot, tl.sum((d < 0.0).to(tl.float64), 0))
                magnitude, inside = magnitude16(B), growth16(B, di) + 0.0 * tl.sum(d, 0)
                # the barrier makes the compiler finish these numbers here: it must not keep their tiles in registers
                tl.debug_barrier()
            # the factor lies where R will be, the right hand sides where K and C will be
            node = RKC + slot * 768 + square
            tl.store(node, factor16(B, di))
            tl.store(node + 256, A0 * inverse_tau)
            tl.store(node + 512, E0 * (inverse_tau * inverse_tau))
            solve16(RKC + slot * 768, 16, RKC + slot * 768 + 256 + columns, 16, columns >= 0)
            Ua, Ue = tl.load(node + 256), tl.load(node + 512)
            tl.debug_barrier()
            Va, Ve = Ua * di[:, None], Ue * di[:, None]
            tl.store(node, sign * one + tl.dot(tl.trans(Ua), Va, out_dtype=tl.float64))
            tl.store(node + 256, inverse_tau * Y - sign * tl.dot(tl.trans(Ua), Ve, out_dtype=tl.float64))
            tl.store(
                node + 512,
                tl.dot(tl.trans(Ue), Ve, out_dtype=tl.float64) - one - sign * inverse_tau * inverse_tau * corner,
            )
            if not DEFINITE:
                rows = larger(largest(Ua, 1), largest(Ue, 1))
                tl.store(LEAST + slot, smaller(least_row(larger(magnitude, rows)), 1.0))
                growth = larger(largest(tl.sum(tl.abs(Ua * Va), 0)), largest(tl.sum(tl.abs(Ue * Ve), 0)))
                growth = larger(growth, inside) + brought * inverse_tau * inverse_tau
                tl.store(GROWTH + slot, growth)
        m += 1


def gramians(source: Source, read_unit: Tensor, write_unit: Tensor) -> tuple[Tensor, Tensor]:
    """`P` at the left and `Q` at the right edges of all blocks of 16 tokens, `[items, 16, 16]`; twin: `scans`."""
    blocks = -(-source.length // 16)
    P, Q = (source.read.new_empty(len(source.heads) * blocks, 16, 16, dtype=torch.float64) for _ in range(2))
    arguments, flags = arguments_of(source, read_unit, write_unit)
    for out, forward in ((P, True), (Q, False)):
        scan16_kernel[(len(source.heads),)](*arguments, out, blocks, **flags, FORWARD=forward, **LAUNCH.options())
    return P, Q


class Eliminated(NamedTuple):
    """Nodes `rkc` `[nodes, 3, 16, 16]`, `value`, `growth` and `least` `[nodes]`, `coarse` and `scale` by block (see the
    kernel)."""

    rkc: Tensor
    value: Tensor
    growth: Tensor
    least: Tensor
    coarse: Tensor
    scale: Tensor


def eliminate(
    source: Source, read_unit: Tensor, write_unit: Tensor, P: Tensor, Q: Tensor, item: Tensor, tau: Tensor,
    wanted: Tensor, definite: bool,
) -> Eliminated:  # fmt: skip
    """From tokens to the staircase's roots, for the pairs `wanted` `[J, M]` of blocks `item` `[J]` and shifts.

    Args:
        source, read_unit, write_unit: as in `parts.build`.
        P, Q: from `gramians`.
        item: int64 `[J]`.
        tau: float64 `[J, M]`, tolerances, or nodes in units of each block's own scale (`definite`).
        wanted: bool `[J, M]`; the nodes come in the order of `wanted.nonzero()`.

    Twin: `parts`, `roots` and `boundary` one after the other.
    """
    J, M = wanted.shape
    slot = torch.where(wanted, wanted.flatten().cumsum(0).view(J, M) - 1, -1)
    nodes = int(slot.max()) + 1 if wanted.numel() else 0
    new = P.new_empty
    out = Eliminated(new(nodes, 3, 16, 16), new(nodes), new(nodes), new(nodes), new(J), new(J))
    arguments, flags = arguments_of(source, read_unit, write_unit)
    if nodes:
        block16_kernel[(J,)](
            *arguments, P, Q, item, tau.contiguous(), slot, *out, -(-source.length // 16), M,
            **flags, **ROOT, DEFINITE=definite, **LAUNCH.options(),
        )  # fmt: skip
    return out


def variants() -> Iterator[Variant]:
    for kind, (arguments, flags) in KINDS.items():
        constants = {"n": 16} | flags
        scan = arguments | {"OUT": "*fp64", "blocks": "i32"}
        for forward in (True, False):
            name = f"scan16 {kind} {'forward' if forward else 'backward'}"
            yield Variant(name, scan16_kernel, scan, constants | {"FORWARD": forward}, LAUNCH)
        block = arguments | {"blocks": "i32"}
        block |= dict.fromkeys(("REACH", "SEE", "TAU", "RKC", "VALUE", "GROWTH", "LEAST", "COARSE", "SCALE"), "*fp64")
        block |= {"ITEM": "*i64", "SLOT": "*i64", "shifts": "i32"}
        for definite in (False, True):
            name = f"block16 {kind} {'log-determinants' if definite else 'counts'}"
            yield Variant(name, block16_kernel, block, constants | ROOT | {"DEFINITE": definite}, LAUNCH)
