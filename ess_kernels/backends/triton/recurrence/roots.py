"""Square roots of the reachability Gramians: `F F^T = P`, in parallel over all blocks.

Two kinds. The shifted factorisation is cheap and blocked: `P` plus a few ulp of its own diagonal, so that unpivoted
Cholesky cannot break down; singular values are then wrong by at most `shift` times a sum that the boundary knows, so
the caller can tell for which tolerances that is good enough. The pivoted one goes column by column, takes the largest
remaining pivot in proportion to its own diagonal entry, and has no shift.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Variant
from ..launches import Launch
from ..tiles import diagonal16, factor16, indices16, larger, largest, solve16

EPS = torch.finfo(torch.float64).eps


def shift(n: int) -> float:
    """What is added to each diagonal entry, in units of that entry."""
    return max(16, n) * EPS / 2


@triton.jit
def cholesky16(A):
    """As `ldl16`, but a pivot that is not positive (a coordinate that is never reached: its row is zero) is skipped."""
    ii, _ = indices16()
    i = tl.arange(0, 16)
    for k in tl.static_range(16):
        row = tl.sum(tl.where(ii == k, A, 0.0), 0)
        d = tl.sum(tl.where(i == k, row, 0.0), 0)
        inverse = tl.where(d > 0.0, 1.0 / tl.where(d > 0.0, d, 1.0), 0.0)
        multiplier = tl.where(i > k, row * inverse, 0.0)
        A -= multiplier[:, None] * row[None, :]
    return A


@triton.jit
def inverse_roots16(B):
    """`1 / sqrt` of the pivots of what `cholesky16` returns, `[16]`, zero for those that it has skipped."""
    d = diagonal16(B)
    return tl.where(d > 0.0, 1.0 / tl.sqrt(tl.where(d > 0.0, d, 1.0)), 0.0)


@triton.jit
def root16(B):
    """The upper Cholesky factor from what `cholesky16` returns, zero in the rows of pivots that it has skipped."""
    ii, jj = indices16()
    return tl.where(jj >= ii, B, 0.0) * inverse_roots16(B)[:, None]


@triton.jit
def root_kernel(P, MASS, F, SIZE, shift: tl.constexpr, n: tl.constexpr, W: tl.constexpr):
    """One program for each item: `F^T` `[n, n]` upper triangular, rows in panels of 16, left-looking."""
    item = tl.program_id(0).to(tl.int64)
    P += item * n * n
    F += item * n * n
    MASS += item * n
    i, w = tl.arange(0, 16), tl.arange(0, W)
    ii, jj = indices16()
    square = ii * n + jj
    tile = i[:, None] * n + w[None, :]
    size = tl.zeros([16], tl.float64)
    for p in range(0, n, 16):
        rows = tl.zeros([16], tl.float64)
        a = tl.load(P + p * n + p + square)
        a = tl.where(ii == jj, a * (1.0 + shift), a)
        for q in range(0, p, 16):
            u = tl.load(F + q * n + p + square)
            a -= tl.dot(tl.trans(u), u, out_dtype=tl.float64)
        factor = cholesky16(a)
        inverse, root = inverse_roots16(factor), root16(factor)
        # the reciprocal of a skipped pivot is zero, so that its row is subtracted from none
        tl.store(F + p * n + p + square, factor16(factor, inverse * inverse))
        for j in range(0, n, W):
            right = j + w >= p + 16
            t = tl.zeros([16, W], tl.float64)
            if j + W > p + 16:
                t += tl.load(P + p * n + j + tile)
                for q in range(0, p, 16):
                    u = tl.load(F + q * n + p + square)
                    v = tl.load(F + q * n + j + tile)
                    t -= tl.dot(tl.trans(u), v, out_dtype=tl.float64)
                tl.store(F + p * n + j + tile, t, mask=right[None, :])
                solve16(F + p * n + p, n, F + p * n + j + w, n, right)
                t = tl.load(F + p * n + j + tile, mask=right[None, :], other=0.0) * inverse[:, None]
                rows += tl.sum(t * t * tl.load(MASS + j + w)[None, :], 1)
                # the load above and the store below may give one number to different lanes
                tl.debug_barrier()
            tl.store(F + p * n + j + tile, t, mask=(right | (j + w < p))[None, :])
        # every lane has read the factor, which the root overwrites
        tl.debug_barrier()
        tl.store(F + p * n + p + square, root)
        size = larger(size, rows + tl.sum(root * root * tl.load(MASS + p + i)[None, :], 1))
        # the rows of this panel are read by other lanes below
        tl.debug_barrier()
    tl.store(SIZE + item, largest(size))


def launch(n: int) -> tuple[int, Launch]:
    """Width of a tile, and warps: few blocks of large states fit the workspace at once, so each gets more warps."""
    return (64, Launch(4)) if n >= 192 else (min(n, 32), Launch(1))


def shifted_roots(P: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """`F^T` `[items, n, n]`, upper triangular, of `P + shift(n) diag(P)`; a coordinate that is zero in P is zero in F.

    Also the largest `sum_j F_jk^2 mass_j` over the columns `k` of F, `[items]`, for `mass` `[items, n]`. Twin:
    `shifted_roots_in_torch`.
    """
    items, n, _ = P.shape
    F, size = torch.empty_like(P), torch.empty_like(mass[:, 0])
    width, rule = launch(n)
    root_kernel[(items,)](P, mass, F, size, shift(n), n, width, **rule.options())
    return F, size


def shifted_roots_in_torch(P: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    A, F = P.clone(), torch.zeros_like(P)
    A.diagonal(dim1=1, dim2=2).mul_(1 + shift(P.shape[1]))
    for k in range(P.shape[1]):
        row = A[:, k, k:]
        d = row[:, :1]
        F[:, k, k:] = torch.where(d > 0, row / torch.where(d > 0, d, 1.0).sqrt(), 0.0)
        A[:, k:, k:] -= F[:, k, k:, None] * F[:, k, None, k:]
    return F, _size(F, mass)


def _size(F: Tensor, mass: Tensor) -> Tensor:
    return (F.square() @ mass[..., None])[..., 0].amax(1)


@triton.jit
def pivoted_root_kernel(P, MASS, F, SIZE, n: tl.constexpr, N: tl.constexpr):
    """One program for each item: rows of `F^T` in the order of the pivots."""
    item = tl.program_id(0).to(tl.int64)
    P += item * n * n
    F += item * n * n
    j = tl.arange(0, N)
    inside = j < n
    mass = tl.load(MASS + item * n + j, mask=inside, other=0.0)
    original = tl.load(P + j * (n + 1), mask=inside, other=0.0)
    relative = tl.where(original > 0.0, 1.0 / tl.where(original > 0.0, original, 1.0), 0.0)
    rest = original
    size = tl.sum(original, 0) * 0.0
    step = 0
    while step < n:
        # the pivot is the diagonal entry of which the largest part is left; entries that were pivots are negative
        weight = tl.where(inside, rest * relative, -1.0)
        pivot = tl.argmax(weight, 0)
        best = tl.max(weight, 0)
        d = tl.sum(tl.where(j == pivot, rest, 0.0), 0)
        row = tl.load(P + pivot * n + j, mask=inside, other=0.0)
        k = 0
        while k < step:
            u = tl.load(F + k * n + j, mask=inside, other=0.0)
            row -= tl.load(F + k * n + pivot) * u
            k += 1
        works = best > 4.0 * 2.220446049250313e-16
        scale = tl.where(works, 1.0 / tl.sqrt(tl.where(works, d, 1.0)), 0.0)
        used = rest < 0.0
        row = tl.where(used, 0.0, row * scale)
        row = tl.where(j == pivot, d * scale, row)
        size = larger(size, tl.sum(row * row * mass, 0))
        tl.store(F + step * n + j, row, mask=inside)
        rest = tl.where(used, rest, rest - row * row)
        rest = tl.where((j == pivot) | (rest < 0.0), -1.0, rest)
        # this row is read by other lanes below
        tl.debug_barrier()
        step += 1
    tl.store(SIZE + item, size)


def launch_pivoted(n: int) -> tuple[int, Launch]:
    """Padded length of a row, and warps: from 64 on each thread holds two numbers of a row."""
    lanes = triton.next_power_of_2(n)
    return lanes, Launch(max(1, lanes // 64))


def pivoted_roots(P: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `F^T` `[items, n, n]` with `F F^T = P` to a few ulp of each diagonal entry, in no triangular order.

    The second result as in `shifted_roots`. Twin: `pivoted_roots_in_torch`.
    """
    items, n, _ = P.shape
    F, size = torch.empty_like(P), torch.empty_like(mass[:, 0])
    lanes, rule = launch_pivoted(n)
    pivoted_root_kernel[(items,)](P, mass, F, size, n=n, N=lanes, **rule.options())
    return F, size


def pivoted_roots_in_torch(P: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    n = P.shape[1]
    F = torch.zeros_like(P)
    original = P.diagonal(dim1=1, dim2=2)
    rest = original.clone()
    item = torch.arange(len(P), device=P.device)
    for step in range(n):
        weight = torch.where(original > 0, rest / torch.where(original > 0, original, 1.0), 0.0)
        best, pivot = weight.max(1)
        d = rest[item, pivot]
        works = best > 4 * EPS
        row = P[item, pivot] - (F[:, :step, :] * F[item, :step, pivot][..., None]).sum(1)
        scale = torch.where(works, torch.where(works, d, 1.0).rsqrt(), 0.0)
        used = rest < 0
        row = torch.where(used, 0.0, row * scale[:, None])
        row[item, pivot] = d * scale
        F[:, step] = row
        rest = torch.where(used, rest, rest - row.square())
        rest[item, pivot] = -1.0
        rest = torch.where(rest < 0, -1.0, rest)
    return F, _size(F, mass)


def variants() -> Iterator[Variant]:
    pointers = dict.fromkeys(("P", "MASS", "F", "SIZE"), "*fp64")
    for n in (16, 32, 64, 128, 192, 256):
        width, rule = launch(n)
        yield Variant(f"root n={n}", root_kernel, pointers, {"shift": shift(n), "n": n, "W": width}, rule)
        lanes, rule = launch_pivoted(n)
        yield Variant(f"pivoted root n={n}", pivoted_root_kernel, pointers, {"n": n, "N": lanes}, rule)
