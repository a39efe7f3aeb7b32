"""Singular values of many small matrices: bidiagonalise each one, then count.

`A` is scaled by a power of two, reduced to bidiagonal form by Householder reflectors (never squared) and its values are
found by bisection, each to a few ulp of the largest. Counting how many exceed a tolerance takes one sweep over the
bidiagonal form, so counts alone need no values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....engine.certainty import entropy_of_values
from ....engine.parallel import product_values
from ....engine.scaling import exp2
from ....memory import budget_in_bytes
from .bidiagonal import IN_REGISTERS, reduce_in_registers
from .leading import reduce_leading
from .sturm import counts_of_squares, padded_length, values_of_squares

LARGEST = 256

# the entropy-ESS of values [batch, S], in their precision
entropy = entropy_of_values


def singular_values(A: Tensor, right: Tensor | None = None) -> Tensor:
    """Singular values of every matrix of a batch, or of `A right^T`, as `torch.linalg.svdvals` gives them.

    Args:
        A: finite `[batch, m, n]`, float32 or float64 (computed in its own precision), `min(m, n) <= 256`.
        right: `[batch, k, n]`: the matrices are then `A right^T`, formed first, never squared.

    Returns:
        `[batch, min(m, n)]`, descending, wrong by a few ulp of the largest times n; NaN where the product overflows.
    """
    return product_values(lambda x: _sliced(x, x.new_empty(0, min(x.shape[1:])), values_of_squares), A, right)


def counts_above(A: Tensor, tau: Tensor, right: Tensor | None = None) -> Tensor:
    """How many singular values exceed each tolerance, without finding them.

    Args:
        A, right: as in `singular_values`.
        tau: `[M]`, not negative, rounded to A's precision.

    Returns:
        int64 `[M, batch]`; -1 where the product overflows. A value within rounding errors of a tolerance (a few ulp of
        the largest value times n) may be counted or not; so may zeros at `tau = 0`.
    """
    none = torch.empty(0, len(tau), dtype=torch.int64, device=A.device)

    def count(squares: Tensor, unit: Tensor, n: int) -> Tensor:
        return counts_of_squares(squares, unit, n, tau)

    return product_values(lambda x: _sliced(x, none, count), A, right, bad=-1).T


def _sliced(A: Tensor, none: Tensor, finish: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    """Applies `finish` to the bidiagonal forms of as many matrices at a time as fit the budget.

    `none` is the answer for a batch of no matrices.
    """
    A = A if A.shape[1] >= A.shape[2] else A.mT
    batch, m, n = A.shape
    if n > LARGEST:
        raise ValueError(f"A: expected min(m, n) <= {LARGEST}, got shape {tuple(A.shape)}")
    if n == 0:
        return none.new_zeros(batch, none.shape[1])
    # numbers of a matrix: its bidiagonal form and the results
    numbers = 4 * padded_length(n)
    if m > IN_REGISTERS:
        # a scaled copy, and the workspace of a QR decomposition where there is one
        numbers += m * n if m == n else 3 * m * n
    each = max(1, budget_in_bytes() // (numbers * A.element_size()))
    return torch.cat([none] + [finish(*_bidiagonal(piece), n) for piece in A.split(each) if len(piece)])


def _bidiagonal(A: Tensor) -> tuple[Tensor, Tensor]:
    """Squares of the bidiagonal form of `A [batch, m, n]`, `m >= n`, `[batch, padded_length(n)]`, and their units."""
    batch, m, n = A.shape
    squares, unit, again = A.new_zeros(batch, padded_length(n)), A.new_ones(batch), A.new_empty(batch)
    if m > n and m > IN_REGISTERS:
        A, unit = _scaled(A)
        A = torch.linalg.qr(A, mode="r").R
    if n <= IN_REGISTERS:
        reduce_in_registers(A, squares, again)
    else:
        A, again = _scaled(A)
        steps = n - IN_REGISTERS
        reduce_leading(A, squares, steps)
        reduce_in_registers(A, squares, None, steps)
    return squares, unit * again


def _scaled(A: Tensor) -> tuple[Tensor, Tensor]:
    """A contiguous copy of every matrix, divided by the power of two below its largest entry, and those powers."""
    largest = torch.linalg.vector_norm(A, torch.inf, dim=(1, 2))
    exponent = torch.frexp(largest).exponent - 1
    # two factors, because the power of two or its reciprocal alone may be out of range
    half = exponent // 2
    one, other = (exp2(x.to(torch.int64)).to(A.dtype) for x in (half, exponent - half))
    A = (A * (1 / one)[:, None, None]).mul_((1 / other)[:, None, None]).contiguous()
    return A, torch.where(largest == 0, 0.0, one * other)
