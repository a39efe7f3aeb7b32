"""Counts, entropy and singular values of recurrences at many positions, in `O(n^2)` per position and shift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..operators.structure import Operator, StateSpace, Tokens
from .blocks import Blocks, block_parts, cut, identity_like
from .boundary import Boundary, carry, observe_gramians, observe_root_step, observe_roots, reach_root_step, reach_roots
from .certainty import EPS
from .cost import Cost
from .lost import few_spans, lost_in_dense_states, lost_in_states, squares
from .lost_rank_one import TokenSizes, lost_in_rank_one_states
from .outside import ROUNDING, Outside
from .parallel import svdvals
from .quadrature import Estimate, Quadrature
from .repeated import cut_repeated, repeated_parts
from .scaling import keep_heads, largest, scaled_tokens
from .staircase import Answer, Eliminated, descend
from .unsquared import UnsquaredEngine
from .wanted import Wanted, grouped
from .zeros import zero_positions, zero_positions_of

# bytes of nodes in work at once: more falls out of the caches
NODE_WORKSPACE = 1 << 24
# bytes of boundaries or root products in work at once
BLOCK_WORKSPACE = 1 << 26
# blocks whose outsides are taken apart together
TOGETHER = 8
# products of three boundary numbers stay far from overflow below the first, entries of T below the second
SQUARABLE = 1e70
REPRESENTABLE = 1e300


def block_length(n: int, entropy: bool) -> int:
    """Tokens a block: small ones spend on the boundary (`n^3` each), large ones on the staircase."""
    if entropy:
        return 16 if n <= 64 else 32
    return 16 if n <= 24 else 32 if n <= 48 else 64


def bytes_per_head(op: StateSpace, c: int) -> int:
    """What one head needs while its recurrence is in work, in blocks of `c` tokens."""
    length, n = op.length, op.state_size
    per_token = 10 * n + 2 * c
    if op.rank_one:
        per_token += 10 * n + 4 * c + 2 * n * n // c
    elif not op.diagonal:
        per_token += 4 * n * n
    return 8 * (length + c) * (per_token + 4 * n * n // c + 32)


def bytes_shared(n: int, c: int, blocks: int) -> int:
    """What heads of so many blocks need together: boundaries of the blocks in work, and nodes before and after a
    bisection."""
    boundaries = min(blocks, _boundaries_at_once(n, c)) * _bytes_of_boundary(n, c)
    return boundaries + min(2 * NODE_WORKSPACE, blocks * 2 * _bytes_of_nodes(n, c))


def _bytes_of_boundary(n: int, c: int) -> int:
    return 8 * (6 * n**2 + 4 * n * c + 3 * c * c)


def _boundaries_at_once(n: int, c: int) -> int:
    return max(1, BLOCK_WORKSPACE // _bytes_of_boundary(n, c))


def _bytes_of_nodes(n: int, c: int) -> int:
    return 8 * (9 * c * c + 4 * n * c)


def outside_of_blocks(
    observe: Tensor, carried: Tensor, rows: Tensor, writes: Tensor, inner: Tensor, lost: Tensor
) -> Outside:
    """The outsides of `J` blocks of a recurrence, seen through its `n` states.

    Args:
        observe: `G` `[J, n, n]` with `G^T G = Q` at the right edges.
        carried: `Phi F` `[J, n, n]` with `F F^T = P` at the left edges.
        rows: `X F` `[J, c, n]`.
        writes: `Z^T` `[J, n, c]`.
        inner: `[J, c, c]`.
        lost: `[J]`, by how much all this may be wrong.
    """
    n = observe.shape[-1]
    norms = [torch.linalg.matrix_norm(x) for x in (observe, carried, rows, writes)]
    # and the products of roots, and the roots themselves
    lost = lost + EPS * ROUNDING * n**0.5 * (norms[0] * (norms[1] + norms[3]) + norms[2])
    return Outside.of(observe @ carried, observe @ writes, rows, inner, lost)


class Recurrence(UnsquaredEngine):
    """`N` heads of a recurrence, cut into blocks of `c` tokens, with the boundary recurrences run.

    `read` and `write` are scaled by powers of two, so that neither overflows when squared. Heads that are `growing`
    `[N]`, because their transitions grow, are left to another engine; zero operators stand in for them here.
    """

    def __init__(self, tokens: Tokens, c: int, cost: Cost, repeated_to: int | None = None):
        """`repeated_to`: the length of the sequence, if the tokens are only those that repeat in it."""
        self.length, self.n = tokens.read.shape[1:]
        self.repeated = repeated_to is not None
        if repeated_to is not None:
            self.length = repeated_to
        self.state_size, self.group, self.cost = self.n, c, cost
        self.lost_span = few_spans(self.length)
        tokens, self.unit, self.finite = scaled_tokens(tokens)
        supported = self._run(tokens)
        if not bool(supported.all()):
            tokens = keep_heads(tokens, supported)
            self._run(tokens)
        self.growing = self.finite & ~supported
        self._observe_roots: Tensor | None = None

    def _run(self, tokens: Tokens) -> Tensor:
        """Cuts, runs the boundary recurrences, and says bool `[N]` whether all numbers are in a range to be squared."""
        if self.repeated:
            self.tokens, places = cut_repeated(tokens, self.length, self.group)
            self.blocks: Blocks = repeated_parts(self.tokens, places)
        else:
            self.tokens = cut(tokens, self.group)
            self.blocks = block_parts(self.tokens)
        self.roots = reach_roots(self.blocks)
        self.gramians = observe_gramians(self.blocks)
        parts = (self.blocks.X, self.blocks.Y, self.blocks.Z, self.blocks.Phi, self.roots, self.gramians)
        magnitude = torch.stack([largest(x) for x in parts])
        entry = torch.maximum(self.n * magnitude[0] * magnitude[4], magnitude[1]) * self.unit
        return (magnitude <= SQUARABLE).all(0) & (entry <= REPRESENTABLE)

    def _lost(self, span: int) -> Tensor:
        tokens, blocks = self.tokens, self.blocks
        if tokens.diagonal:
            lost = lost_in_states(tokens.map(lambda x: blocks.every(x).flatten(1, 2)), span)
            return lost[:, : -(-self.length // span)]
        reach, seen = self.roots.square().sum((-2, -1)), self.gramians.diagonal(dim1=-2, dim2=-1).sum(-1)
        if tokens.rank_one:
            sizes = TokenSizes.of(self._every_token())
            return lost_in_rank_one_states(sizes, reach, seen, self.group, tokens.reads_before, span)
        lost = lost_in_dense_states(
            reach,
            blocks.every(squares(tokens.write, blocks.Z)),
            seen,
            blocks.every(squares(tokens.read, blocks.X)),
            blocks.every(torch.linalg.matrix_norm(tokens.transition).square().amax(-1)),
            self.group,
        )
        return lost.expand(-1, -(-self.length // span))

    @property
    def observe_roots(self) -> Tensor:
        if self._observe_roots is None:
            self._observe_roots = observe_roots(self.blocks)
        return self._observe_roots

    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        return self._staircase(wanted.positions, lambda boundary, head, number: tau[head, :, number], definite=False)

    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        nodes = quadrature.nodes(wanted.device)
        rounding, unit = self.unit.new_zeros(2, wanted.shape[0], -(-self.length // self.group)).unbind(0)

        def shifts(boundary: Boundary, head: Tensor, number: Tensor) -> Tensor:
            # every block has its own scale
            own = boundary.scale() if scale is None else scale[head]
            rounding[head, number] = torch.where(own > 0, EPS * boundary.magnitude / own, 0.0)
            unit[head, number] = own.sqrt()
            return (nodes * torch.where(own > 0, own, 1.0)[:, None]).sqrt()

        wanted = wanted[:, None].expand(-1, len(nodes), -1)
        logdets = self._staircase(wanted, shifts, definite=True).value.view(wanted.shape)
        found = quadrature.estimate(logdets, cap, self._spread(rounding))
        return found._replace(total=found.total * self._spread(unit))

    def _staircase(
        self, wanted: Tensor, shifts: Callable[[Boundary, Tensor, Tensor], Tensor], definite: bool
    ) -> Eliminated:
        """Values and growth at `wanted` `[N, S, L]`; `shifts(boundary of J blocks, heads, numbers)` gives `[J, S]`."""
        S, L = wanted.shape[1:]
        c = self.group
        answer = Answer.of(wanted.flatten(0, 1))
        wanted_groups = self._wanted_groups(wanted)
        heads, numbers = wanted_groups.any(1).nonzero(as_tuple=True)
        step = _boundaries_at_once(self.n, c)
        each = max(1, NODE_WORKSPACE // _bytes_of_nodes(self.n, c))
        for pairs in zip(heads.split(step), numbers.split(step), strict=True):
            boundary = Boundary.of(self.blocks[pairs], self.roots[pairs], self.gramians[pairs])
            shift = shifts(boundary, *pairs)
            which, s = wanted_groups[pairs[0], :, pairs[1]].nonzero(as_tuple=True)
            start = pairs[1][which] * c
            item = pairs[0][which] * S + s
            batch = (which, shift[which, s], item, start, (start + c).clamp_max(L))
            for piece in zip(*(x.split(each) for x in batch), strict=True):
                descend(boundary.nodes(definite, *piece), answer, definite, 4 * NODE_WORKSPACE)
        return answer.eliminated

    def known_zero(self) -> Tensor:
        return zero_positions(self._every_token())

    def _every_token(self) -> Tokens:
        """The tokens `[N, L, ...]`, no longer cut into blocks."""
        return self.tokens.map(lambda x: self.blocks.every(x).flatten(1, 2)[:, : self.length])

    def _pieces(self) -> list[tuple[int, int]]:
        step = TOGETHER * self.group
        return [(start, min(start + step, self.length)) for start in range(0, self.length, step)]

    def _prepare(self) -> None:
        assert self.observe_roots is not None and self.lost is not None

    def _take_apart(self, head: int, start: int, stop: int) -> Outside:
        some = (head, slice(start // self.group, -(-stop // self.group)))
        blocks, reach, observe = self.blocks[some], self.roots[some], self.observe_roots[some]
        # as much as is lost before, at the worst position of each block
        assert self.lost is not None
        each = self.lost[head].repeat_interleave(self.lost_span)[: self.length]
        lost = grouped(each, self.group).amax(-1)[some[1]]
        carried = carry(reach, blocks.Phi).mT
        return outside_of_blocks(observe, carried, blocks.X @ reach.mT, blocks.Z.mT, blocks.Y, lost)

    def _value_work(self, positions: Tensor) -> Tensor:
        # two QR updates and a values-only decomposition
        return torch.full_like(positions, self.n**2 * (4 * self.group + 16 * self.n / 3), dtype=torch.float64)

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Scaled singular values `[Q, n]`, descending, at `Q` (head, position) pairs, zero beyond the rank's cap."""
        self.cost.note(len(heads), float(self._value_work(positions).sum()))
        each = max(1, BLOCK_WORKSPACE // (8 * (8 * self.n**2 + 8 * self.n * self.group)))
        pieces = [
            svdvals(self._root_products(*pair)) for pair in zip(heads.split(each), positions.split(each), strict=True)
        ]
        values = torch.cat(pieces) if pieces else self.unit.new_zeros(0, self.n)
        return torch.where(torch.arange(self.n, device=positions.device) < self.cap(positions)[:, None], values, 0.0)

    def _root_products(self, heads: Tensor, positions: Tensor) -> Tensor:
        """`G_i F_i` `[Q, n, n]`, whose singular values are those of `H_i`, by QR updates from the block's edges."""
        number = positions // self.group
        before = torch.arange(self.group, device=positions.device) < (positions - number * self.group)[:, None]
        left = block_parts(self._only(heads, number, before))
        right = block_parts(self._only(heads, number, ~before))
        reach = reach_root_step(self.roots[heads, number], left)
        observe = observe_root_step(self.observe_roots[heads, number], right)
        return observe @ reach.mT

    def _only(self, heads: Tensor, number: Tensor, keep: Tensor) -> Tokens:
        """Blocks with some tokens only; the others become zero tokens."""
        tokens = self.tokens.map(lambda x: x[self.blocks.at((heads, number))])
        masked = tokens.map(lambda x: torch.where(keep.view(*keep.shape, *[1] * (x.dim() - 2)), x, 0.0))
        kept = keep.view(*keep.shape, *[1] * (tokens.transition.dim() - 2))
        identity = identity_like(tokens.transition, tokens.read)
        return replace(masked, transition=torch.where(kept, tokens.transition, identity))


def bytes_of_lost(op: Operator) -> int:
    """What `lost_in` takes for one head: its tokens, scaled ones, and sums of both directions at every token."""
    if not isinstance(op, StateSpace):
        return 8 * op.length
    if op.diagonal:
        return 8 * op.length * 36 * op.state_size
    return bytes_per_head(op, block_length(op.state_size, False))


def lost_in(op: Operator, heads: Tensor) -> Tensor:
    """By how much `H_i` may be wrong by rounding in the products of states, in the operator's own units.

    Returns:
        float64 `[N, L]` (see `lost.py`): zero for an operator that is no recurrence, infinite where dense transitions
        grow beyond all squares.
    """
    if not isinstance(op, StateSpace):
        return torch.zeros(len(heads), op.length, dtype=torch.float64, device=heads.device)
    # as many heads at a time as fit, which changes no number
    together = max(1, BLOCK_WORKSPACE // max(1, bytes_of_lost(op)))
    return torch.cat([_lost_in(op, some) for some in heads.split(together)])


def _lost_in(op: StateSpace, heads: Tensor) -> Tensor:
    tokens, unit, _ = scaled_tokens(op.tokens(heads))
    if tokens.diagonal:
        lost = lost_in_states(tokens, 1) * unit[:, None]
    else:
        engine = Recurrence(tokens, block_length(op.state_size, False), Cost())
        lost = engine._lost(1).masked_fill(engine.growing[:, None], torch.inf) * (unit * engine.unit)[:, None]
        lost = lost.masked_fill(zero_positions_of(op, heads), 0.0)
    before = op.already_lost(heads)
    return lost if before is None else lost + before
