"""From eliminations to answers in one look at every number, by `csrc/certainty.h`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...engine.certainty import EPS, SMALL_ROW, SURE, TINY_ROW, Counts
from ...engine.positions import Engine
from ...engine.quadrature import LogdetSums, Quadrature
from ...engine.staircase import Answer, Eliminated
from . import call


class _Limits(ctypes.Structure):
    """`ess_limits` of `csrc/ess_certainty.h`."""

    _fields_ = tuple((name, ctypes.c_double) for name in ("unit", "sure", "tiny_row", "small_row"))


_LIMITS = _Limits(EPS, SURE, TINY_ROW, SMALL_ROW)


class CompiledCertainty(Engine):
    """An engine on the CPU."""

    def _judge(self, answer: Answer | Eliminated, rows: Tensor, asked: Tensor) -> tuple[Counts, bool]:
        return judge_counts(answer, rows, asked)


def judge_counts(answer: Answer | Eliminated, rows: Tensor, asked: Tensor) -> tuple[Counts, bool]:
    """As `Engine._judge`, for contiguous tensors on the CPU."""
    (N, M), L = rows.shape, len(asked)
    rows = rows.contiguous()
    counts, width, doubtful = (
        torch.empty(M, N, L - 1, dtype=dtype) for dtype in (torch.int64, torch.float64, torch.bool)
    )
    number = ctypes.c_int64()
    inputs = (answer.value, answer.growth, answer.least, rows, asked)
    addresses = (x.data_ptr() for x in (*inputs, counts, width, doubtful))
    call.run("judge_counts", N, M, L, ctypes.byref(_LIMITS), *addresses, ctypes.byref(number))
    found = (counts, width, doubtful, torch.zeros_like(doubtful))
    return Counts(*(x.transpose(0, 1) for x in found)), number.value > 0


def judge_entropy(
    quadrature: Quadrature, sums: LogdetSums, cap: Tensor, rounding: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """As `Quadrature.entropy_of_sums`, for `[N, L]` and a rounding `[N, groups]` of every group of positions."""
    ess, bound = torch.empty_like(sums.total), torch.empty_like(sums.total)
    numbers = (1 / quadrature.tail_span, quadrature.error, quadrature.tail_error)
    addresses = (x.data_ptr() for x in (*sums, rounding, cap, ess, bound))
    call.run("judge_entropy", *sums.total.shape, group, *numbers, *addresses)
    return ess, bound


def declare(handle: ctypes.CDLL) -> None:
    """The signatures of `csrc/ess_certainty.h`."""
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    call.declare(handle, "judge_counts", size, size, size, *[address] * 10, workspace=False)
    call.declare(handle, "judge_entropy", size, size, size, *[number] * 3, *[address] * 7, workspace=False)
