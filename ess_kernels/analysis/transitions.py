"""How far the transitions of a recurrence are from doing nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.complex_states import ComplexRecurrence, ComplexSelectiveStateSpace
from ..operators.gated import GatedStateSpace
from ..operators.separate import SeparateSequences
from ..operators.structure import Operator, StateSpace, Tokens
from ..operators.sum_of import SumOfStates


def transition_distance(op: Operator) -> Tensor:
    """`||A - I||_F` of the transitions of a recurrence, the paper's regulariser: small where a state forgets nothing.

    Where the transition differs from token to token it is the root of the mean over the tokens of its square, so that
    its size does not depend on the length; where it does not, it is the norm itself. Differentiable, with the gradient
    0 where every transition is the identity. `(loss + weight * transition_distance(op).mean())` is all it takes.

    A complex state of n numbers counts as the real one of `2 n` numbers that it is: a diagonal of complex transitions
    has `sqrt(2) ||A - 1||`, with the modulus of `A - 1`. A transition that only turns is far from the identity.

    Args:
        op: an operator with a finite state of its own for every token; packed and padded ones as well.

    Returns:
        float64 `[*batch]`, 0 where there are no tokens. NaN where a head holds NaN or infinity anywhere, and no
        gradient passes into what only such heads read.

    Raises:
        TypeError: the operator has no such state, or it is known in a frame that turns with it only (Mamba-3 with
            angles).

    Source: appendix A of arXiv 2504.19561.
    """
    if isinstance(op, SeparateSequences):
        squares = torch.zeros(op.sequences.rows, op.heads_in_row, dtype=torch.float64, device=op.device)
        tokens = squares.new_zeros(op.sequences.rows, 1)
        for group in op.groups(op.sequences.every()):
            rows = torch.tensor([sequence.row for sequence in group.sequences], device=op.device)
            squares = squares.index_add(0, rows, group.by_sequence(_squares(group.op)))
            tokens = tokens.index_add(0, rows, tokens.new_full((len(rows), 1), group.op.length))
        return _root(squares / tokens.clamp_min(1)).reshape(op.batch_shape)
    return _root(_squares(op) / max(1, op.length)).reshape(op.batch_shape)


def _squares(op: Operator) -> Tensor:
    """`||A_t - I||_F^2` summed over the tokens, `[N]`; NaN in heads that are not finite."""
    if not isinstance(op, StateSpace):
        raise TypeError(f"op: expected an operator with a finite state for every token, got {type(op).__name__}")
    heads = op.all_heads()
    with torch.no_grad():
        finite = op.finite(heads)
    if bool(finite.all()):
        return _of_heads(op, heads).sum(1)
    # zero times NaN is NaN: what is not finite must have no part in the backward
    good = finite.nonzero()[:, 0]
    squares = torch.full((op.num_heads,), torch.nan, dtype=torch.float64, device=op.device)
    return squares.index_copy(0, good, _of_heads(op, good).sum(1)) if len(good) else squares


def _of_heads(op: StateSpace, heads: Tensor) -> Tensor:
    """`||A_t - I||_F^2` `[N, L]` of some heads."""
    if isinstance(op, SumOfStates):
        return torch.stack([_of_heads(term, heads) for term in op.ops]).sum(0)
    if isinstance(op, (ComplexRecurrence, ComplexSelectiveStateSpace)):
        # their tokens are in a frame that turns with the state
        return 2 * op.squares_apart(heads)
    if isinstance(op, GatedStateSpace) and op.turned:
        raise TypeError(
            "op: expected transitions that are known as they are, got an operator whose reads and writes are turned "
            "by the angles of its transitions, as those of Mamba-3 are"
        )
    return squares_of(op.tokens(heads))


def squares_of(tokens: Tokens) -> Tensor:
    """`||A_t - I||_F^2` `[N, L]`."""
    transition = tokens.transition
    if transition.dim() > tokens.read.dim():
        one = torch.eye(transition.shape[-1], dtype=transition.dtype, device=transition.device)
        return (transition - one).square().sum((-2, -1))
    apart = transition - 1
    squares = apart.square().sum(-1)
    if tokens.lookup is None:
        return squares
    # of diag(apart) + update lookup^T, without the matrix
    both = tokens.updates.square().sum(-1) * tokens.lookup.square().sum(-1)
    return (squares + 2 * (apart * tokens.updates * tokens.lookup).sum(-1) + both).clamp_min(0)


def _root(x: Tensor) -> Tensor:
    """The square root, with the slope 0 at 0."""
    some = x != 0
    return torch.where(some, torch.where(some, x, 1.0).sqrt(), 0.0)
