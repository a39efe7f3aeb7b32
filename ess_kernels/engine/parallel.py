"""Batched LAPACK on more than one core.

PyTorch's CPU `qr`, `eigh` and `svdvals` walk through a batch one matrix after the other on one core. Cutting the batch
across a thread pool uses them all; a matrix's own result does not depend on how the batch is cut. A forked process has
the pool without its workers, and does everything itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, local
from typing import TypeVar

import torch
from torch import Tensor

from .. import processes

Item = TypeVar("Item")

LARGE = 512**2
TINY = 64**2


_here = local()


def _start_worker() -> None:
    torch.set_num_threads(1)
    _here.works_for_pool = True


def _workers() -> int:
    """How many threads may share this thread's work: a worker that waited for others could wait for itself."""
    alone = getattr(_here, "works_for_pool", False) or processes.forked()
    return 1 if alone else torch.get_num_threads()


@cache
def thread_pool(workers: int) -> ThreadPoolExecutor:
    """Workers whose own LAPACK calls stay on one thread each; with more, the cores would be oversubscribed."""
    before = torch.get_num_threads()
    started = Barrier(workers)
    pool = ThreadPoolExecutor(workers, "ess_kernels", initializer=_start_worker)
    list(pool.map(lambda _: started.wait(), range(workers)))
    # the call above also became the default of threads that start later: take that back
    torch.set_num_threads(before)
    return pool


def over_batch(function: Callable[[Tensor], tuple[Tensor, ...]], A: Tensor) -> tuple[Tensor, ...]:
    """`function(A)` for `A` `[batch, m, n]`, the batch cut across torch's number of CPU threads."""
    workers = _workers()
    if A.device.type != "cpu" or workers == 1 or A.shape[0] == 0:
        return function(A)
    # LAPACK threads large matrices itself, and a few tiny ones are done before a worker wakes up
    size = A[0].numel()
    if size > LARGE or (size < TINY and A.shape[0] < 8 * workers):
        return function(A)
    # also a single matrix: LAPACK's own threads cost it more than they bring
    pieces = thread_pool(workers).map(function, A.tensor_split(min(workers, A.shape[0])))
    return tuple(torch.cat(results) for results in zip(*pieces, strict=True))


def over_items(function: Callable[[Item], None], items: list[Item], device: torch.device) -> None:
    """`function` of every item, whose work is on the CPU across torch's number of threads, each on one."""
    workers = _workers()
    if device.type != "cpu" or workers == 1:
        for item in items:
            function(item)
    else:
        # also a single item: LAPACK's own threads cost more than they bring
        list(thread_pool(workers).map(function, items))


def svdvals(A: Tensor) -> Tensor:
    """Singular values `[batch, min(m, n)]`, descending, of `[batch, m, n]`."""
    return over_batch(lambda x: (torch.linalg.svdvals(x),), A)[0]


def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[batch, n]`, ascending, and eigenvectors of symmetric `[batch, n, n]`."""
    values, vectors = over_batch(torch.linalg.eigh, A)
    return values, vectors


def triangular_root(A: Tensor) -> Tensor:
    """Upper triangular `R` `[..., n, n]` with `R^T R = A^T A` for `A` `[..., m, n]`, `m >= n`: no squaring."""
    return over_batch(lambda x: (torch.linalg.qr(x, mode="r").R,), A)[0]


def transposed_product(A: Tensor, right: Tensor) -> Tensor:
    """`A right^T` for matrices `[batch, m, n]` and `[batch, k, n]`, rounded once to their own precision.

    Formed in float64, the only precision that neither autocast nor a permission to multiply float32 as TF32 or
    bfloat16 ever lowers.
    """
    return (A.double() @ right.mT.double()).to(A.dtype)


def product_values(
    values: Callable[[Tensor], Tensor], A: Tensor, right: Tensor | None, bad: float = torch.nan
) -> Tensor:
    """What `values` finds in finite `A` `[batch, m, n]` or in `A right^T`, `[batch, S]`; `bad` where that overflows."""
    if right is None:
        return values(A)
    product = transposed_product(A, right)
    finite = product.isfinite().flatten(1).all(1)
    return values(torch.where(finite[:, None, None], product, 0.0)).masked_fill(~finite[:, None], bad)
