"""What the algorithms need, in floating point operations (a multiplication and an addition are two): the floor.

Divided by the rate of the machine's matrix product it is the time below which no implementation comes; over a measured
time it is the fraction of that rate which an implementation reaches. Only terms of third order are counted, triangles
as triangles; where the size of a block is free, the one with the fewest operations.
"""

from __future__ import annotations

import time

import torch

BLOCKS = (8, 16, 32, 64)
SHIFTS = 16


def product_rate(size: int = 1024) -> float:
    """Operations a second of torch's float64 matrix product on torch's threads, the best of several."""
    A, B = torch.randn(2, size, size, dtype=torch.float64)
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        A @ B
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# --- recurrences: one block of c tokens, state n ----------------------------------------------------------------------


def _parts(n: int, c: int, dense: bool) -> float:
    """The block's own rows and columns of T by halving, and X^T X; dense transitions also carry X, Z and Phi along."""
    own = c * c * n + c * n * n
    return own + (c * (4 * n * n + 2 * n**3) if dense else 0)


def _scans(n: int, c: int, dense: bool) -> float:
    """Roots F <- tria[Phi F, Z] by reflectors, and Q <- Phi^T Q Phi + X^T X."""
    if not dense:
        return 2 * n * n * c
    # Phi F with a triangular F, reflectors of all n + c columns, Q Phi and half of Phi^T (Q Phi)
    return n**3 + (4 / 3 * n**3 + 2 * n * n * c) + 2 * n**3 + n**3


def _assembly(n: int, c: int, dense: bool) -> float:
    """With D = [F^T Phi^T; Z^T], triangular at first unless Phi is dense: D Q, D (D Q)^T in its lower half, X F.

    With a triangle only the upper half of D Q is needed for the first n rows and columns.
    """
    if dense:
        return 2 * n**3 + 2 * c * n * n + n**3 + 2 * c * n * n + c * c * n + c * n * n
    return 2 / 3 * n**3 + 2 * c * n * n + n**3 / 3 + c * n * n + c * c * n + c * n * n


def _leaf(c: int) -> float:
    """LDL^T of the rows with K appended, of the columns, and a rank-one update of the columns' factors a position."""
    rows, appended, columns = c**3 / 3, c**3 / 3, c**3 / 3
    return rows + appended + columns + 2 * c**3 / 3


def _tolerance(n: int, c: int) -> float:
    """LDL^T of n pivots among n + 2c rows, in its lower half, and the leaf."""
    return n**3 / 3 + 2 * c * n * n + 4 * c * c * n + _leaf(c)


def _shifts(n: int, c: int) -> float:
    """S made tridiagonal and 2c rows turned with it, once; for each shift sums over the states, and the leaf."""
    return 4 / 3 * n**3 + 4 * c * n * n + SHIFTS * (3 * c * c * n + _leaf(c))


def _shared(n: int, c: int, dense: bool) -> float:
    return _parts(n, c, dense) + _scans(n, c, dense) + _assembly(n, c, dense)


def recurrence_counts(length: int, n: int, *, heads: int = 1, tolerances: int = 1, dense: bool = False) -> float:
    """All positions; about 16 n^2 a position and head for one tolerance."""
    return heads * min(length / c * (_shared(n, c, dense) + tolerances * _tolerance(n, c)) for c in BLOCKS)


def recurrence_entropy(length: int, n: int, *, heads: int = 1, dense: bool = False) -> float:
    """All positions, from log-determinants at `SHIFTS` shifts."""
    return heads * min(length / c * (_shared(n, c, dense) + _shifts(n, c)) for c in BLOCKS)


# --- any T: bisection -------------------------------------------------------------------------------------------------

# T21^T T21 and T21 T21^T in their lower halves, of halves of L / 2: shared by all tolerances and shifts
_ROOT = 2 * 0.5**3
# one elimination below the root: 0.56 with it
_BELOW = 0.56 - _ROOT


def matrix_counts(length: int, *, heads: int = 1, tolerances: int = 1) -> float:
    return heads * length**3 * (_ROOT + tolerances * _BELOW)


def matrix_entropy(length: int, *, heads: int = 1) -> float:
    return heads * length**3 * (_ROOT + SHIFTS * _BELOW)


# --- small matrices ---------------------------------------------------------------------------------------------------


def spectra(matrices: int, n: int) -> float:
    """Householder's reduction of n x n matrices to bidiagonal form; the values of that are of second order."""
    return matrices * 8 / 3 * n**3
