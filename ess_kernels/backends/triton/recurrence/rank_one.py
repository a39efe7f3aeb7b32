"""Block parts of transitions that are diagonal plus one rank-one term, as delta rules have them: no loop over tokens.

What the tokens of a block look up in the state solves a unit lower triangular system (`engine.blocks.rank_one_parts`
says which). Its triangle and all that it is multiplied with are block parts of recurrences with the diagonal of the
transitions alone, so that the kernel of `parts.py` makes them. What is left is one substitution, the kernel of this
file, and products, which cuBLAS does.

The triangle is never inverted. Where keys repeat, the powers of its entries that an inverse by doubling adds up cancel
to many digits. The kernel substitutes row by row inside corners of 16 x 16, and multiplies with what lies between them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....engine import blocks as engine
from ....engine.blocks import Blocks
from ....operators.structure import Tokens
from ...sources import source_of_tokens
from ..compilation import Variant
from ..launches import Launch
from ..tiles import solve16
from . import parts
from .arguments import READ_AFTER

# bytes of parts in work at once that are not part of the result
WORKSPACE = 1 << 28


@triton.jit
def substitution_kernel(TRIANGLE, STATE, OWN, n: tl.constexpr, c: tl.constexpr, W: tl.constexpr):
    """One program for each item and each strip of `W` rows of the system: those of `STATE` first, then those of `OWN`.

    `STATE` `[items, c, n]` holds its rows as columns, `OWN` `[items, c, c]` as rows. Either way they are columns of the
    transposed system here, which is upper triangular and solved from its last row on.
    """
    item = tl.program_id(0).to(tl.int64)
    strip = tl.program_id(1)
    i, w = tl.arange(0, 16), tl.arange(0, W)
    strips: tl.constexpr = n // W
    of_state = strip < strips
    TRIANGLE += item * c * c
    first = tl.where(of_state, STATE + item * c * n + strip * W, OWN + item * c * c + (strip - strips) * W * c)
    step = tl.where(of_state, n, 1)
    columns = first + w * tl.where(of_state, 1, c)
    for done in range(0, c, 16):
        p = c - 16 - done
        if done > 0:
            panel = columns[None, :] + (p + i[:, None]) * step
            t = tl.load(panel)
            for q in range(p + 16, c, 16):
                corner = tl.load(TRIANGLE + (q + i[:, None]) * c + p + i[None, :])
                v = tl.load(columns[None, :] + (q + i[:, None]) * step)
                t -= tl.dot(tl.trans(corner), v, out_dtype=tl.float64)
            # the load above and the store below may give one number to different lanes
            tl.debug_barrier()
            tl.store(panel, t)
        last = p + 15
        solve16(TRIANGLE + last * (c + 1), -c, columns + last * step, -step, w >= 0, -1)


def launch(n: int, c: int) -> tuple[int, Launch]:
    """Width of a strip, and warps: strips depend on nothing but the triangle, and there are many."""
    return min(n, c, 32), Launch(1)


def substitute(triangle: Tensor, state: Tensor, own: Tensor) -> None:
    """Multiplies rows by the inverse of a triangle, in place and by substitution: `rows triangle^-1`.

    Args:
        triangle: float64 `[items, c, c]`, unit lower triangular, ones on its diagonal; nothing above that is read.
        state: float64 `[items, c, n]`, whose columns are rows of the system. n is 16, 32 or a multiple of 64.
        own: float64 `[items, c, c]`, more rows.

    Twin: `substitute_in_torch`.
    """
    items, c, n = state.shape
    width, rule = launch(n, c)
    grid = (items, (n + c) // width)
    substitution_kernel[grid](triangle, state, own, n=n, c=c, W=width, **rule.options())


def substitute_in_torch(triangle: Tensor, state: Tensor, own: Tensor) -> None:
    state.copy_(engine.substitute(triangle, state.mT).mT)
    own.copy_(engine.substitute(triangle, own))


def build(tokens: Tokens, c: int) -> Blocks:
    """Block parts of every head of rank-one transitions, its blocks in a row: `items = N * ceil(L / c)`.

    Args:
        tokens: float64, with a lookup.
        c: tokens a block: 16, 32 or 64. Missing tokens of the last block are zero.

    Returns:
        float64 `X`, `Z` `[items, c, padded n]`, `Y` `[items, c, c]`, `Phi` `[items, padded n, padded n]`; twin:
        `build_in_torch`.
    """
    built = _of_the_diagonal(tokens, tokens.read, tokens.write, tokens.reads_before, c)
    items, _, N = built.Z.shape
    Phi = built.Phi.new_empty(items, N, N)
    number = items // max(len(tokens.read), 1)
    each = max(1, WORKSPACE // max(1, scratch_bytes(number, N, c, tokens.update is not None)))
    for first in range(0, len(tokens.read), each):
        heads, blocks = slice(first, first + each), slice(first * number, (first + each) * number)
        _add_rank_one_terms(tokens.map(lambda x, heads=heads: x[heads]), built[blocks], Phi[blocks], c)
    return Blocks(built.X, built.Y, built.Z, Phi)


def build_in_torch(tokens: Tokens, c: int) -> Blocks:
    """The twin of `build`: the same arrays, without padding of the state."""
    return parts.build_in_torch(tokens, c)


def scratch_bytes(number: int, n: int, c: int, updates: bool) -> int:
    """What `build` needs for `number` blocks beside its result: parts of two recurrences, with updates of four."""
    return 8 * number * (2 * c * n + c * c + n) * (3 if updates else 1)


def _of_the_diagonal(
    tokens: Tokens, read: Tensor, write: Tensor, reads_before: bool, c: int, sign: float = 1.0
) -> Blocks:
    """Block parts of the recurrence with no rank-one terms, with other reads, and with `sign` times other writes."""
    one = torch.ones_like(read[:, 0, 0])
    source = source_of_tokens(Tokens(read, write, tokens.transition, reads_before))
    return parts.build(source, one, sign * one, c)


def _add_rank_one_terms(tokens: Tokens, built: Blocks, Phi: Tensor, c: int) -> None:
    """Changes `built`, parts of the recurrence without rank-one terms, to those with them, and writes `Phi`.

    In the words of `engine.blocks.rank_one_parts`: `rows.Z` and `rows.Y` become what later tokens and the state make of
    each token's lookup, for the updates b or, where there are none, for the writes, which are -b.
    """
    read, write, lookup, before = tokens.read, tokens.write, tokens.lookup, tokens.reads_before
    assert lookup is not None
    replaces = tokens.update is None
    # X is what the lookups see of the state; Y is minus what they see of earlier tokens' updates
    seen = _of_the_diagonal(tokens, lookup, tokens.updates, True, c, sign=-1.0)
    triangle = seen.Y
    triangle.diagonal(dim1=1, dim2=2).fill_(1.0)
    update = write if tokens.update is None else tokens.update
    rows = built if replaces else _of_the_diagonal(tokens, read, update, before, c)
    if not before:
        own = (read * update).sum(-1)
        own = torch.nn.functional.pad(own, (0, -own.shape[1] % c))
        rows.Y.diagonal(dim1=1, dim2=2).add_(own.view(-1, c))
    substitute(triangle, rows.Z, rows.Y)
    sign = -1.0 if replaces else 1.0
    built.X.baddbmm_(rows.Y, seen.X, alpha=sign)
    Phi.zero_().diagonal(dim1=1, dim2=2).copy_(built.Phi)
    Phi.baddbmm_(rows.Z.mT, seen.X, alpha=sign)
    if replaces:
        built.Y.tril_(-1)
        return
    # what the lookups see of earlier tokens' writes
    written = _of_the_diagonal(tokens, lookup, write, True, c).Y
    built.Y.baddbmm_(rows.Y, written)
    built.Z.baddbmm_(written.mT, rows.Z)


def variants() -> Iterator[Variant]:
    yield from parts.variants_of("factors, read after", *READ_AFTER)
    pointers = dict.fromkeys(("TRIANGLE", "STATE", "OWN"), "*fp64")
    for n, c in parts.SIZES:
        width, rule = launch(n, c)
        constants = {"n": n, "c": c, "W": width}
        yield Variant(f"substitution n={n} c={c}", substitution_kernel, pointers, constants, rule)
