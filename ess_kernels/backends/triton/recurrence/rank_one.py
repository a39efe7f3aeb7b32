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


def build(tokens: Tokens, c: int, out: Blocks | None = None) -> Blocks:
    """Block parts of every head of rank-one transitions, its blocks in a row: `items = N * ceil(L / c)`.

    Args:
        tokens: float64, with a lookup.
        c: tokens a block: 16, 32 or 64. Missing tokens of the last block are zero.
        out: contiguous memory for the result, or None.

    Returns:
        float64 `X`, `Z` `[items, c, padded n]`, `Y` `[items, c, c]`, `Phi` `[items, padded n, padded n]`; twin:
        `build_in_torch`.
    """
    heads, length, n = tokens.read.shape
    if out is None:
        out = parts.empty(heads * -(-length // c), parts.padded(n), c, tokens.read.device, matrices=True)
    _add_rank_one_terms(tokens, out, c)
    return out


def build_in_torch(tokens: Tokens, c: int) -> Blocks:
    """The twin of `build`: the same arrays, without padding of the state."""
    return parts.build_in_torch(tokens, c)


def scratch_bytes(length: int, n: int) -> int:
    """What one head of `length` tokens takes in `build`, beside the result: tokens, and parts for their updates."""
    return 8 * length * 14 * n


def _add_rank_one_terms(tokens: Tokens, out: Blocks, c: int) -> None:
    """Fills in `out`: the parts without rank-one terms first, which these terms then change.

    In the words of `engine.blocks.rank_one_parts`: `rows.Z` and `rows.Y` become what later tokens and the state make of
    each token's lookup, for the updates b or, where there are none, for the writes, which are -b.
    """
    read, write, lookup, before = tokens.read, tokens.write, tokens.lookup, tokens.reads_before
    assert lookup is not None
    one = torch.ones_like(read[:, 0, 0])

    def of_the_diagonal(read: Tensor, write: Tensor, before: bool, sign: float = 1.0, out: Blocks | None = None):
        """Parts without rank-one terms, for other reads and for `sign` times other writes."""
        return parts.build(source_of_tokens(Tokens(read, write, tokens.transition, before)), one, sign * one, c, out)

    phi = out.Phi.new_empty(out.Phi.shape[:2])
    of_the_diagonal(read, write, before, out=Blocks(out.X, out.Y, out.Z, phi))
    replaces = tokens.update is None
    update = write if tokens.update is None else tokens.update
    # X is what lookups see of the state; Y is minus what they see of earlier tokens' updates
    seen = of_the_diagonal(lookup, update, True, 1.0 if replaces else -1.0)
    triangle = seen.Y
    triangle.diagonal(dim1=1, dim2=2).fill_(1.0)
    rows = out if replaces else of_the_diagonal(read, update, before)
    if not before:
        # a row also reads what its own token has looked up
        own = torch.nn.functional.pad((read * update).sum(-1), (0, -read.shape[1] % c))
        rows.Y.diagonal(dim1=1, dim2=2).add_(own.view(-1, c))
    substitute(triangle, rows.Z, rows.Y)
    sign = -1.0 if replaces else 1.0
    out.X.baddbmm_(rows.Y, seen.X, alpha=sign)
    out.Phi.zero_().diagonal(dim1=1, dim2=2).copy_(phi)
    out.Phi.baddbmm_(rows.Z.mT, seen.X, alpha=sign)
    if replaces:
        out.Y.tril_(-1)
        return
    # what lookups see of earlier tokens' writes
    written = of_the_diagonal(lookup, write, True).Y
    out.Y.baddbmm_(rows.Y, written)
    out.Z.baddbmm_(written.mT, rows.Z)


def variants() -> Iterator[Variant]:
    yield from parts.variants_of("factors, read after", *READ_AFTER)
    pointers = dict.fromkeys(("TRIANGLE", "STATE", "OWN"), "*fp64")
    for n, c in parts.SIZES:
        width, rule = launch(n, c)
        constants = {"n": n, "c": c, "W": width}
        yield Variant(f"substitution n={n} c={c}", substitution_kernel, pointers, constants, rule)
