"""What a compiled library must compute before it is used: small checks with known answers.

A library that was built by a broken compiler, or for another machine, must fail here and not in somebody's results.
The checks run once a process, at the first use of a dispatch level, and take tens of milliseconds: keep it so.
They use the thread of the caller; those that try threads run once more, when a call is about to use some.

A family of kernels adds a row to `CHECKS`: a function that calls its kernels as everybody does, by `call.run` or by the
backend itself, and returns what they answer, and what that must be.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import environment, operators
from ...memory import memory_budget
from ...operators import Operator
from ...operators.rank_one import RankOneStateSpace
from ..base import Task
from .call import pinned
from .engines import PinnedBackend


@dataclass(frozen=True)
class Check:
    """One question to a library.

    `compute(handle)` is called while `call.run` goes to that library. It may return numbers, tensors, and lists or
    tuples of them; they must be within `tolerance` of `expected`, absolutely. None: the library has no kernel for this.
    """

    name: str
    compute: Callable[[ctypes.CDLL], Any]
    expected: Any
    tolerance: float = 0.0
    threads: int = 1  # more only where threads are to be tried: starting them takes longer than the arithmetic


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


# An operator whose singular values are known at every position: T_ij = DECAY^(i-j-1) for i > j where i - j is a
# multiple of CLASSES, else 0. Rows and columns of one remainder are an outer product, and do not meet those of another.
LENGTH, CLASSES, DECAY = 21, 3, 0.75
SMALL_VALUES = [3.0, 2.0, 0.25, 0.0, 0.0]
TAU = 0.5  # no singular value is within 1e-3 of it
FAR_DOWN = 1e-9  # squares say nothing there


def _known_values(i: int) -> list[float]:
    def norm(powers: range) -> float:
        return math.sqrt(sum(DECAY ** (2 * power) for power in powers))

    def remainder(c: int) -> tuple[range, range]:
        first_row, last_column = i + (c - i) % CLASSES, i - 1 - (i - 1 - c) % CLASSES
        rows = range(first_row - i, LENGTH - i, CLASSES)
        columns = range(i - 1 - last_column, i, CLASSES)
        return rows, columns

    return [norm(rows) * norm(columns) for rows, columns in map(remainder, range(CLASSES))]


def _known_counts(tau: float = TAU) -> list[int]:
    return [sum(value > tau for value in _known_values(i)) for i in range(1, LENGTH)]


def _known_entropies() -> list[float]:
    answers = []
    for i in range(1, LENGTH):
        values = [value for value in _known_values(i) if value > 0]
        total = sum(values)
        answers.append(math.exp(-sum(value / total * math.log(value / total) for value in values)))
    return answers


def _recurrence(heads: int) -> Operator:
    places = torch.nn.functional.one_hot(torch.arange(LENGTH) % CLASSES, CLASSES).double().expand(heads, -1, -1)
    return operators.recurrence(torch.full_like(places, DECAY), places, places, diagonal=True)


def _recurrence_with_matrices(heads: int) -> Operator:
    """The same in another basis of the state, every transition a full matrix."""
    places = torch.nn.functional.one_hot(torch.arange(LENGTH) % CLASSES, CLASSES).double().expand(heads, -1, -1)
    basis = torch.eye(CLASSES, dtype=torch.float64) - 2 / CLASSES  # a reflection
    A = (DECAY * torch.eye(CLASSES, dtype=torch.float64)).expand(heads, LENGTH, -1, -1)
    return operators.recurrence(basis @ A @ basis, places @ basis, places @ basis, diagonal=False)


def _delta_rule(heads: int, with_updates: bool = False) -> Operator:
    """The same in a basis of the state that every token reflects along its key, as a delta rule with beta = 2 does."""
    times = torch.arange(LENGTH)
    places = torch.nn.functional.one_hot(times % CLASSES, CLASSES).double()
    basis = torch.eye(CLASSES, dtype=torch.float64) - 2 / CLASSES
    # a token's own reflection turns its key, and so do the earlier ones of its class
    keys = ((-1.0) ** (times // CLASSES + 1))[:, None] * places @ basis
    keys = keys[None, :, None].expand(-1, -1, heads, -1)
    gates = torch.full_like(keys[..., :1], math.log(DECAY)).expand_as(keys)
    return RankOneStateSpace(keys / DECAY, keys, gates, lookup=2 * keys, update=-keys if with_updates else None)


def _delta_rule_with_updates(heads: int) -> Operator:
    return _delta_rule(heads, with_updates=True)


def _channels(heads: int) -> Operator:
    """The same as channels of a selective scan."""
    places = torch.nn.functional.one_hot(torch.arange(LENGTH) % CLASSES, CLASSES).double().mT[None]
    A = torch.full((heads, CLASSES), math.log(DECAY), dtype=torch.float64)
    steps = torch.ones(1, heads, LENGTH, dtype=torch.float64)
    return operators.selective_scan(steps, A, places / DECAY, places)


def _matrix(heads: int) -> Operator:
    return operators.dense(_recurrence(heads).dense())


def _answers(
    task: Task, make: Callable[[int], Operator], heads: int, tau: float = TAU
) -> Callable[[ctypes.CDLL], Tensor | None]:
    def compute(handle: ctypes.CDLL) -> Tensor | None:
        backend, op, positions = PinnedBackend(), make(heads), torch.arange(1, LENGTH)
        if backend.refuses(task, op):
            return None
        if task == "entropy_ess":
            return backend.entropy_ess(op, positions).ess
        atol = torch.tensor([tau], dtype=torch.float64)
        return backend.tolerance_ess(op, positions, atol, torch.zeros_like(atol)).counts

    return compute


def _small_spectra(handle: ctypes.CDLL) -> Tensor | None:
    """Diagonal matrices between two reflections."""
    values = torch.tensor(SMALL_VALUES, dtype=torch.float64).expand(9, -1)
    n = values.shape[1]
    reflection = torch.eye(n, dtype=torch.float64) - 2 / n
    A = reflection @ torch.diag_embed(values) @ reflection.flip(0)
    backend = PinnedBackend()
    return None if backend.refuses("small_spectra", A) else backend.small_spectra(A, None)


CHECKS = [
    Check("inertia", _inertia, [2, 3, 0]),
    Check("refusal of a zero pivot", _refuses_zero_pivot, True),
    Check("small spectra", _small_spectra, 9 * SMALL_VALUES, tolerance=1e-12),
    Check("counts far down", _answers("tolerance_ess", _recurrence, 1, FAR_DOWN), _known_counts(FAR_DOWN)),
]
for _name, _make, _heads, _threads in (
    ("a recurrence", _recurrence, 1, 1),
    ("recurrences side by side", _recurrence, 9, 2),  # more than a vector has lanes
    ("channels in lanes", _channels, 9, 1),
    ("a recurrence with matrices", _recurrence_with_matrices, 1, 1),
    ("a delta rule", _delta_rule, 1, 1),
    ("a delta rule with updates", _delta_rule_with_updates, 1, 1),
    ("a matrix", _matrix, 1, 1),
):
    _counts, _entropies = _heads * _known_counts(), _heads * _known_entropies()
    CHECKS += [
        Check(f"counts of {_name}", _answers("tolerance_ess", _make, _heads), _counts, 0.0, _threads),
        Check(f"entropy of {_name}", _answers("entropy_ess", _make, _heads), _entropies, 1e-3, _threads),
    ]


def first_failure(handle: ctypes.CDLL, level: int, threaded: bool = False) -> str | None:
    """What is wrong with the library's answers at a dispatch level, or None.

    All checks run on the caller's thread, or, with `threaded`, those that have more threads on theirs. The answers
    do not depend on the program's settings: it is the library that is judged.
    """
    for check in CHECKS:
        if threaded and check.threads == 1:
            continue
        with (
            pinned(handle, check.threads if threaded else 1, level),
            memory_budget(environment.DEFAULT_MEMORY_BUDGET),
            torch.device("cpu"),
            torch.no_grad(),
        ):
            if failure := _failure(check, handle):
                return f"{check.name}: {failure}"
    return None


def _failure(check: Check, handle: ctypes.CDLL) -> str | None:
    try:
        found = check.compute(handle)
    except Exception as error:  # whatever it is, a library that does this is of no use, and the caller can do without
        return f"{type(error).__name__}: {error}"
    if found is None:
        return None
    wanted, got = _flat(check.expected), _flat(found)
    # a NaN compares false
    right = wanted.shape == got.shape and bool(((wanted - got).abs() <= check.tolerance).all())
    return None if right else f"{found!r}, expected {check.expected!r}"


def _flat(answer: Any) -> Tensor:
    if isinstance(answer, (list, tuple)):
        return torch.cat([_flat(piece) for piece in answer])
    return torch.as_tensor(answer, device="cpu").detach().reshape(-1).to(torch.float64)
