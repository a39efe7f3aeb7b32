"""A slice of a recurrence as a recurrence of its own: what came before and what comes after it as a few more tokens.

All that earlier tokens have written reaches the slice's left edge as a matrix with Gramian `F F^T`: n tokens with
transitions that change nothing, which write the columns of F, do the same. All that later tokens read is seen from its
right edge through `G^T G`: n tokens that read the rows of G. `H_i` of the longer slice then has the singular values of
the whole recurrence's `H_i`, since both differ by matrices with orthonormal columns. So every engine and backend
answers for a slice, with its certificates, and knows nothing of other processes.

Where fewer than n tokens came before, F has as many columns, and the caps of positions come out right by themselves.
Tokens that do nothing come first, so that blocks are cut where they would be cut in the whole recurrence: an entropy is
then the same to within rounding, except in the two blocks that other tokens share with the slice. These have another
scale than in the whole recurrence, and so another error of the quadrature: they get the finer one, so that the two
differ by the error of one process alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..engine.blocks import identity_like
from ..operators.complex_states import ComplexRecurrence, ComplexSelectiveStateSpace
from ..operators.structure import StateSpace, Tokens
from ..operators.sum_of import terms_of

# every engine's blocks have a divisor of this many tokens
LARGEST_BLOCK = 64


def turned(op: StateSpace) -> bool:
    """Whether the tokens of an operator turn its states back to where they were at its first token."""
    return any(isinstance(term, (ComplexRecurrence, ComplexSelectiveStateSpace)) for term in terms_of(op))


def tokens_of(op: StateSpace, heads: Tensor, span: tuple[int, int]) -> Tokens:
    """Some of the tokens of some heads, in a basis of the states that is the same in every slice."""
    tokens = op.matrix_tokens(heads) if turned(op) else op.tokens(heads)
    return tokens.map(lambda x: x[:, span[0] : span[1]])


class Slice(StateSpace):
    """Consecutive tokens of a recurrence between roots of all that came before and all that comes after.

    Attributes:
        op: the operator of this process's tokens alone.
        span: which of them are in the slice, `(start, stop)`.
        before, after: roots `[heads, rows, n]`: their rows are written before, and read after the slice.
        lost: by how much `H_i` may be wrong because the roots were rounded, `[heads, blocks]` for every `LARGEST_BLOCK`
            tokens of the slice, or `[heads, 1]` for all of them.
        good: bool `[heads]`, whether the head is finite in all slices.
        first: the first token of the slice, as a token of this operator.
    """

    def __init__(
        self,
        op: StateSpace,
        span: tuple[int, int],
        begin: int,
        before: Tensor,
        after: Tensor,
        lost: Tensor,
        good: Tensor,
    ):
        """`begin`: the number of tokens in earlier slices."""
        n, rows = op.state_size, before.shape[1]
        self.first = rows + ((begin - rows) % LARGEST_BLOCK if begin > n else 0)
        inputs = [x.detach() for x in (before, after, *op.inputs)]
        diagonal = op.diagonal and not turned(op)
        length = self.first + span[1] - span[0] + after.shape[1]
        super().__init__(
            length,
            op.batch_shape,
            n,
            inputs,
            reads_before=op.reads_before,
            diagonal=diagonal,
            rank_one=op.rank_one,
        )
        self.op, self.span, self.before, self.after = op, span, before, after
        self.lost, self.good = lost, good

    @torch.no_grad()
    def tokens(self, heads: Tensor) -> Tokens:
        own = tokens_of(self.op, heads, self.span)
        padding = (0, 0, self.first - self.before.shape[1], 0)
        written = torch.nn.functional.pad(self.before[heads], padding)
        read = self.after[heads]
        none, unread = torch.zeros_like(written), torch.zeros_like(read)
        tokens = _still(own, none, written).cat(own, _still(own, read, unread), dim=1)
        if bool(self.good[heads].all()):
            return tokens
        # what is bad in one slice is bad in all of them
        return replace(tokens, read=torch.where(self.good[heads][:, None, None], tokens.read, torch.nan))

    @property
    def seams(self) -> tuple[int, ...]:
        own = (self.first, self.first + self.span[1] - self.span[0])
        present = (self.before.shape[1] > 0, self.after.shape[1] > 0)
        return tuple(token for token, there in zip(own, present, strict=True) if there)

    def already_lost(self, heads: Tensor) -> Tensor:
        lost = self.lost[heads]
        if lost.shape[1] <= 1:
            return lost
        own = lost.repeat_interleave(LARGEST_BLOCK, 1)[:, : self.span[1] - self.span[0]]
        # positions of tokens that stand for others are never asked for
        edges = (self.first, self.length - self.first - own.shape[1])
        return torch.nn.functional.pad(own, edges)


def _still(like: Tokens, read: Tensor, write: Tensor) -> Tokens:
    """Tokens that read and write and leave the states as they are, of the same kind as others."""
    zero = torch.zeros_like(read)
    shape = (*read.shape, *like.transition.shape[len(read.shape) :])
    transition = identity_like(read.new_empty(shape), read)
    lookup = None if like.lookup is None else zero
    update = None if like.update is None else zero
    return Tokens(read, write, transition, like.reads_before, lookup, update)
