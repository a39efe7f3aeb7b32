"""Recurrences on the GPU: the engine's certainty, with eliminations by the kernels of this package.

Block parts and Gramians come once a head; for every batch of blocks then square roots, products by cuBLAS, and for
every pair of a block and a tolerance (or shift) the boundary's elimination and the staircase.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ....caching import cached_property
from ....engine.blocks import Blocks, block_parts, cut
from ....engine.boundary import norm_bound
from ....engine.certain import EliminatingEngine
from ....engine.certainty import HOPEFUL
from ....engine.cost import Cost
from ....engine.lost import Spans, few_spans, lost_in_dense_states, lost_in_spans
from ....engine.lost_rank_one import TokenSizes, lost_in_rank_one_states
from ....engine.quadrature import Estimate, Quadrature
from ....engine.scaling import largest, power_of_two, scaled_tokens
from ....engine.staircase import Answer, Eliminated
from ....engine.state_space import REPRESENTABLE, SQUARABLE, Recurrence
from ....engine.state_space import block_length as exact_block_length
from ....engine.wanted import Wanted
from ....engine.zeros import zero_positions_of
from ....operators.structure import StateSpace, Tokens
from ...sources import source_of
from ..runtime import on
from ..staircase.descent import Roots, descend
from . import parts, rank_one, scans, small, weights
from .boundary import Outside, eliminate
from .roots import EPS, pivoted_roots, shifted_roots
from .roots import shift as root_shift

# bytes of boundaries in work at once, without the eliminations' scratch
BLOCK_WORKSPACE = 1 << 29
# but at least so many blocks: fewer would leave a GPU idle
FEWEST_BLOCKS = 512
# bytes of staircase nodes in work at once
NODE_WORKSPACE = 1 << 30
# bytes of tokens with rank-one terms in work at once, beside the parts that are made of them
TOKEN_WORKSPACE = 1 << 29
# bytes of tokens from which, at a time, is found what rounding errors took from states
LOST_WORKSPACE = 1 << 28
# tokens of the smallest spans in that search
LEAST_LOST_SPAN = 8


def block_length(n: int) -> int:
    """Tokens a block: boundaries cost `n^3` each, the staircase `c^2` a position."""
    return 16 if n <= 16 else 32 if n <= 64 else 64


def bytes_per_head(length: int, n: int, rank_one: bool = False) -> int:
    """What one head needs while it is in work: two Gramians of every block and, but for small states, its parts.

    With rank-one terms also the products of their transitions.
    """
    n, c = parts.padded(n), block_length(n)
    of_block = 2 * n * n + (0 if n == 16 and not rank_one else 2 * c * n + c * c + n)
    if rank_one:
        of_block += n * n
    return 8 * (-(-length // c) * of_block + 4 * length)


def blocks_at_once(n: int, c: int) -> int:
    """How many boundaries of padded state size `n` are made before their pairs with the shifts are eliminated."""
    return max(FEWEST_BLOCKS, BLOCK_WORKSPACE // (8 * (3 * n * n + 4 * n * c + 2 * c * c)))


def pairs_at_once(c: int) -> int:
    """How many of these pairs are carried down the staircase together."""
    return max(1, NODE_WORKSPACE // (8 * 9 * c * c))


# (heads, numbers of blocks) -> [J, S]
Shifts = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Work:
    """One pass over blocks.

    Attributes:
        wanted_groups: bool `[N, S, blocks]`, which pairs of a shift and a block are to be done.
        answer: `[N S, L]`, filled in.
        shifts, definite, scale: as in `_pass`.
        own: `[N, blocks]`, for log-determinants: every block's scale.
        rounding: `[N, blocks]`, for log-determinants: the error of squared singular values in units of that scale.
    """

    wanted_groups: Tensor
    answer: Answer
    shifts: Shifts
    definite: bool
    scale: Tensor | None
    own: Tensor
    rounding: Tensor

    @property
    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.answer.value.view(-1), self.answer.growth.view(-1), self.answer.least.view(-1)

    def note(self, head: Tensor, number: Tensor, own: Tensor, magnitude: Tensor) -> None:
        """Notes the scales `own` of some blocks `[J]` and the errors of their squared values, `magnitude` times eps."""
        self.own[head, number] = own
        self.rounding[head, number] = torch.where(own > 0, EPS * magnitude / own, 0.0)


class TritonRecurrence(EliminatingEngine):
    """`N` heads of a recurrence, cut into blocks of `c` tokens, with Gramians at all edges.

    Heads that are `growing` `[N]` (only transitions that are not diagonal can be) are left to another engine.
    """

    def __init__(self, op: StateSpace, heads: Tensor, read: Tensor, write: Tensor, cost: Cost):
        """`read`, `write` `[N]`: the largest magnitudes, from `supported_heads`."""
        self.op, self.heads, self.cost = op, heads, cost
        self.length, self.state_size = op.length, op.state_size
        self.group = block_length(op.state_size)
        self.lost_span = few_spans(self.length)
        self.number = -(-self.length // self.group)
        self.small = op.diagonal and self.group == 16
        with on(op.device):
            if op.diagonal:
                self._run_diagonal(read, write)
            elif op.rank_one:
                self._run_rank_one()
            else:
                self._run_dense()

    def _run_diagonal(self, read: Tensor, write: Tensor) -> None:
        (read_unit, self.read_inverse), (write_unit, self.write_inverse) = _unit(read), _unit(write)
        self.unit = read_unit * write_unit
        self.finite = torch.ones_like(self.heads, dtype=torch.bool)
        self.growing = ~self.finite
        self.source = source_of(self.op, self.heads)
        if self.small:
            self.P, self.Q = small.gramians(self.source, self.read_inverse, self.write_inverse)
        else:
            self.P, self.Q = scans.gramians(self.blocks, len(self.heads))

    @cached_property
    def blocks(self) -> Blocks:
        """The parts of all blocks. Small states need them only where the cheap root is too coarse."""
        return parts.build(self.source, self.read_inverse, self.write_inverse, self.group)

    def _run_dense(self) -> None:
        tokens, self.unit, self.finite = scaled_tokens(self.op.tokens(self.heads))
        blocks = cut(tokens, self.group)
        # the largest squared Frobenius norm of each block's transitions, `[N, blocks]`
        self.transition_squares = torch.linalg.matrix_norm(blocks.transition).square().amax(-1)
        self.blocks = _dense_parts(blocks)
        self.token_squares = [x.square().sum((2, 3)) for x in (blocks.write, blocks.read)]
        self._scan_dense()

    def _run_rank_one(self) -> None:
        """As `_run_dense`, by kernels, and from the tokens of some heads at a time."""
        n, number, device = parts.padded(self.op.state_size), self.number, self.heads.device
        self.blocks = parts.empty(len(self.heads) * number, n, self.group, device, matrices=True)
        each = max(1, TOKEN_WORKSPACE // rank_one.scratch_bytes(number * self.group, n))
        found = []
        for first in range(0, len(self.heads), each):
            tokens, unit, finite = scaled_tokens(self.op.tokens(self.heads[first : first + each]))
            found.append((unit, finite, *TokenSizes.of(tokens)))
            rank_one.build(tokens, self.group, self.blocks[first * number : (first + each) * number])
        self.unit, self.finite, *sizes = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        self.sizes = TokenSizes(*sizes)
        self._scan_dense()

    def _scan_dense(self) -> None:
        """Gramians of dense `Phi`, and which heads are growing; nothing of these is kept."""
        self.P, self.Q = scans.gramians(self.blocks, len(self.heads))
        pieces = (self.blocks.X, self.blocks.Y, self.blocks.Z, self.blocks.Phi, self.P, self.Q)
        sizes = torch.stack([largest(x.reshape(len(self.heads), -1)) for x in pieces])
        entry = torch.maximum(self.op.state_size * sizes[0] * sizes[4].sqrt(), sizes[1]) * self.unit
        self.growing = self.finite & ~((sizes <= SQUARABLE).all(0) & (entry <= REPRESENTABLE))
        for x in (*vars(self.blocks).values(), self.P, self.Q):
            x.view(len(self.heads), -1)[self.growing] = 0.0

    @cached_property
    def mass(self) -> Tensor:
        """`[items, n]`, the diagonal of `Phi^T Q Phi`: how visible each coordinate is at the block's left edge."""
        Phi = self.blocks.Phi
        if Phi.dim() == 2:
            return Phi.square() * self.Q.diagonal(dim1=1, dim2=2)
        return torch.einsum("bij,bij->bj", Phi, self.Q @ Phi)

    def _lost(self, span: int) -> Tensor:
        """Found from the tokens in PyTorch, some heads at a time; in few spans, as each costs a few launches."""
        if not self.op.diagonal:
            return self._lost_in_dense_states(span)
        size = max(span, LEAST_LOST_SPAN)
        each = max(1, LOST_WORKSPACE // (8 * 8 * self.length * self.op.state_size))
        numbers = torch.arange(len(self.heads), device=self.heads.device)
        spans = Spans.joined(self._spans(some, size) for some in numbers.split(each))
        lost = lost_in_spans(spans).repeat_interleave(size // span, 1)
        return lost[:, : -(-self.length // span)]

    def _spans(self, some: Tensor, size: int) -> Spans:
        """Tokens of some of the engine's heads in spans of `size`, in its units."""
        tokens = self.op.tokens(self.heads[some])
        read = tokens.read * self.read_inverse[some, None, None]
        write = tokens.write * self.write_inverse[some, None, None]
        return Spans.of(Tokens(read, write, tokens.transition, tokens.reads_before), size)

    def _lost_in_dense_states(self, span: int) -> Tensor:
        def by_block(x: Tensor) -> Tensor:
            return x.reshape(len(self.heads), self.number, -1).sum(-1)

        reach, seen = (by_block(x.diagonal(dim1=1, dim2=2)) for x in (self.P, self.Q))
        if self.op.rank_one:
            return lost_in_rank_one_states(self.sizes, reach, seen, self.group, self.op.reads_before, span)
        # as `engine.lost.squares`
        carried = by_block(self.blocks.Z.square()), by_block(self.blocks.X.square())
        written, read = (own + x for own, x in zip(self.token_squares, carried, strict=True))
        lost = lost_in_dense_states(reach, written, seen, read, self.transition_squares, self.group)
        return lost.expand(-1, -(-self.length // span))

    def _foreseen_width(self, tau: Tensor) -> Tensor:
        """What the shifted root adds to a width, which is known before any elimination."""
        if self.small:
            # its shift of 16 ulp is no larger than the other rounding errors
            return torch.zeros_like(tau)
        reached = (self.P.diagonal(dim1=1, dim2=2) * self.mass).sum(1).view(len(self.heads), 1, -1)
        return EPS * _root_error(reached, self.P.shape[1]) * _inverse_square(tau)

    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        return self._staircase(wanted.positions, lambda head, number: tau[head, :, number], definite=False)

    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        nodes = quadrature.nodes(wanted.device)
        each = wanted[:, None].expand(-1, len(nodes), -1)
        work = self._pass(each, lambda head, number: nodes.expand(len(head), -1), True, scale)
        with on(wanted.device):
            rounding = self._spread(work.rounding)
            found = weights.estimate(quadrature, work.answer.value.view(each.shape), cap, rounding)
        return found._replace(total=found.total * self._spread(work.own.sqrt()))

    def _staircase(self, wanted: Tensor, shifts: Shifts, definite: bool) -> Eliminated:
        return self._pass(wanted, shifts, definite, None).answer.eliminated

    def _pass(self, wanted: Tensor, shifts: Shifts, definite: bool, scale: Tensor | None) -> _Work:
        """Values and growth at `wanted` `[N, S, L]`.

        All positions of a block come together: those not wanted are filled in too.

        Args:
            wanted: bool.
            shifts: `(heads, numbers) -> [J, S]`, the tolerances of some blocks, or (`definite`) the nodes of a
                quadrature, in units of `scale` `[N]`, or of each block's own scale if there is none.
            definite: log-determinants or counts.
            scale: see above.
        """
        answer = Answer.of(wanted.flatten(0, 1))
        wanted_groups = self._wanted_groups(wanted)
        own, rounding = self.unit.new_zeros(2, len(wanted_groups), self.number).unbind(0)
        work = _Work(wanted_groups, answer, shifts, definite, scale, own, rounding)
        heads, numbers = wanted_groups.any(1).nonzero(as_tuple=True)
        with on(wanted.device):
            if self.small and scale is None:
                heads, numbers = self._small_blocks(work, heads, numbers)
            self._blocks(work, heads, numbers)
        return work

    def _place(self, work: _Work, head: Tensor, number: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the flat answer the positions of some (block, shift) pairs begin, and how many there are."""
        start = number * self.group
        return (head * work.wanted_groups.shape[1] + s) * self.length + start, (self.length - start).clamp_max(
            self.group
        )

    def _small_blocks(self, work: _Work, heads: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """All of some blocks' positions by the fused kernels; returns the blocks that these are too coarse for."""
        each = max(1, NODE_WORKSPACE // (8 * 6 * self.group**2 * work.wanted_groups.shape[1]))
        units = (self.read_inverse, self.write_inverse)
        poor = []
        for head, number in zip(heads.split(each), numbers.split(each), strict=True):
            shift = work.shifts(head, number)
            wanted_groups = work.wanted_groups[head, :, number]
            item = head * self.number + number
            out = small.eliminate(self.source, *units, self.P, self.Q, item, shift, wanted_groups, work.definite)
            which, s = wanted_groups.nonzero(as_tuple=True)
            place, limit = self._place(work, head[which], number[which], s)
            nodes = Roots(out.rkc, out.value, out.growth, out.least, place, limit)
            descend(nodes, *work.flat, work.definite, budget=NODE_WORKSPACE)
            if work.definite:
                work.note(head, number, out.scale, out.coarse)
            else:
                poor.append(_too_coarse(out.coarse, shift))
        if not poor:
            return heads[:0], numbers[:0]
        again = torch.cat(poor)
        return heads[again], numbers[again]

    def _blocks(self, work: _Work, heads: Tensor, numbers: Tensor) -> None:
        """All of some blocks' positions: products for the blocks, then pairs of a block and a shift."""
        if len(heads) == 0:
            return
        c, n = self.group, self.blocks.X.shape[-1]
        step, each = blocks_at_once(n, c), pairs_at_once(c)
        everything = len(heads) == len(self.P)
        for first, head, number in zip(range(0, len(heads), step), heads.split(step), numbers.split(step), strict=True):
            # where all blocks are done, ranges of them are read in place; otherwise blocks are gathered
            item = slice(first, first + len(head)) if everything else head * self.number + number
            outside, shift, growth = self._outside(work, item, head, number)
            which, s = work.wanted_groups[head, :, number].nonzero(as_tuple=True)
            tau, brought = shift[which, s], growth[which, s]
            place, limit = self._place(work, head[which], number[which], s)
            for start in range(0, len(which), each):
                piece = slice(start, start + each)
                pairs = (which[piece], tau[piece], brought[piece], place[piece], limit[piece])
                descend(eliminate(outside, *pairs, work.definite), *work.flat, work.definite, budget=NODE_WORKSPACE)

    def _outside(
        self, work: _Work, item: Tensor | slice, head: Tensor, number: Tensor
    ) -> tuple[Outside, Tensor, Tensor]:
        """Boundaries of some blocks, their shifts `[J, S]`, and the growth that their data bring, `[J, S]`.

        The shifted root is tried first. Blocks whose smallest tolerance it is too coarse for get the pivoted one.
        """
        P, Q, mass = self.P[item], self.Q[item], self.mass[item]
        blocks = self.blocks[item]
        shift = work.shifts(head, number)
        F, size = shifted_roots(P, mass)
        reached = (P.diagonal(dim1=1, dim2=2) * mass).sum(1)
        coarse = _root_error(reached, P.shape[1])
        corner = (blocks.Z.square() @ Q.diagonal(dim1=1, dim2=2)[..., None])[..., 0].amax(1)
        if work.definite:
            outside = _products(F, blocks, Q)
            own = _scale(outside) if work.scale is None else work.scale[head]
            work.note(head, number, own, coarse + torch.maximum(size, corner))
            shift = (shift * torch.where(own == 0, 1.0, own)[:, None]).sqrt()
            return outside, shift, torch.zeros_like(shift)
        poor = _too_coarse(coarse, shift)
        if len(poor):
            F[poor], size[poor] = pivoted_roots(P[poor], mass[poor])
            coarse[poor] = 2 * reached[poor]
        growth = (coarse + torch.maximum(size, corner))[:, None] * _inverse_square(shift)
        return _products(F, blocks, Q), shift, growth

    def known_zero(self) -> Tensor:
        return zero_positions_of(self.op, self.heads)

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        """As the PyTorch engine finds them, from QR factors of the recurrence, for the heads that need it."""
        needed, back = heads.unique(return_inverse=True)
        tokens = self.op.tokens(self.heads[needed])
        exact = Recurrence(tokens, exact_block_length(self.op.state_size, False), self.cost)
        return exact.values_at(back, positions) * (exact.unit / self.unit[needed])[back][:, None]


def _unit(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """A power of two near each magnitude, one where it is zero, and its inverse."""
    unit = power_of_two(magnitude[:, None])[1]
    return unit, 1 / unit


def _dense_parts(cut_tokens: Tokens) -> Blocks:
    """Parts of blocks whose transitions are matrices, by PyTorch: items in a row, states padded for the kernels."""
    built = block_parts(cut_tokens)
    padding = parts.padded(built.X.shape[-1]) - built.X.shape[-1]

    def padded(x: Tensor, axes: int) -> Tensor:
        return torch.nn.functional.pad(x.flatten(0, 1), (0, padding) * axes).contiguous()

    return Blocks(padded(built.X, 1), built.Y.flatten(0, 1), padded(built.Z, 1), padded(built.Phi, 2))


def _products(F: Tensor, blocks: Blocks, Q: Tensor) -> Outside:
    """Boundaries of blocks from `F^T`, which is overwritten."""
    c = blocks.X.shape[1]
    AE = F.new_empty(*F.shape[:2], 2 * c)
    torch.bmm(F, blocks.X.mT, out=AE[..., :c])
    carried = F.mul_(blocks.Phi[:, None]) if blocks.Phi.dim() == 2 else F @ blocks.Phi.mT
    seen = carried @ Q
    torch.bmm(seen, blocks.Z.mT, out=AE[..., c:])
    return Outside(seen @ carried.mT, AE, blocks.Z @ (Q @ blocks.Z.mT), blocks.Y)


def _root_error(reached: Tensor, n: int) -> Tensor:
    """Half of what the root's shift adds to a squared singular value, at most, in units of eps."""
    return reached * (root_shift(n) / EPS / 2)


def _inverse_square(tolerance: Tensor) -> Tensor:
    """`1 / tolerance^2`, zero where there is no tolerance to eliminate at."""
    return torch.where(tolerance > 0, tolerance.square().reciprocal(), 0.0)


def _too_coarse(coarse: Tensor, tolerance: Tensor) -> Tensor:
    """Which blocks have a tolerance `[J, S]` at which the root's shift leaves no hope to settle a count, int64."""
    return (EPS * coarse * _inverse_square(tolerance).amax(1) > HOPEFUL).nonzero()[:, 0]


def _scale(outside: Outside) -> Tensor:
    """`[J]`: a bound of the squared largest singular value at all positions of each block."""
    c = outside.Y.shape[1]
    past_rows = outside.AE[..., :c]
    grams = (outside.S, past_rows.mT @ past_rows, outside.G, outside.Y.mT @ outside.Y)
    return torch.stack([norm_bound(gram) for gram in grams]).sum(0)
