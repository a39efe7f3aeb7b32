"""What the engine is measured against: the paper's program, and the best that an informed user writes with torch alone.

Each peer returns singular values, or counts and entropy from them, so that its answers are checked as well as timed.
Each runs with its own best threading: a decomposition at a time on all cores, or one on each core.
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
    """A peer's answer: singular values at some (head, position) pairs, and seconds for all heads and positions."""

    name: str
    values: dict[tuple[int, int], Tensor]
    seconds: float
    sampled: bool


def sample(count: int, most: int, first: int = 0) -> list[int]:
    """At most `most` numbers spread evenly over `first..first+count-1`, both ends among them."""
    return torch.linspace(first, first + count - 1, min(most, count)).round().to(torch.int64).unique().tolist()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _pooled(function: Callable[[Tensor], Tensor], parts: list[Tensor]) -> list[Tensor]:
    """A pool of workers of one thread each, as many as torch has threads."""
    workers = torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=_one_thread) as pool:
        result = list(pool.map(function, parts))
    # what a worker sets is also the default of threads that start later
    torch.set_num_threads(workers)
    return result


def threaded(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Batched LAPACK walks through a batch on one core: cut it across the pool."""
    return torch.cat(_pooled(function, list(x.tensor_split(4 * torch.get_num_threads()))))


def _extrapolated(name: str, op: Operator, heads: list[int], positions: list[int], values: Callable) -> Peer:
    """Times `values(T, i)` at sampled positions of sampled heads, and lets them stand for all.

    One after the other on all cores, and side by side on one core each; the faster way counts.
    """
    matrices = {h: op.dense_heads(torch.tensor([h], device=op.device))[0] for h in heads}
    tasks = [(h, i) for h in heads for i in positions]
    found: dict[tuple[int, int], Tensor] = {}
    times: dict[tuple[int, int], float] = {}

    def run(task: tuple[int, int]) -> None:
        start = time.perf_counter()
        found[task] = values(matrices[task[0]], task[1])
        times[task] = time.perf_counter() - start

    def total() -> float:
        """Trapezoid rule between the sampled positions, which include both ends, for the mean of the sampled heads."""
        y = [sum(times[h, i] for h in heads) / len(heads) for i in positions]
        steps = zip(positions, positions[1:], y, y[1:], strict=False)
        return op.num_heads * (sum((i1 - i0) * (y0 + y1) / 2 for i0, i1, y0, y1 in steps) + y[-1])

    values(matrices[heads[0]], op.length // 2)  # warm
    for task in tasks:
        run(task)
    seconds = total()
    workers = torch.get_num_threads()
    if workers > 1:
        _pooled(run, tasks)
        seconds = min(seconds, total() / workers)
    return Peer(name, found, seconds, True)


def paper_program(op: Operator, heads: list[int], positions: list[int]) -> Peer:
    """One `svdvals` of `H_i` per head and position, as the paper prints it (but float64); sampled."""
    return _extrapolated("one svdvals per position", op, heads, positions, lambda T, i: torch.linalg.svdvals(T[i:, :i]))


def smaller_gram(op: Operator, heads: list[int], positions: list[int]) -> Peer:
    """For any T: `eigvalsh` of the smaller of `H^T H` and `H H^T` at each position; sampled."""

    def values(T: Tensor, i: int) -> Tensor:
        H = T[i:, :i]
        gram = H.mT @ H if i <= len(T) - i else H @ H.mT
        return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1)

    return _extrapolated("Gram matrix + eigvalsh", op, heads, positions, values)


class _Tokens:
    """Reads, writes and transitions of some heads, as the convention of most families has them: the read comes after
    the transition."""

    def __init__(self, op: StateSpace, heads: list[int]):
        self.tokens = op.tokens(torch.tensor(heads))
        self.read, self.write, self.reads_before = self.tokens.read, self.tokens.write, self.tokens.reads_before

    def forward(self, X: Tensor, t: int) -> Tensor:
        """`A_t X` for `X` `[heads, n, m]`."""
        return self.tokens.move(t, X)

    def backward(self, X: Tensor, t: int) -> Tensor:
        """`A_t^T X`."""
        return self.tokens.move(t, X, transposed=True)


def _answer(name: str, op: StateSpace, heads: list[int], values: Tensor, start: float) -> Peer:
    """From `values` `[heads, L-1, n]`."""
    seconds = (time.perf_counter() - start) * op.num_heads / len(heads)
    found = {(h, i + 1): values[k, i] for k, h in enumerate(heads) for i in range(values.shape[1])}
    return Peer(name, found, seconds, len(heads) < op.num_heads)


def gramians(op: StateSpace, heads: list[int]) -> Peer:
    """For a recurrence: both Gramians at every position, a Cholesky root of one, `eigvalsh` of the n x n product."""
    tokens = _Tokens(op, heads)
    start = time.perf_counter()
    read, write = tokens.read[..., None], tokens.write[..., None]
    count, length, n = tokens.read.shape
    P, Q = read.new_zeros(count, length + 1, n, n), read.new_zeros(count, length + 1, n, n)
    for t in range(length):
        P[:, t + 1] = tokens.forward(tokens.forward(P[:, t], t).mT, t) + write[:, t] * write[:, t].mT
    for t in reversed(range(length)):
        seen = read[:, t] * read[:, t].mT
        if tokens.reads_before:
            Q[:, t] = tokens.backward(tokens.backward(Q[:, t + 1], t).mT, t) + seen
        else:
            Q[:, t] = tokens.backward(tokens.backward(Q[:, t + 1] + seen, t).mT, t)
    P, Q = P[:, 1:length].flatten(0, 1), Q[:, 1:length].flatten(0, 1)
    # the first n Gramians are singular
    jitter = 1e-14 * P.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] * torch.eye(n, dtype=P.dtype)
    root = threaded(torch.linalg.cholesky, P + jitter)
    squares = threaded(torch.linalg.eigvalsh, root.mT @ Q @ root)
    values = squares.clamp_min(0).sqrt().flip(-1)
    return _answer("Gramians + eigvalsh", op, heads, values.unflatten(0, (count, length - 1)), start)


def qr_roots(op: StateSpace, heads: list[int]) -> Peer:
    """For a recurrence: QR roots of both Gramians at every position, `svdvals` of the n x n product."""
    tokens = _Tokens(op, heads)
    start = time.perf_counter()
    read, write = tokens.read, tokens.write
    count, length, n = read.shape
    F, G = read.new_zeros(count, length + 1, n, n), read.new_zeros(count, length + 1, n, n)
    for t in range(length):
        carried = tokens.forward(F[:, t].mT, t).mT
        F[:, t + 1] = torch.linalg.qr(torch.cat([carried, write[:, t, None]], 1), mode="r").R
    for t in reversed(range(length)):
        rows = [G[:, t + 1], read[:, t, None]]
        if tokens.reads_before:
            rows[0] = tokens.backward(rows[0].mT, t).mT
        else:
            rows = [tokens.backward(row.mT, t).mT for row in rows]
        G[:, t] = torch.linalg.qr(torch.cat(rows, 1), mode="r").R
    products = (G[:, 1:length] @ F[:, 1:length].mT).flatten(0, 1)
    values = threaded(torch.linalg.svdvals, products)
    return _answer("QR roots + svdvals", op, heads, values.unflatten(0, (count, length - 1)), start)


def informed(op: Operator, heads: list[int], positions: list[int]) -> list[Peer]:
    """The programs of an informed user for this operator, fastest first."""
    if isinstance(op, StateSpace):
        peers = [
            min((route(op, heads) for _ in range(3)), key=lambda peer: peer.seconds) for route in (gramians, qr_roots)
        ]
    else:
        peers = [smaller_gram(op, heads, positions)]
    return sorted(peers, key=lambda peer: peer.seconds)
