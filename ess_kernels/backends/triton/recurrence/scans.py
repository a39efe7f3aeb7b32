"""Gramians at the edges of all blocks: `P` of what earlier writes put into the state, `Q` of what later reads see.

`P_e = Phi P_a Phi + Z^T Z` forward and `Q_a = Phi Q_e Phi + X^T X` backward, for diagonal `Phi`. Serial over a head's
blocks, parallel over heads, directions and tiles of the matrix, which stay in registers.

Where `Phi` is a matrix, a tile of `Phi P_a Phi^T` needs all of `P_a`, which other programs have made: then there is one
launch for each block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....engine.blocks import Blocks
from ..compilation import Variant
from ..launches import Launch


@triton.jit
def scan_kernel(X, Z, PHI, P, Q, blocks, n: tl.constexpr, c: tl.constexpr, W: tl.constexpr):
    """One program for each (head, tile, direction); `P`, `Q` `[items, n, n]` are stored before each block is passed."""
    first = tl.program_id(0).to(tl.int64) * blocks
    tiles: tl.constexpr = n // W
    i = (tl.program_id(1) // tiles) * W + tl.arange(0, W)
    j = (tl.program_id(1) % tiles) * W + tl.arange(0, W)
    forward = tl.program_id(2) == 0
    rows = tl.where(forward, Z, X)
    out = tl.where(forward, P, Q)
    r = tl.arange(0, c)
    gramian = tl.zeros([W, W], tl.float64)
    step = 0
    while step < blocks:
        item = first + tl.where(forward, step, blocks - 1 - step)
        tl.store(out + item * n * n + i[:, None] * n + j[None, :], gramian)
        block = rows + item * c * n
        left = tl.load(block + r[None, :] * n + i[:, None])
        right = tl.load(block + r[:, None] * n + j[None, :])
        phi_i, phi_j = tl.load(PHI + item * n + i), tl.load(PHI + item * n + j)
        gramian = phi_i[:, None] * gramian * phi_j[None, :] + tl.dot(left, right, out_dtype=tl.float64)
        step += 1


@triton.jit
def dense_step_kernel(X, Z, PHI, P, Q, step, blocks, n: tl.constexpr, c: tl.constexpr, W: tl.constexpr):
    """Carries Gramians over one block with a matrix `Phi`; one program for each (head, tile, direction).

    `P` is carried over block `step` of each head, `Q` over the block as far from the end.
    """
    forward = tl.program_id(2) == 0
    item = tl.program_id(0).to(tl.int64) * blocks + tl.where(forward, step, blocks - 1 - step)
    tiles: tl.constexpr = n // W
    i = (tl.program_id(1) // tiles) * W + tl.arange(0, W)
    j = (tl.program_id(1) % tiles) * W + tl.arange(0, W)
    r, w = tl.arange(0, 16), tl.arange(0, W)
    rows = tl.where(forward, Z, X) + item * c * n
    gramian = tl.where(forward, P, Q) + item * n * n
    following = gramian + tl.where(forward, n * n, -n * n)
    # backward it is the transpose of Phi that counts
    phi = PHI + item * n * n
    down, across = tl.where(forward, n, 1), tl.where(forward, 1, n)
    tile = tl.zeros([W, W], tl.float64)
    for first in range(0, c, 16):
        left = tl.load(rows + (first + r[None, :]) * n + i[:, None])
        right = tl.load(rows + (first + r[:, None]) * n + j[None, :])
        tile += tl.dot(left, right, out_dtype=tl.float64)
    for k in range(0, n, W):
        carried = tl.zeros([W, W], tl.float64)
        for m in range(0, n, 16):
            left = tl.load(phi + i[:, None] * down + (m + r[None, :]) * across)
            right = tl.load(gramian + (m + r[:, None]) * n + k + w[None, :])
            carried += tl.dot(left, right, out_dtype=tl.float64)
        right = tl.load(phi + j[None, :] * down + (k + w[:, None]) * across)
        tile += tl.dot(carried, right, out_dtype=tl.float64)
    tl.store(following + i[:, None] * n + j[None, :], tile)


def launch(n: int, heads: int) -> tuple[int, Launch]:
    """Width of a tile, and warps: wide tiles reread less, but a few heads need all their tiles to fill a GPU."""
    if n % 64 == 0 and heads * (n // 64) ** 2 >= 64:
        return 64, Launch(4)
    return (32, Launch(2)) if n % 32 == 0 else (16, Launch(1))


def gramians(blocks: Blocks, heads: int) -> tuple[Tensor, Tensor]:
    """`P` at the left and `Q` at the right edge of every block, `[items, n, n]`, from block parts. Twin below."""
    items, c, n = blocks.X.shape
    number = items // max(heads, 1)
    P, Q = (torch.empty(items, n, n, dtype=torch.float64, device=blocks.X.device) for _ in range(2))
    width, rule = launch(n, heads)
    grid = (heads, (n // width) ** 2, 2)
    pieces = (blocks.X, blocks.Z, blocks.Phi, P, Q)
    constants = {"n": n, "c": c, "W": width}
    if blocks.Phi.dim() == 2:
        scan_kernel[grid](*pieces, number, **constants, **rule.options())
        return P, Q
    P[::number], Q[number - 1 :: number] = 0.0, 0.0
    for step in range(number - 1):
        dense_step_kernel[grid](*pieces, step, number, **constants, **rule.options())
    return P, Q


def gramians_in_torch(blocks: Blocks, heads: int) -> tuple[Tensor, Tensor]:
    """The twin of `gramians`, for diagonal `Phi` `[items, n]` and for matrices `[items, n, n]`."""
    items, _, n = blocks.X.shape
    number = items // max(heads, 1)
    dense = blocks.Phi.dim() == 3
    Phi = (blocks.Phi if dense else torch.diag_embed(blocks.Phi)).view(heads, number, n, n)
    reached, seen = ((x.mT @ x).view(heads, number, n, n) for x in (blocks.Z, blocks.X))
    _pass_blocks(reached, Phi, range(number))
    _pass_blocks(seen, Phi.mT, reversed(range(number)))
    return reached.flatten(0, 1), seen.flatten(0, 1)


def _pass_blocks(squares: Tensor, Phi: Tensor, order: Iterable[int]) -> None:
    """Puts in the place of each block's square `[heads, blocks, n, n]` the Gramian before the block is passed."""
    gramian = squares.new_zeros(squares.shape[0], *squares.shape[2:])
    for b in order:
        following = torch.baddbmm(squares[:, b], Phi[:, b] @ gramian, Phi[:, b].mT)
        squares[:, b] = gramian
        gramian = following


def variants() -> Iterator[Variant]:
    arguments = dict.fromkeys(("X", "Z", "PHI", "P", "Q"), "*fp64") | {"blocks": "i32"}
    for n, c in ((16, 16), (32, 32), (64, 32), (128, 64), (192, 64), (256, 64)):
        for W, rule in sorted({launch(n, heads) for heads in (1, 1000)}):
            constants = {"n": n, "c": c, "W": W}
            yield Variant(f"scan n={n} c={c} W={W}", scan_kernel, arguments, constants, rule)
            step = arguments | {"step": "i32"}
            yield Variant(f"dense step n={n} c={c} W={W}", dense_step_kernel, step, constants, rule)
