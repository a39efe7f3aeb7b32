"""The block builder: from a recurrence's own tensors to what each block of `c` tokens shows, never `T`.

Inside 16 rows, decays are running products of gates over dyadic segments, with one 16 x 16 product for each level.
Between such sub-blocks, one product with the writes of earlier rows is enough: carried to the end of the previous
sub-block, these are kept in the output `Z`. All factors are products of gates: nothing is divided, a number overflows
only where the recurrence itself overflows, a gate of exactly zero stays an exact zero, and the relative error is a few
ulp times `c`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....engine.blocks import Blocks, block_parts, cut
from ....operators.structure import Tokens
from ...sources import Source
from ..compilation import Variant
from ..launches import Launch
from .arguments import KINDS, arguments_of
from .tokens import at_block, inner16, load16, widened

# padded state sizes and tokens a block that kernels are compiled for ahead of time
SIZES = ((16, 16), (32, 32), (64, 32), (128, 64), (192, 64), (256, 64))


@triton.jit
def parts_kernel(
    Q, K, G, RATE, QS, KS, HEADS, QUNIT, KUNIT, length, H, q_repeat, k_repeat,
    q_b, q_t, q_h, q_n, k_b, k_t, k_h, k_n, g_b, g_t, g_h, g_n, rate_h, rate_n, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
    X, Z, PHI, Y, blocks,
    n: tl.constexpr, SHARED: tl.constexpr, RATED: tl.constexpr, LOG: tl.constexpr, BEFORE: tl.constexpr,
    QSCALED: tl.constexpr, KSCALED: tl.constexpr, N: tl.constexpr, c: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """One program for each block: `X`, `Z` `[items, c, N]`, `PHI` `[items, N]`, `Y` `[items, c, c]` (zero before)."""
    item = tl.program_id(0).to(tl.int64)
    row = item // blocks
    first = item % blocks * c
    Q, K, G, RATE, QS, KS = at_block(
        Q, K, G, RATE, QS, KS, HEADS, row, first, H, q_repeat, k_repeat,
        q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, g_h, rate_h, qs_b, qs_t, qs_h, ks_b, ks_t, ks_h,
    )  # fmt: skip
    q_unit, k_unit = tl.load(QUNIT + row), tl.load(KUNIT + row)
    X += item * c * N
    Z += item * c * N
    Y += item * c * c
    PHI += item * N
    r, w = tl.arange(0, 16), tl.arange(0, W)
    tile = r[:, None] * N + w[None, :]
    square = r[:, None] * c + r[None, :]
    left = (length - first).to(tl.int32)
    for begin in range(0, N, W):
        exists = begin + w < n
        # offsets of `begin` and `passed` in the inputs may need 64 bits; inside a tile and in the outputs 32 are enough
        n0 = first * 0 + begin
        rate = tl.full([W], 1.0, tl.float64)
        if RATED:
            rate = widened(RATE + n0 * rate_n + w * rate_n, exists, 0.0, left)
        carried = tl.full([W], 1.0, tl.float64)
        for passed in range(0, c, 16):
            i0 = first * 0 + passed
            q, k, a, after, last = load16(
                Q + i0 * q_t + n0 * q_n, K + i0 * k_t + n0 * k_n, G + i0 * g_t + n0 * g_n, QS + i0 * qs_t,
                KS + i0 * ks_t, rate, q_t, q_n, k_t, k_n, g_t, g_n, qs_t, ks_t, left - passed, exists,
                W, SHARED, LOG, BEFORE, QSCALED, KSCALED,
            )  # fmt: skip
            q *= q_unit
            k *= k_unit
            y = inner16(q, k, a, after, last, W, BEFORE)
            upto = tl.cumprod(a, 0)
            phi = tl.sum(tl.where((r == 15)[:, None], upto, 0.0), 0)
            if BEFORE:
                upto = tl.cumprod(last, 0)
            q = q * upto
            tl.store(X + passed * N + begin + tile, q * carried[None, :])
            own = y + tl.load(Y + passed * c + passed + square)
            # the load above and the store below may give one number to different lanes
            tl.debug_barrier()
            tl.store(Y + passed * c + passed + square, own)
            for j0 in range(0, passed, 16):
                z = tl.load(Z + j0 * N + begin + tile)
                before = tl.load(Y + passed * c + j0 + square)
                tl.debug_barrier()
                tl.store(Y + passed * c + j0 + square, tl.dot(q, tl.trans(z), out_dtype=tl.float64) + before)
                tl.store(Z + j0 * N + begin + tile, z * phi[None, :])
            tl.store(Z + passed * N + begin + tile, k * tl.cumprod(after, 0, reverse=True))
            # other lanes of this program read these rows of Z and Y below
            tl.debug_barrier()
            carried = carried * phi
        tl.store(PHI + begin + w, carried)


def padded(n: int) -> int:
    """The state size that kernels work with: further coordinates are zero, which changes nothing."""
    return 16 if n <= 16 else 32 if n <= 32 else -(-n // 64) * 64


def launch(N: int, heavy: bool) -> Launch:
    """One warp needs no barriers; rates, or a third copy of the gates, do not fit its registers beyond n = 16."""
    return Launch(2 if heavy and N > 16 else 1)


def build(source: Source, read_unit: Tensor, write_unit: Tensor, c: int, out: Blocks | None = None) -> Blocks:
    """Block parts of every head of a source, its blocks in a row: `items = N * ceil(L / c)`.

    Args:
        source: the recurrence.
        read_unit, write_unit: float64 `[N]`, multiplied onto reads and writes.
        c: tokens a block: 16, 32 or 64. Missing tokens of the last block are zero.
        out: contiguous memory for the result, or None.

    Returns:
        float64 `X`, `Z` `[items, c, padded n]`, `Y` `[items, c, c]`, `Phi` `[items, padded n]`; twin:
        `engine.blocks.block_parts`.
    """
    N = padded(source.state_size)
    blocks = -(-source.length // c)
    items = len(source.heads) * blocks
    if out is None:
        out = empty(items, N, c, source.read.device)
    out.Y.zero_()
    arguments, flags = arguments_of(source, read_unit, write_unit)
    rule = launch(N, flags["RATED"] or flags["BEFORE"])
    pieces = (out.X, out.Z, out.Phi, out.Y)
    parts_kernel[(items,)](*arguments, *pieces, blocks, **flags, N=N, c=c, W=16, **rule.options())
    return out


def empty(items: int, n: int, c: int, device: torch.device, matrices: bool = False) -> Blocks:
    """Memory for the parts of so many blocks, with diagonal `Phi` or with `matrices`."""
    shapes = (c, n), (c, c), (c, n), (n, n) if matrices else (n,)
    return Blocks(*(torch.empty(items, *shape, dtype=torch.float64, device=device) for shape in shapes))


def build_in_torch(tokens: Tokens, c: int) -> Blocks:
    """The twin of `build`, from upcast tokens: the same arrays, without padding of the state."""
    parts = block_parts(cut(tokens, c))
    return Blocks(parts.X.flatten(0, 1), parts.Y.flatten(0, 1), parts.Z.flatten(0, 1), parts.Phi.flatten(0, 1))


def variants() -> Iterator[Variant]:
    for kind, (arguments, flags) in KINDS.items():
        yield from variants_of(kind, arguments, flags)


def variants_of(kind: str, arguments: dict[str, str], flags: dict[str, Any]) -> Iterator[Variant]:
    """The block builder for one kind of sources, at all sizes."""
    for n, c in SIZES:
        out = dict.fromkeys(("X", "Z", "PHI", "Y"), "*fp64") | {"blocks": "i32"}
        constants = {"n": n, "N": n, "c": c, "W": 16} | flags
        heavy = flags["RATED"] or flags["BEFORE"]
        yield Variant(f"parts {kind} n={n} c={c}", parts_kernel, arguments | out, constants, launch(n, heavy))
