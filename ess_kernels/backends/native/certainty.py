"""From eliminations to answers in one look at every number, by `csrc/leaves/certainty.h`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...engine.certain import EliminatingEngine
from ...engine.certainty import BLURRED, EPS, HOPELESS, SMALL_ROW, SURE, TINY_ROW, Counts
from ...engine.lost import SPAN as LOST_SPAN
from ...engine.staircase import Eliminated
from . import abi, call
from .nodes import Nodes


class CompiledCertainty(EliminatingEngine):
    """An engine on the CPU."""

    def judge(self, answer: Eliminated, possible: Tensor, asked: Tensor, blur: Tensor | None) -> tuple[Counts, bool]:
        return judge_counts(answer, possible, asked, blur, self.lost_span)

    def group_widths(self, asked: Tensor, doubtful: Tensor, width: Tensor, typical: bool) -> Tensor:
        N, M, count = width.shape
        chosen = torch.empty(N, M, -(-self.length // self.group), dtype=torch.float64, device="cpu")
        addresses = [x.data_ptr() for x in (asked, _stored(doubtful), _stored(width), chosen)]
        call.run(abi.GroupWidths(N, M, count + 1, self.group, int(typical), 0, HOPELESS, *addresses))
        return chosen

    def compare(self, answer: Eliminated, move: Tensor, blur: Tensor | None, doubtful: Tensor, result: Counts) -> bool:
        N, M, count = doubtful.shape
        number = ctypes.c_int64()
        changed = (_stored(x) for x in (result.counts, result.width, doubtful))
        inputs = (x.data_ptr() for x in (answer.value, answer.growth, move))
        addresses = (x.data_ptr() for x in changed)
        sizes = (N, M, count + 1, self.group)
        job = abi.CompareCounts(*sizes, EPS, *inputs, _blurred(blur, self.lost_span), *addresses)
        job.number = ctypes.addressof(number)
        call.run(job)
        return number.value > 0


def _stored(x: Tensor) -> Tensor:
    """A field of `judge_counts` `[N, M, L - 1]` as it lies in memory, `[M, N, L - 1]`."""
    x = x.transpose(0, 1)
    assert x.is_contiguous()
    return x


def _blurred(blur: Tensor | None, span: int) -> abi.Blur:
    """A blur as kernels take it; `span` positions share one of its numbers."""
    assert blur is None or blur.is_contiguous()
    return abi.Blur(None if blur is None else blur.data_ptr(), span)


def judge_counts(
    answer: Eliminated, possible: Tensor, asked: Tensor, blur: Tensor | None = None, blur_span: int = LOST_SPAN
) -> tuple[Counts, bool]:
    """As `EliminatingEngine.judge`, for contiguous tensors on the CPU; `blur_span` positions share a blur."""
    (N, M), L = possible.shape, len(asked)
    possible = possible.contiguous()
    counts, width, doubtful = (
        torch.empty(M, N, L - 1, dtype=dtype, device="cpu") for dtype in (torch.int64, torch.float64, torch.bool)
    )
    number = ctypes.c_int64()
    inputs = (answer.value, answer.growth, answer.least, possible, asked)
    given, found_at = ([x.data_ptr() for x in tensors] for tensors in (inputs, (counts, width, doubtful)))
    limits = (EPS, SURE, TINY_ROW, SMALL_ROW, BLURRED)
    job = abi.JudgeCounts(N, M, L, *limits, _blurred(blur, blur_span), *given, *found_at)
    job.number = ctypes.addressof(number)
    call.run(job)
    found = (counts, width, doubtful, torch.zeros_like(doubtful))
    return Counts(*(x.transpose(0, 1) for x in found)), number.value > 0


def judge_entropy(
    nodes: Nodes, total: Tensor, mixed: Tensor, cap: Tensor, rounding: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """As `Quadrature.estimate_from_sums`, for `[N, L]` and a rounding `[N, groups]` of every group of positions."""
    ess, bound = torch.empty_like(total), torch.empty_like(total)
    addresses = (x.data_ptr() for x in (total, mixed, rounding, cap, ess, bound))
    call.run(abi.JudgeEntropy(*total.shape, group, nodes.pointer, *addresses))
    return ess, bound
