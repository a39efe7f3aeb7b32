"""Singular values of many small matrices, and counts of them, by `csrc/spectra/`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import abi, call

LARGEST = 256


def singular_values(A: Tensor, right: Tensor | None = None) -> Tensor:
    """Singular values `[batch, S]`, descending, of `A` or of `A right^T`, in their own precision.

    Args:
        A: `[batch, m, n]`, float32 or float64 on the CPU, of any strides, `min(m, n) <= 256`.
        right: `[batch, k, n]`, same dtype, `min(k, n) <= 256`.

    Returns:
        Of a matrix with NaN or infinity, or whose largest value is no finite number: NaN. A matrix's values do not
        depend on the others, nor on the number of threads.

    Raises:
        ValueError: sizes that the library refuses.
    """
    values = A.new_empty(A.shape[0], _how_many(A, right))
    _run(A, right, values=values)
    return values


def counts_above(A: Tensor, right: Tensor | None, tau: Tensor) -> Tensor:
    """How many singular values exceed `tau`: int64 `[batch, M]`, -1 where values would be NaN; finds no value.

    Args:
        A, right: as in `singular_values`.
        tau: float64 `[batch, M]` or, for all matrices, `[M]`; rounded to the matrices' precision.
    """
    tau = tau.to(torch.float64).expand(A.shape[0], tau.shape[-1]).contiguous()
    counts = torch.empty_like(tau, dtype=torch.int64)
    _run(A, right, tau=tau, counts=counts)
    return counts


def _how_many(A: Tensor, right: Tensor | None) -> int:
    return min(A.shape[1], A.shape[2] if right is None else right.shape[1])


def _matrices(x: Tensor) -> abi.Matrices:
    return abi.Matrices(x.data_ptr(), x.shape[1], x.shape[2], *x.stride())


def _run(
    A: Tensor,
    right: Tensor | None,
    values: Tensor | None = None,
    tau: Tensor | None = None,
    counts: Tensor | None = None,
) -> None:
    second = abi.Matrices(rows=-1) if right is None else _matrices(right)
    job = abi.Spectra(element_bytes=A.element_size(), batch=A.shape[0], left=_matrices(A), right=second)
    if values is not None:
        job.values = values.data_ptr()
    if tau is not None and counts is not None:
        job.tolerances, job.tau, job.counts = tau.shape[1], tau.data_ptr(), counts.data_ptr()
    call.run(job)
