"""`compress`: a dense operator as the block parts of a recurrence, with proven bounds of the difference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._checks import finite_float, integer
from ._progress import progress
from ._readable import check_readable
from .engine.blocks import Blocks
from .engine.compression import Walked, walk
from .engine.scaling import power_of_two
from .memory import Need, make_sure, out_of_memory_as_memory_error
from .operators.compressed import Compressed
from .operators.dense import as_operator
from .operators.structure import Operator
from .operators.tile_sources import TileSource, bytes_of_source, tile_source
from .processes import on_one_thread_if_forked

# Entries in units of the largest lose digits where they become subnormal, on the way to these units (above 1) or back
# (below this one): each as much as the least number that is not zero, and norms no more than L^(3/2) times that.
SUBNORMAL = 2.0**-1074
SAFE_UNIT = 2.0**-500


def compress(op: Operator | Tensor, error: float, *, max_rank: int | None = None, block: int = 64) -> Compressed:
    """A dense operator `T` as a recurrence `T~` in blocks, with `|T - T~|_2` proven to be at most `spectral_error`.

    Both are taken below their diagonals: T's own diagonal is in no `H_i`, and that of `T~` is zero.
    `H_i - H~_i` is a submatrix of `T - T~`, so that singular values of all `H_i` are known to `spectral_error`. That
    pays for long convolutions of few modes or with power laws, for attention whose logits fall with the distance, and
    for keys that change slowly; the rank of ordinary softmax attention is nearly full at small errors, and nothing is
    gained (`docs/scale.md` has ranks). `bounded_ess` decides, and answers with certain bounds.

    `T` is never stored where the operator's family can make tiles of it (attention, convolutions, dense matrices): time
    `O(L^2 r)` and memory `O(L (r + block))` for ranks r. Other families give rows, which are held if the memory budget
    allows, or made again for every block; of recurrences the whole `T` is formed.

    Args:
        op: an operator of `ess_kernels.operators`, or a dense `T` `[..., L, L]`, one row and column a token.
        error: what `spectral_error` may become, in the units of `T`; at least 0. It becomes more only where `max_rank`
            is in the way, or rounding errors (about `1e-15 L` times the Frobenius norm of `T`).
        max_rank: the largest rank to be kept at any edge, or None.
        block: tokens between two edges, at least 1; no more than L are taken.

    Returns:
        A `Compressed` operator, with `spectral_error`, `frobenius_error`, `nuclear_error` `[*batch]` and `ranks`
        `[*batch, edges]`. Nothing that requires grad is passed on.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        MemoryError: it needs more than is free. Ranks are not known before, so it may come in the middle of the work,
            but always before what has no room is allocated.

    Source: the semiseparable (state-space) form of a triangular matrix, Dewilde and van der Veen, "Time-Varying Systems
    and Computations" (1998); `engine/compression.py` has the proof of the bound.
    """
    op = as_operator(op)
    check_readable("op", op.inputs)
    error = finite_float("error", error)
    if error < 0:
        raise ValueError(f"error: expected at least 0, got {error}")
    max_rank = None if max_rank is None else integer("max_rank", max_rank, minimum=0)
    block = integer("block", block, minimum=1)
    if op.inner is not op:
        raise ValueError(
            f"op: expected one row and one column a token, got a {type(op).__name__} of {op.block}; compress op.inner"
        )
    return compressed(op, error, max_rank, min(block, max(1, op.length)))


@out_of_memory_as_memory_error
@torch.no_grad()
@on_one_thread_if_forked
def compressed(op: Operator, error: float, max_rank: int | None, block: int) -> Compressed:
    """The same with arguments that were checked."""
    heads = op.all_heads()
    good = op.finite(heads) if len(heads) else torch.zeros(0, dtype=torch.bool, device=op.device)
    parts: list[Blocks] = []
    units, ranks, errors = [], [], []
    for head in progress(list(heads[:, None]), "heads"):
        unit, walked = math.nan, None
        if bool(good[head]):
            of_source = bytes_of_source(op)
            make_sure(_need(op.length, of_source), op.device)
            held = sum(8 * x.numel() for its in parts for x in (its.X, its.Y, its.Z, its.Phi))
            unit, walked = one_head(tile_source(op, head), error, max_rank, block, beside=held + of_source)
        if walked is None:
            good[head] = False
            unit, walked = 1.0, nothing(op, block)
        parts.append(walked.blocks)
        units.append(unit)
        ranks.append(walked.ranks)
        errors.append([unit * x for x in (walked.spectral, walked.frobenius, walked.nuclear)])
    edges = len(range(block, op.length, block))
    return Compressed(
        op.length,
        op.batch_shape,
        block,
        parts,
        torch.tensor(ranks, dtype=torch.int64, device=op.device).reshape(len(heads), edges),
        torch.tensor(units, dtype=torch.float64, device=op.device),
        good,
        torch.tensor(errors, dtype=torch.float64, device=op.device).reshape(len(heads), 3).T,
    )


def _need(length: int, size: int) -> Need:
    instead = "a larger error, max_rank=..., or shorter sequences"
    return Need(f"compress: one head of {length} tokens, with the ranks that it has,", size, size, instead)


def one_head(
    source: TileSource, error: float, max_rank: int | None, block: int, most: float = math.inf, beside: int = 0
) -> tuple[float, Walked | None]:
    """The unit of one head and what the walk over it finds in that unit, or None where `T` itself is not finite.

    `source` has tiles of that head only; `most`: operations that the walk may take, see `walk`; `beside`: bytes that
    belong to the same call, and are taken already.

    Raises:
        MemoryError: the walk, with ranks as they turned out to be, needs more than is free.
    """
    peak = source.largest()
    if not bool(peak.isfinite()):
        return math.nan, None
    unit = float(power_of_two(peak[:, None])[1])

    def tile(rows: slice, columns: slice) -> Tensor:
        found = source.tile(rows, columns)[0]
        return found if unit == 1.0 else found / unit

    device = source.heads.device

    def announce(size: int) -> None:
        make_sure(_need(source.length, beside + size), device)

    walked = walk(tile, source.length, error / unit, block, max_rank, device, most, announce)
    if unit > 1.0 or unit < SAFE_UNIT:
        rounded = 2 * SUBNORMAL * (1 + 1 / unit) * source.length**1.5
        walked.spectral, walked.frobenius, walked.nuclear = (
            x + rounded for x in (walked.spectral, walked.frobenius, walked.nuclear)
        )
    return unit, walked


def nothing(op: Operator, block: int) -> Walked:
    """What stands for a head without an answer."""
    number = max(1, -(-op.length // block))
    X, Y, Z, Phi = (
        torch.zeros(number, *shape, dtype=torch.float64, device=op.device)
        for shape in ((block, 1), (block, block), (block, 1), (1, 1))
    )
    return Walked(Blocks(X, Y, Z, Phi), [0] * (number - 1), math.nan, math.nan, math.nan)
