"""Functions of the singular values of `H_i` of a recurrence, for autograd, in `O(n^3)` a position.

`H_i = O_i W_i^T` depends on what the past has written, `W_i`, and on what the future reads, `O_i`, only through their
Gramians. A root of each goes from one position to the next: the past's from left to right, the future's from right to
left, by the QR of the root before it and of new rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..engine.state_space import REPRESENTABLE
from ..operators.structure import Tokens
from .functions import SpectralFunction
from .roots import Root, root_step
from .segments import Segments, cut_at
from .spectral import RootValues

# roots of what the future reads, `G` `[N, a, n]`, and of what the past has written, `F` `[N, b, n]`: `G F^T` has the
# singular values of `H_i`
Pair = tuple[Root, Root]

# bytes of the decompositions of root products in work at once
WORKSPACE = 1 << 22


def recurrence_values(
    tokens: Tokens, unit: Tensor, positions: Sequence[int], function: SpectralFunction
) -> tuple[Tensor, Tensor]:
    """The functions `[N, M, P]` at positions in ascending order, and which heads have them, bool `[N]`.

    A head has no values where its roots overflow; then nothing may be differentiated that these calls have made.
    """
    finite = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    found: list[Tensor] = []
    for pairs in _alike(_roots_at(cut_at(tokens, positions), positions)):
        finite = finite & _finite(pairs)
        if not bool(finite.all()):
            return unit.new_zeros(len(unit), function.number, len(positions)), finite
        found.append(RootValues.apply(unit, function, *(x for G, F in pairs for x in (*G, *F)))[0])
    return torch.cat(found).flip(0).movedim(0, -1), finite


def _roots_at(segments: Segments, positions: Sequence[int]) -> Iterator[Pair]:
    """Roots at positions in descending order, each as soon as it is known.

    The backward goes through all this from the end. It then needs no gradient of a root of the future long before that
    of the next one, and frees what belongs to each on its way.
    """
    sizes = [stop - start for start, stop in pairwise(segments.edges)]
    # without the rows of padding, so that no root has more rows than there are tokens
    X, Z = (
        [rows.narrow(1, 0, size) for rows, size in zip(x.unbind(1), sizes, strict=True)]
        for x in (segments.X, segments.Z)
    )
    Phi = segments.Phi.unbind(1)
    numbers = {edge: number for number, edge in enumerate(segments.edges)}
    wanted = set(positions)
    nothing = segments.Z.new_zeros(len(segments.Z), 0, segments.Z.shape[-1])
    reach, root = {}, Root(nothing, nothing)
    for b in range(numbers[positions[-1]]):
        root = root_step(root, Phi[b], Z[b])
        if segments.edges[b + 1] in wanted:
            reach[segments.edges[b + 1]] = root
    root = Root(nothing, nothing)
    for b in range(len(X) - 1, numbers[positions[0]] - 1, -1):
        # reads are carried by the transposed transitions
        root = root_step(root, Phi[b] if Phi[b].dim() < 3 else Phi[b].mT, X[b])
        if segments.edges[b] in wanted:
            yield root, reach.pop(segments.edges[b])


@torch.no_grad()
def _finite(pairs: Sequence[Pair]) -> Tensor:
    """Which heads have products of roots far from overflow, bool `[N]`."""
    sizes = torch.stack([x.first.abs().amax((1, 2)) for pair in pairs for x in pair])
    bounds = sizes.unflatten(0, (-1, 2)).prod(1) * pairs[0][0].first.shape[-1]
    return (bounds <= REPRESENTABLE).all(0)


def _alike(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    """Neighbours of one shape together, as many as fit the workspace."""
    group: list[Pair] = []
    for pair in pairs:
        shapes = [root.first.shape for root in pair]
        most = WORKSPACE // (8 * 6 * max(1, shapes[0][0] * shapes[0][1] * shapes[1][1]))
        if group and ([root.first.shape for root in group[0]] != shapes or len(group) >= most):
            yield group
            group = []
        group.append(pair)
    yield group
