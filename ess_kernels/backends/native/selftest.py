"""What a compiled library must compute before it is used: small checks with known answers, at every level it has.

A library that was built by a broken compiler, or for another machine, is to be found out here and not in somebody's
results. The checks run once a process, at the first use, and take milliseconds together: keep them so.

A family of kernels adds a row to `CHECKS`: a function that calls its kernels as everybody does, by `call.run`, and
returns what they answer, and what that must be.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ... import environment
from .call import pinned


@dataclass(frozen=True)
class Check:
    """One question to a library.

    `compute(handle)` is called at every dispatch level of the machine, with one thread and with two; `call.run` goes to
    that library meanwhile. It may return numbers, tensors, and lists or tuples of them; they must be within `tolerance`
    of `expected`, absolutely.
    """

    name: str
    compute: Callable[[ctypes.CDLL], Any]
    expected: Any
    tolerance: float = 0.0


def positive_pivots(handle: ctypes.CDLL, rows: list[list[float]]) -> int:
    """The number of positive eigenvalues of a small symmetric matrix, of which only the lower triangle is read.

    Raises `ValueError` with the library's own words when it refuses the matrix.
    """
    n = len(rows)
    a = (ctypes.c_double * (n * n))(*(x for row in rows for x in row))
    work = (ctypes.c_double * (n * n))()
    count = ctypes.c_int64(-1)
    code = handle.ess_positive_pivots(n, a, n, work, ctypes.byref(count))
    if code != 0:
        raise ValueError(handle.ess_error_string(code).decode())
    return count.value


def _inertia(handle: ctypes.CDLL) -> list[int]:
    """Counts of H = diag(3, 1/2, 2) above 1, 1/4 and 4.

    The matrix is the one on which this package rests, `[[-tau I, H], [H^T, -tau I]]`: as many of its eigenvalues are
    positive as H has singular values above tau. What lies above the diagonal must not be read.
    """
    singular, unread = (3.0, 0.5, 2.0), float("nan")
    counts = []
    for tau in (1.0, 0.25, 4.0):
        rows = [[-tau if j == i else unread if j > i else 0.0 for j in range(6)] for i in range(6)]
        for i, s in enumerate(singular):
            rows[3 + i][i] = s
        counts.append(positive_pivots(handle, rows))
    return counts


def _refuses_zero_pivot(handle: ctypes.CDLL) -> bool:
    try:
        positive_pivots(handle, [[0.0]])
    except ValueError:
        return True
    return False


CHECKS = [
    Check("inertia", _inertia, [2, 3, 0]),
    Check("refusal of a zero pivot", _refuses_zero_pivot, True),
]


def first_failure(handle: ctypes.CDLL) -> str | None:
    """What is wrong with the library's answers, or None."""
    for level, number in environment.LEVELS.items():
        if number == 0 or not handle.ess_level_name(number):
            continue
        for threads in (1, 2):
            with pinned(handle, threads, number):
                for check in CHECKS:
                    if failure := _failure(check, handle):
                        return f"{check.name} ({level}, {threads} threads): {failure}"
    return None


def _failure(check: Check, handle: ctypes.CDLL) -> str | None:
    try:
        found = check.compute(handle)
    except (ValueError, MemoryError) as error:
        return str(error)
    wanted, got = _flat(check.expected), _flat(found)
    # a NaN compares false
    right = wanted.shape == got.shape and bool(((wanted - got).abs() <= check.tolerance).all())
    return None if right else f"{found!r}, expected {check.expected!r}"


def _flat(answer: Any) -> torch.Tensor:
    if isinstance(answer, (list, tuple)):
        return torch.cat([_flat(part) for part in answer])
    return torch.as_tensor(answer, device="cpu").detach().reshape(-1).to(torch.float64)
