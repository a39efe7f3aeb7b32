"""Sixteen tokens of a recurrence in registers: what every kernel that starts from a `Source` loads."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def at_block(
    Q, K, G, RATE, QS, KS, HEADS, row, first, H, q_repeat, k_repeat,
    q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, g_h, rate_h, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
):  # fmt: skip
    """Pointers to token `first` of head `row`: scalar offsets of 64 bits. Inside a tile 32 bits are enough."""
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
def widened(X, mask, other: tl.constexpr, rest):
    """A load as float64; `other` where the mask is off."""
    if X.dtype.scalar.element_ty.primitive_bitwidth < 32:
        # Triton traces a float64 operand of a product back to the load that it came from, and has no layout for loads
        # of fewer than 32 bits. It cannot trace through a branch. This one skips loads only where no token is left
        x = tl.full(mask.shape, other, tl.float64)
        if rest > 0:
            x = tl.load(X, mask=mask, other=other).to(tl.float64)
    else:
        x = tl.load(X, mask=mask, other=other).to(tl.float64)
    return x


@triton.jit
def _rows(X, SCALE, stride_t, stride_n, scale_stride, rest, exists, W: tl.constexpr, SCALED: tl.constexpr):
    """16 rows of a strided array as float64, times one number a row."""
    r, w = tl.arange(0, 16), tl.arange(0, W)
    alive = r < rest
    x = widened(X + (r[:, None] * stride_t + w[None, :] * stride_n), alive[:, None] & exists[None, :], 0.0, rest)
    if SCALED:
        x = x * widened(SCALE + r * scale_stride, alive, 0.0, rest)[:, None]
    return x


@triton.jit
def _gates(G, rate, stride_t, stride_n, alive, exists, rest, W: tl.constexpr, SHARED: tl.constexpr, LOG: tl.constexpr):
    """Transitions of 16 rows; one where there is no token."""
    r, w = tl.arange(0, 16), tl.arange(0, W)
    neutral: tl.constexpr = 0.0 if LOG else 1.0
    if SHARED:
        g = widened(G + r * stride_t, alive, neutral, rest)[:, None]
        # also where all rates are 1, to make a tile of the column: scans of one column do not compile in Triton 3.6
        g = g * rate[None, :]
    else:
        mask = alive[:, None] & exists[None, :]
        g = widened(G + (r[:, None] * stride_t + w[None, :] * stride_n), mask, neutral, rest)
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

    Also the transitions of the next rows and, if `BEFORE`, of the rows before (one at the ends). These are loaded again
    from shifted addresses: rows in registers cannot be shifted.
    """
    r = tl.arange(0, 16)
    q = _rows(Q, QS, q_t, q_n, qs_t, rest, exists, W, QSCALED)
    k = _rows(K, KS, k_t, k_n, ks_t, rest, exists, W, KSCALED)
    a = _gates(G, rate, g_t, g_n, r < rest, exists, rest, W, SHARED, LOG)
    after = _gates(G + g_t, rate, g_t, g_n, (r + 1 < rest) & (r < 15), exists, rest, W, SHARED, LOG)
    if BEFORE:
        last = _gates(G - g_t, rate, g_t, g_n, (r - 1 < rest) & (r > 0), exists, rest, W, SHARED, LOG)
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
