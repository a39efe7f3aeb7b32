"""What the engine is measured against: the paper's program, and the best that an informed user writes with torch alone.

Each peer returns singular values, or counts and entropy from them, so that its answers are checked as well as timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ess_kernels.operators import Operator, StateSpace


@dataclass
class Peer:
    """A peer's answer: singular values at some positions, and seconds for all of them."""

    name: str
    positions: Tensor
    values: list[Tensor]
    seconds: float
    sampled: bool


def sample(length: int, count: int) -> Tensor:
    """`count` positions spread evenly over 1..L-1."""
    return torch.linspace(1, length - 1, min(count, length - 1)).round().to(torch.int64).unique()


def _extrapolated(name: str, length: int, positions: Tensor, values: Callable[[int], Tensor]) -> Peer:
    """Times each position by itself; the sum over a spline through them stands for all L-1."""
    found, times = [], []
    for i in positions.tolist():
        start = time.perf_counter()
        found.append(values(i))
        times.append(time.perf_counter() - start)
    x, y = positions.double(), torch.tensor(times, dtype=torch.float64)
    # trapezoid rule between the samples, which include both ends
    total = float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum()) + times[-1]
    return Peer(name, positions, found, total, True)


def paper_program(op: Operator, positions: Tensor) -> Peer:
    """One `svdvals` of `H_i` per position, as the paper prints it (but float64), on all cores; sampled."""
    T = op.dense().reshape(op.length, op.length)
    return _extrapolated("one svdvals per position", op.length, positions, lambda i: torch.linalg.svdvals(T[i:, :i]))


def smaller_gram(op: Operator, positions: Tensor) -> Peer:
    """For any T: `eigvalsh` of the smaller of `H^T H` and `H H^T` at each position; sampled."""
    T = op.dense().reshape(op.length, op.length)

    def values(i: int) -> Tensor:
        H = T[i:, :i]
        gram = H.mT @ H if i <= op.length - i else H @ H.mT
        return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1)

    return _extrapolated("Gram matrix + eigvalsh", op.length, positions, values)


def _threaded(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Batched LAPACK walks through a batch on one core: cut it across a pool of workers of one thread each."""
    workers = torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1)) as pool:
        result = torch.cat(list(pool.map(function, x.tensor_split(4 * workers))))
    # what a worker sets is also the default of threads that start later
    torch.set_num_threads(workers)
    return result


def gramians(op: StateSpace) -> Peer:
    """For a recurrence: both Gramians at every position, a Cholesky root of one, `eigvalsh` of the n x n product."""
    tokens = op.tokens(op.all_heads())
    read, write, a = tokens.read[0], tokens.write[0], tokens.transition[0]
    start = time.perf_counter()
    length, n = read.shape
    P, Q = read.new_zeros(length + 1, n, n), read.new_zeros(length + 1, n, n)
    decay = a[:, :, None] * a[:, None, :]
    reach, seen = write[:, :, None] * write[:, None, :], read[:, :, None] * read[:, None, :]
    for t in range(length):
        torch.addcmul(reach[t], decay[t], P[t], out=P[t + 1])
    for t in reversed(range(length)):
        torch.add(Q[t + 1], seen[t], out=Q[t])
        Q[t] *= decay[t]
    P, Q = P[1:length], Q[1:length]
    # the first n Gramians are singular
    jitter = 1e-14 * P.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] * torch.eye(n, dtype=P.dtype)
    root = _threaded(torch.linalg.cholesky, P + jitter)
    squares = _threaded(torch.linalg.eigvalsh, root.mT @ Q @ root)
    values = squares.clamp_min(0).sqrt().flip(-1)
    seconds = time.perf_counter() - start
    return Peer("Gramians + eigvalsh", torch.arange(1, length), list(values), seconds, False)


def qr_roots(op: StateSpace) -> Peer:
    """For a recurrence: QR roots of both Gramians at every position, `svdvals` of the n x n product."""
    tokens = op.tokens(op.all_heads())
    read, write, a = tokens.read[0], tokens.write[0], tokens.transition[0]
    start = time.perf_counter()
    length, n = read.shape
    F, G = read.new_zeros(length + 1, n, n), read.new_zeros(length + 1, n, n)
    for t in range(length):
        F[t + 1] = torch.linalg.qr(torch.cat([F[t] * a[t], write[t, None]]), mode="r").R
    for t in reversed(range(length)):
        G[t] = torch.linalg.qr(torch.cat([G[t + 1], read[t, None]]) * a[t], mode="r").R
    values = _threaded(torch.linalg.svdvals, G[1:length] @ F[1:length].mT)
    seconds = time.perf_counter() - start
    return Peer("QR roots + svdvals", torch.arange(1, length), list(values), seconds, False)


def informed(op: Operator, positions: Tensor) -> list[Peer]:
    """The programs of an informed user for this operator, fastest first."""
    if isinstance(op, StateSpace):
        peers = [min((route(op) for _ in range(3)), key=lambda peer: peer.seconds) for route in (gramians, qr_roots)]
    else:
        peers = [smaller_gram(op, positions)]
    return sorted(peers, key=lambda peer: peer.seconds)
