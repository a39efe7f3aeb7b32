"""The matrix that a case stands for, from its tensors, by other means than the operator's own and in more digits.

Recurrences go token by token in pairs of float64 (`pairs.py`); exponentials and softmax in the machine's longest float.
With every entry comes how large the terms were that were added up to it: the loss of the sum is in proportion to them,
and so is what any program in float64 must lose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from . import pairs
from .case import Case
from .pairs import Pair

LONG = np.longdouble
LONG_EPS = float(np.finfo(LONG).eps)
# products of float64 below this have lost digits, or everything
UNDERFLOW = 2.0**-960


class Exact(NamedTuple):
    """`T` `[H, L, L]` without the diagonal, strictly lower.

    Attributes:
        T: the entries.
        magnitude: sums of the absolute values of the terms that make an entry, float64.
        loss: `T` is off by at most `loss * magnitude`, entry by entry.
        reach: `[H, L]`, at every position the norm of what was written times the norm of what will be read, magnitudes
            all: what a program loses that turns the states' basis. `None` without a state.
        underflows: bool, like `T`, where an entry is less than `UNDERFLOW`, though not zero: it may be given as zero.
            `None`: nowhere.
    """

    T: Pair
    magnitude: np.ndarray
    loss: float
    reach: np.ndarray | None = None
    underflows: np.ndarray | None = None


class Steps(NamedTuple):
    """A recurrence token by token: pairs `[H, L, n]`, and `[H, L, n]` or `[H, L, n, n]` for the transitions.

    `terms`: of transitions that are sums, the magnitudes of what is added up, `[H, L, n, n]`.
    """

    read: Pair
    write: Pair
    transition: Pair
    reads_before: bool
    loss: float
    terms: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """Magnitudes of the transitions."""
        return np.abs(self.transition.high) if self.terms is None else self.terms


def exact(case: Case) -> Exact:
    """`T` of a case; numbers that overflow are infinite or NaN."""
    with np.errstate(all="ignore"):
        inputs = {name: (x if x.dtype == torch.bool else x.double()).numpy() for name, x in case.inputs.items()}
        if case.family in _MATRICES:
            x = _MATRICES[case.family](case, **inputs)
            return x._replace(T=x.T.map(lambda T: np.tril(T, -1)), magnitude=np.tril(x.magnitude, -1))
        return _of_steps(_STEPS[case.family](case, **inputs))


def _dense(case: Case, T: np.ndarray) -> Exact:
    return Exact(pairs.exact(T), np.abs(T), 0.0)


def _toeplitz(k: np.ndarray) -> np.ndarray:
    length = k.shape[-1]
    lag = np.arange(length)[:, None] - np.arange(length)
    return np.where(lag >= 0, k[..., np.maximum(lag, 0)], 0.0)


def _convolution(case: Case, k: np.ndarray) -> Exact:
    return _dense(case, _toeplitz(k))


def _gated_convolution(case: Case, x0: np.ndarray, k: np.ndarray, x1: np.ndarray) -> Exact:
    outer = pairs.multiply(pairs.exact(x0[0, :, :, None]), pairs.exact(x1[0, :, None, :]))
    T = pairs.multiply(outer, pairs.exact(_toeplitz(k)))
    magnitude = np.abs(T.high)
    alive = (x0[0, :, :, None] != 0) & (x1[0, :, None, :] != 0) & (_toeplitz(k) != 0)
    return Exact(T, magnitude, pairs.LOSS, underflows=np.tril(alive & (magnitude < UNDERFLOW), -1))


def _attention(
    case: Case,
    q: np.ndarray,
    k: np.ndarray,
    attn_mask: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
    g: np.ndarray | None = None,
    alibi_slopes: np.ndarray | None = None,
) -> Exact:
    q, k = q[0].astype(LONG), k[0].astype(LONG)
    logits = np.stack([a @ b.T for a, b in zip(q, k)])
    length = q.shape[1]
    row, column = np.arange(length)[:, None], np.arange(length)
    seen = (column <= row) & (column > row - case.options.get("window_size", length))
    if attn_mask is not None:
        seen = seen & attn_mask[0, 0]
    farthest = 0.0
    if g is not None:
        gates = g[0].astype(LONG)
        for i in range(length):
            # from the row's own token backwards
            logits[:, i, :i] += np.cumsum(gates[:, i:0:-1], -1)[:, ::-1]
        farthest += length * float(np.abs(np.where(np.isfinite(g), g, 0)).max(initial=0))
    if alibi_slopes is not None:
        logits = logits - alibi_slopes.astype(LONG)[:, None, None] * (row - column)
        farthest += length * float(np.abs(alibi_slopes).max(initial=0))
    logits = np.where(seen, logits, -np.inf)
    top = logits.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.where(np.isfinite(top), top, 0)
    weights = np.exp(logits - top)
    sums = weights.sum(-1, keepdims=True) + (0 if sinks is None else np.exp(sinks[:, None, None] - top))
    T = weights / np.where(sums == 0, 1, sums)
    largest = float(np.abs(q).sum(-1).max(initial=0) * np.abs(k).max(initial=0))
    return Exact(pairs.from_longdouble(T), T.astype(np.float64), (largest + farthest + length + 8) * LONG_EPS)


_MATRICES: Mapping[str, Callable[..., Exact]] = {
    "dense": _dense,
    "convolution": _convolution,
    "gated_convolution": _gated_convolution,
    "attention": _attention,
}


def _linear_attention(case: Case, q: np.ndarray, k: np.ndarray) -> Steps:
    read, write = (pairs.exact(x[0].swapaxes(0, 1)) for x in (q, k))
    return Steps(read, write, pairs.exact(np.ones_like(read.high)), False, pairs.LOSS)


def _decays(exponent: Pair) -> Pair:
    """Exponentials of pairs."""
    return pairs.from_longdouble(np.exp(exponent.high.astype(LONG)) * np.exp(exponent.low.astype(LONG)))


def _gla(case: Case, q: np.ndarray, k: np.ndarray, g: np.ndarray) -> Steps:
    read, write, *_ = _linear_attention(case, q, k)
    return Steps(read, write, _decays(pairs.exact(g[0].swapaxes(0, 1))), False, 4 * q.shape[1] * LONG_EPS)


def _ssd(case: Case, dt: np.ndarray, A: np.ndarray, B: np.ndarray, C: np.ndarray) -> Steps:
    step = dt[0].T[..., None]
    decay = _decays(pairs.multiply(pairs.exact(np.broadcast_to(A[:, None, None], step.shape)), pairs.exact(step)))
    read, write, *_ = _linear_attention(case, C, B)
    n = B.shape[-1]
    write = pairs.multiply(write, pairs.exact(np.broadcast_to(step, write.high.shape)))
    return Steps(read, write, decay.map(lambda x: np.repeat(x, n, -1)), False, 4 * dt.shape[1] * LONG_EPS)


def _selective_scan(case: Case, delta: np.ndarray, A: np.ndarray, B: np.ndarray, C: np.ndarray) -> Steps:
    step = delta[0][..., None]
    shape = (*step.shape[:2], A.shape[1])
    step = np.broadcast_to(step, shape)
    decay = _decays(pairs.multiply(pairs.exact(np.broadcast_to(A[:, None], shape)), pairs.exact(step)))
    read, write = (pairs.exact(np.broadcast_to(x[0].T, shape)) for x in (C, B))
    return Steps(read, pairs.multiply(write, pairs.exact(step)), decay, False, 4 * shape[1] * LONG_EPS)


def _recurrence(case: Case, A: np.ndarray, B: np.ndarray, C: np.ndarray) -> Steps:
    if "length" in case.options:
        A, B, C = (np.repeat(x[:, None], case.options["length"], 1) for x in (A, B, C))
    return Steps(pairs.exact(C), pairs.exact(B), pairs.exact(A), True, pairs.LOSS)


def _rank_one(read: Pair, write: Pair, decay: Pair, lookup: Pair, update: Pair, loss: float) -> Steps:
    """Transitions `diag(decay) + update lookup^T`, as matrices."""
    outer = pairs.multiply(update[..., :, None], lookup[..., None, :])
    one = np.eye(decay.high.shape[-1])
    diagonal = decay.map(lambda x: x[..., None] * one)
    terms = np.abs(diagonal.high) + np.abs(outer.high)
    return Steps(read, write, pairs.add(diagonal, outer), False, loss, terms)


def _dplr(case: Case, q: np.ndarray, k: np.ndarray, a: np.ndarray, b: np.ndarray, gk: np.ndarray) -> Steps:
    read, write, decay, _, loss, _ = _gla(case, q, k, gk)
    lookup, update, *_ = _linear_attention(case, a, b)
    return _rank_one(read, write, decay, lookup, update, loss)


def _kda(case: Case, q: np.ndarray, k: np.ndarray, g: np.ndarray, beta: np.ndarray) -> Steps:
    read, key, decay, _, loss, _ = _gla(case, q, k, g)
    write = pairs.multiply(key, pairs.exact(np.broadcast_to(beta[0].T[..., None], key.high.shape)))
    return _rank_one(read, write, decay, pairs.multiply(decay, key), write.map(np.negative), loss)


_STEPS: Mapping[str, Callable[..., Steps]] = {
    "linear_attention": _linear_attention,
    "gla": _gla,
    "ssd": _ssd,
    "selective_scan": _selective_scan,
    "dplr_delta_rule": _dplr,
    "kda": _kda,
    "recurrence": _recurrence,
}


def _of_steps(steps: Steps) -> Exact:
    """Every column's state is carried from token to token and read at every row."""
    heads, length, n = steps.read.high.shape
    T, magnitude = pairs.zeros((heads, length, length)), np.zeros((heads, length, length))
    written = np.zeros((heads, length))
    states, sizes = pairs.zeros((heads, length, n)), np.zeros((heads, length, n))
    # which states are not zero, however small
    alive, some = np.zeros((heads, length, n), dtype=bool), np.zeros(T.high.shape, dtype=bool)
    for i in range(length):
        past = np.s_[:, :i]
        written[:, i] = np.sqrt((sizes[past] ** 2).sum((1, 2)))

        def move(i=i, past=past) -> None:
            A, size = steps.transition[:, i, None], steps.sizes[:, i]
            if steps.transition.high.ndim == 3:
                states[past] = pairs.multiply(A, states[past])
                sizes[past] *= size[:, None]
                alive[past] &= A.high != 0
            else:
                states[past] = pairs.total(pairs.multiply(A, states[past][:, :, None, :]))
                sizes[past] = sizes[past] @ size.swapaxes(-1, -2)
                alive[past] = alive[past] @ (size != 0).swapaxes(-1, -2)

        if not steps.reads_before:
            move()
        read = steps.read[:, i, None]
        T[:, i, :i] = pairs.total(pairs.multiply(read, states[past]))
        magnitude[:, i, :i] = (np.abs(read.high) * sizes[past]).sum(-1)
        some[:, i, :i] = ((read.high != 0) & alive[past]).any(-1)
        if steps.reads_before:
            move()
        states[:, i] = steps.write[:, i]
        sizes[:, i] = np.abs(steps.write.high[:, i])
        alive[:, i] = steps.write.high[:, i] != 0
    return Exact(T, magnitude, n * steps.loss, written * _will_be_read(steps), some & (magnitude < UNDERFLOW))


def _will_be_read(steps: Steps) -> np.ndarray:
    """Norms of the magnitudes by which the rows from each position on read the state before it, `[H, L]`."""
    heads, length, n = steps.read.high.shape
    rows, norms = np.zeros((heads, length, n)), np.zeros((heads, length))
    transition = steps.sizes
    for i in reversed(range(length)):
        own = np.abs(steps.read.high[:, i])
        if not steps.reads_before:
            rows[:, i] = own
        A = transition[:, i]
        rows[:, i:] = rows[:, i:] * A[:, None] if transition.ndim == 3 else rows[:, i:] @ A
        if steps.reads_before:
            rows[:, i] = own
        norms[:, i] = np.sqrt((rows[:, i:] ** 2).sum((1, 2)))
    return norms
