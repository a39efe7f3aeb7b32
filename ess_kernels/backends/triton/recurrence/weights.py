"""The sum over the shifts: from log-determinants at the nodes of a quadrature to entropy-ESS and its error bound."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....engine.quadrature import FINE, LEAST_ROUNDING, STANDARD, Estimate, Quadrature
from ..compilation import Variant
from ..launches import Launch

# positions of a program
WIDTH = 256
LAUNCH = Launch(4)
LEAST = tl.constexpr(LEAST_ROUNDING)


@triton.jit
def weights_kernel(
    LOGDETS, WEIGHTS, CAP, ROUNDING, ESS, BOUND, TOTAL, length,
    total_error: tl.constexpr, mixed_error: tl.constexpr, total_slope: tl.constexpr, mixed_slope: tl.constexpr,
    K: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """One program for `W` positions of a head. Shifts are added up in their order, whatever the launch."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * W + tl.arange(0, W)
    live = at < length
    total = tl.zeros([W], tl.float64)
    mixed = tl.zeros([W], tl.float64)
    for k in tl.static_range(K):
        x = tl.load(LOGDETS + (row * K + k) * length + at, mask=live, other=1.0)
        total += tl.load(WEIGHTS + 2 * k) * x
        mixed += tl.load(WEIGHTS + 2 * k + 1) * x
    cap = tl.load(CAP + at, mask=live, other=1.0)
    wrong = tl.load(ROUNDING + row * length + at, mask=live, other=1.0)
    wrong = tl.where(wrong < LEAST, LEAST, wrong)
    unseen = (total <= 0.0) | (total != total)
    N = tl.where(unseen, 1.0, total)
    ratio = mixed / N
    ess = tl.exp(tl.log(N) - ratio)
    steep = tl.abs(1.0 + ratio)
    slowly = wrong * (total_slope * steep + mixed_slope)
    largest = 1.0 + ratio - 0.5 * tl.log(wrong)
    at_once = tl.sqrt(wrong) * tl.where(tl.abs(ratio) > largest, tl.abs(ratio), largest)
    each = total_error * steep + mixed_error + tl.where(slowly < at_once, slowly, at_once)
    low = tl.where(ess < 1.0, 1.0, ess)
    tl.store(ESS + row * length + at, tl.where(low > cap, cap, low), mask=live)
    tl.store(BOUND + row * length + at, tl.where(unseen, float("inf"), cap * each / N), mask=live)
    tl.store(TOTAL + row * length + at, tl.where(unseen, 0.0, total), mask=live)


def estimate(quadrature: Quadrature, logdets: Tensor, cap: Tensor, rounding: Tensor) -> Estimate:
    """Fields `[N, L]`, from `logdets` `[N, K, L]`, `cap` `[L]` and `rounding` `[N, L]`.

    Where there is no log-determinant at the smallest node the answer is that of `Quadrature.estimate`, the twin.
    """
    N, _, L = logdets.shape
    found = Estimate(*(torch.empty(N, L, dtype=torch.float64, device=logdets.device) for _ in range(3)))
    table = torch.tensor([row[1:] for row in quadrature.table], dtype=torch.float64, device=logdets.device)
    if found.ess.numel():
        weights_kernel[(N, triton.cdiv(L, WIDTH))](
            logdets.contiguous(), table, cap, rounding.contiguous(), *found, L, **_constants(quadrature), W=WIDTH,
            **LAUNCH.options()
        )  # fmt: skip
    if quadrature.without_smallest is None or bool(found.bound.isfinite().all()):
        return found
    return quadrature.estimate(logdets, cap, rounding)


def _constants(quadrature: Quadrature) -> dict[str, float]:
    """Constants of the kernel: a Python number among its other arguments would be rounded to float32.

    The kernel is compiled once for each of the two quadratures.
    """
    names = ("total_error", "mixed_error", "total_slope", "mixed_slope")
    return dict(zip(names, (*quadrature.errors, *quadrature.slopes), strict=True)) | {"K": len(quadrature)}


def variants() -> Iterator[Variant]:
    arguments = dict.fromkeys(("LOGDETS", "WEIGHTS", "CAP", "ROUNDING", "ESS", "BOUND", "TOTAL"), "*fp64")
    for quadrature in (STANDARD, FINE):
        constants = _constants(quadrature) | {"W": WIDTH}
        name = f"weights of {len(quadrature)} shifts"
        yield Variant(name, weights_kernel, arguments | {"length": "i32"}, constants, LAUNCH)
