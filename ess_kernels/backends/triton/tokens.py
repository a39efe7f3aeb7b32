"""Sixteen tokens of a recurrence in registers: what every kernel that starts from a `Source` loads."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def at_block(
    Q, K, G, RATE, QS, KS, HEADS, row, first, H, q_repeat, k_repeat,
    q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, g_h, rate_h, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
):  # fmt: skip
    """Pointers at token `first` of head `row`: 64-bit offsets are scalars, inside a tile 32 bits do."""
    head = tl.load(HEADS + row)
    b, h = head // H, head % H
    Q += b * q_b + (h // q_repeat) * q_h + first * q_t
    K += b * k_b + (h // k_repeat) * k_h + first * k_t
    G += b * g_b + h * g_h + first * g_t
    RATE += h * rate_h
    QS += b * qs_b + h * qs_h + first * qs_t
    KS += b * ks_b + h * ks_h + first * ks_t
    return Q, K, G, RATE, QS, KS


@triton.jit
def _rows(X, SCALE, stride_t, stride_n, scale_stride, alive, exists, W: tl.constexpr, SCALED: tl.constexpr):
    """16 rows of a strided array as float64, times one number a row."""
    r, w = tl.arange(0, 16), tl.arange(0, W)
    x = tl.load(
        X + (r[:, None] * stride_t + w[None, :] * stride_n), mask=alive[:, None] & exists[None, :], other=0.0
    ).to(tl.float64)  # fmt: skip
    if SCALED:
        x = x * tl.load(SCALE + r * scale_stride, mask=alive, other=0.0).to(tl.float64)[:, None]
    return x


@triton.jit
def _gates(G, rate, stride_t, stride_n, alive, exists, W: tl.constexpr, SHARED: tl.constexpr, LOG: tl.constexpr):
    """Transitions of 16 rows; one where there is no token."""
    r, w = tl.arange(0, 16), tl.arange(0, W)
    neutral: tl.constexpr = 0.0 if LOG else 1.0
    if SHARED:
        g = tl.load(G + r * stride_t, mask=alive, other=neutral).to(tl.float64)[:, None]
        # also where coordinates share it: scans of a single column fail to compile in Triton 3.6
        g = g * rate[None, :]
    else:
        g = tl.load(
            G + (r[:, None] * stride_t + w[None, :] * stride_n), mask=alive[:, None] & exists[None, :], other=neutral
        ).to(tl.float64)  # fmt: skip
    return tl.exp(g) if LOG else g


@triton.jit
def within16(q, k, upto, after, h: tl.constexpr, W: tl.constexpr):
    """One level inside 16 rows: rows in the right half of a segment of 2h, columns in its left half.

    `upto` and `after` `[16, W]` are the gates to be multiplied up to a row and after a column.
    """
    r = tl.arange(0, 16)
    right = ((r // h) % 2 == 1)[:, None]
    left = tl.where((r % h == h - 1)[:, None], 1.0, after)
    left = tl.reshape(tl.cumprod(tl.reshape(left, [16 // h, h, W]), 1, reverse=True), [16, W])
    reach = tl.reshape(tl.cumprod(tl.reshape(upto, [16 // h, h, W]), 1), [16, W])
    y = tl.dot(
        tl.where(right, q * reach, 0.0), tl.trans(tl.where(right, 0.0, k * left)), out_dtype=tl.float64
    )  # fmt: skip
    return tl.where((r // (2 * h))[:, None] == (r // (2 * h))[None, :], y, 0.0)


@triton.jit
def load16(
    Q, K, G, QS, KS, rate, q_t, q_n, k_t, k_n, g_t, g_n, qs_t, ks_t, rest, exists,
    W: tl.constexpr, SHARED: tl.constexpr, LOG: tl.constexpr, BEFORE: tl.constexpr,
    QSCALED: tl.constexpr, KSCALED: tl.constexpr,
):  # fmt: skip
    """Reads, writes and transitions `[16, W]` of 16 tokens of which `rest` exist.

    Also the transitions of the next rows and, if `BEFORE`, of the rows before (one at the ends): shifted copies, for
    registers cannot be shifted.
    """
    r = tl.arange(0, 16)
    alive = r < rest
    q = _rows(Q, QS, q_t, q_n, qs_t, alive, exists, W, QSCALED)
    k = _rows(K, KS, k_t, k_n, ks_t, alive, exists, W, KSCALED)
    a = _gates(G, rate, g_t, g_n, alive, exists, W, SHARED, LOG)
    after = _gates(G + g_t, rate, g_t, g_n, (r + 1 < rest) & (r < 15), exists, W, SHARED, LOG)
    if BEFORE:
        last = _gates(G - g_t, rate, g_t, g_n, (r - 1 < rest) & (r > 0), exists, W, SHARED, LOG)
    else:
        last = a
    return q, k, a, after, last


@triton.jit
def inner16(q, k, a, after, last, W: tl.constexpr, BEFORE: tl.constexpr):
    """The 16 rows' own strictly lower `T`, `[16, 16]`."""
    r = tl.arange(0, 16)
    y = tl.zeros([16, 16], tl.float64)
    for level in tl.static_range(4):
        if BEFORE:
            y += within16(q, k, tl.where((r % 2**level == 0)[:, None], 1.0, last), after, 2**level, W)
        else:
            y += within16(q, k, a, after, 2**level, W)
    return y
