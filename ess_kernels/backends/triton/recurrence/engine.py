"""Recurrences on the GPU: the engine's certainty, with eliminations by the kernels of this package.

Block parts and Gramians come once a head; then passes over blocks (`passes.py`), with square roots for every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....caching import cached_property
from ....engine.blocks import Blocks, cut
from ....engine.certainty import HOPEFUL
from ....engine.cost import Cost
from ....engine.lost import Spans, few_spans, lost_in_dense_states, lost_in_spans
from ....engine.lost_rank_one import TokenSizes, lost_in_rank_one_states
from ....engine.scaling import largest, power_of_two, scaled_tokens
from ....engine.state_space import REPRESENTABLE, SQUARABLE, Recurrence
from ....engine.state_space import block_length as exact_block_length
from ....engine.zeros import zero_positions_of
from ....operators.structure import StateSpace, Tokens
from ...sources import source_of
from ..runtime import on
from ..staircase.descent import Roots, descend
from . import parts, rank_one, scans, small
from .passes import NODE_WORKSPACE, PartsEngine, Work, inverse_square
from .roots import EPS, pivoted_roots, shifted_roots
from .roots import shift as root_shift

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


class TritonRecurrence(PartsEngine):
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
            self.P, self.Q = scans.gramians(self.parts, len(self.heads))

    @cached_property
    def parts(self) -> Blocks:  # type: ignore[override]
        """The parts of all blocks. Small states need them only where the cheap root is too coarse."""
        return parts.build(self.source, self.read_inverse, self.write_inverse, self.group)

    def _run_dense(self) -> None:
        tokens, self.unit, self.finite = scaled_tokens(self.op.tokens(self.heads))
        blocks = cut(tokens, self.group)
        # the largest squared Frobenius norm of each block's transitions, `[N, blocks]`
        self.transition_squares = torch.linalg.matrix_norm(blocks.transition).square().amax(-1)
        self.parts = parts.of_matrices_in_torch(blocks)
        self.token_squares = [x.square().sum((2, 3)) for x in (blocks.write, blocks.read)]
        self._scan_dense()

    def _run_rank_one(self) -> None:
        """As `_run_dense`, by kernels, and from the tokens of some heads at a time."""
        n, number, device = parts.padded(self.op.state_size), self.number, self.heads.device
        self.parts = parts.empty(len(self.heads) * number, n, self.group, device, matrices=True)
        each = max(1, TOKEN_WORKSPACE // rank_one.scratch_bytes(number * self.group, n))
        found = []
        for first in range(0, len(self.heads), each):
            tokens, unit, finite = scaled_tokens(self.op.tokens(self.heads[first : first + each]))
            found.append((unit, finite, *TokenSizes.of(tokens)))
            rank_one.build(tokens, self.group, self.parts[first * number : (first + each) * number])
        self.unit, self.finite, *sizes = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        self.sizes = TokenSizes(*sizes)
        self._scan_dense()

    def _scan_dense(self) -> None:
        """Gramians of dense `Phi`, and which heads are growing; nothing of these is kept."""
        self.P, self.Q = scans.gramians(self.parts, len(self.heads))
        pieces = (self.parts.X, self.parts.Y, self.parts.Z, self.parts.Phi, self.P, self.Q)
        sizes = torch.stack([largest(x.reshape(len(self.heads), -1)) for x in pieces])
        entry = torch.maximum(self.op.state_size * sizes[0] * sizes[4].sqrt(), sizes[1]) * self.unit
        self.growing = self.finite & ~((sizes <= SQUARABLE).all(0) & (entry <= REPRESENTABLE))
        for x in (*vars(self.parts).values(), self.P, self.Q):
            x.view(len(self.heads), -1)[self.growing] = 0.0

    @cached_property
    def mass(self) -> Tensor:
        """`[items, n]`, the diagonal of `Phi^T Q Phi`: how visible each coordinate is at the block's left edge."""
        Phi = self.parts.Phi
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
        carried = by_block(self.parts.Z.square()), by_block(self.parts.X.square())
        written, read = (own + x for own, x in zip(self.token_squares, carried, strict=True))
        lost = lost_in_dense_states(reach, written, seen, read, self.transition_squares, self.group)
        return lost.expand(-1, -(-self.length // span))

    def _foreseen_width(self, tau: Tensor) -> Tensor:
        """What the shifted root adds to a width, which is known before any elimination."""
        if self.small:
            # its shift of 16 ulp is no larger than the other rounding errors
            return torch.zeros_like(tau)
        reached = (self.P.diagonal(dim1=1, dim2=2) * self.mass).sum(1).view(len(self.heads), 1, -1)
        return EPS * _root_error(reached, self.P.shape[1]) * inverse_square(tau)

    def _fused(self, work: Work, heads: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Of small states; returns the blocks that the fused kernels are too coarse for."""
        if not self.small:
            return heads, numbers
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

    def _roots(self, item: Tensor | slice, tau: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The shifted root is tried first. Blocks whose smallest tolerance it is too coarse for get the pivoted one."""
        P, mass = self.P[item], self.mass[item]
        F, size = shifted_roots(P, mass)
        reached = (P.diagonal(dim1=1, dim2=2) * mass).sum(1)
        coarse = _root_error(reached, P.shape[1])
        poor = () if tau is None else _too_coarse(coarse, tau)
        if len(poor):
            F[poor], size[poor] = pivoted_roots(P[poor], mass[poor])
            coarse[poor] = 2 * reached[poor]
        return F, size, coarse

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


def _root_error(reached: Tensor, n: int) -> Tensor:
    """Half of what the root's shift adds to a squared singular value, at most, in units of eps."""
    return reached * (root_shift(n) / EPS / 2)


def _too_coarse(coarse: Tensor, tolerance: Tensor) -> Tensor:
    """Which blocks have a tolerance `[J, S]` at which the root's shift leaves no hope to settle a count, int64."""
    return (EPS * coarse * inverse_square(tolerance).amax(1) > HOPEFUL).nonzero()[:, 0]
