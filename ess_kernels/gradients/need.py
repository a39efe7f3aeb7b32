"""What functions of singular values take with all that their backward needs, announced before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

from ..memory import Need
from ..operators.structure import Operator, StateSpace
from .functions import SpectralFunction
from .matrix import few

# Numbers that autograd keeps, with as many gradients at the end, measured: copies of T beside those that make it, and
# of every token's state vectors (tokens, scaled and cut ones, products of gates, reads and writes of blocks)
COPIES, VECTORS = 4, 30
# matrices of n x n numbers that a position keeps: roots and their decompositions; and those of a head's elimination,
# of L x L numbers, whose steps are made once more in the backward
ROOTS, STEPS = 5, 12
INSTEAD = "fewer positions or heads at a time, shorter sequences, or a call under torch.no_grad()"


def need_of_gradient(op: Operator, positions: Sequence[int], function: SpectralFunction, beside: int = 0) -> Need:
    """Of all heads together, because a graph holds them all; `beside`: bytes a head that are taken for something else.

    Of a recurrence the vectors of all tokens, and roots at all positions. Of any other operator copies of T, and either
    the gradients of every `H_i`, or a copy of T for every shift with one head's elimination.
    """
    length, each = op.length, beside
    if isinstance(op, StateSpace):
        n = op.state_size
        each += 8 * (length * VECTORS * n + len(positions) * (ROOTS + function.number) * n * n)
        if op.rank_one:
            each += 8 * length * VECTORS * n
        elif not op.diagonal:
            each += 8 * length * 2 * COPIES * n * n
        most = op.num_heads * each
    else:
        each += op.bytes_of_dense() + 8 * COPIES * length**2
        work = 0
        if few(length, positions, function):
            each += 8 * (1 + function.number) * sum(i * (length - i) for i in positions)
        else:
            each += 8 * function.number * len(function.quadrature) * length**2
            work = 8 * STEPS * length**2
        most = op.num_heads * each + work
    return Need(f"the gradient of {op.num_heads} heads of {length} tokens", most, most, INSTEAD)
