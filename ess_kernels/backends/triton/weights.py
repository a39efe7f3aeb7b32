"""The sum over the shifts: from log-determinants at the nodes of a quadrature to entropy-ESS and its error bound."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...engine.quadrature import FINE, STANDARD, Quadrature
from .compilation import Variant
from .launches import Launch

# positions a program
WIDTH = 256
LAUNCH = Launch(4)


@triton.jit
def weights_kernel(
    LOGDETS, WEIGHTS, CAP, ESS, BOUND, length,
    error: tl.constexpr, tail_error: tl.constexpr, tail_unit: tl.constexpr,
    K: tl.constexpr, A: tl.constexpr, B: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """A program `W` positions of a head: the shifts are added up in their order, whatever the launch."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * W + tl.arange(0, W)
    live = at < length
    total = tl.zeros([W], tl.float64)
    mixed = tl.zeros([W], tl.float64)
    visible = tl.zeros([W], tl.float64)
    for k in tl.static_range(K):
        x = tl.load(LOGDETS + (row * K + k) * length + at, mask=live, other=1.0)
        total += tl.load(WEIGHTS + 2 * k) * x
        mixed += tl.load(WEIGHTS + 2 * k + 1) * x
        if k == A:
            visible += x
        if k == B:
            visible -= x
    cap = tl.load(CAP + at, mask=live, other=1.0)
    unseen = (total <= 0.0) | (total != total)
    total = tl.where(unseen, 1.0, total)
    ratio = mixed / total
    ess = tl.exp(tl.log(total) - ratio)
    hidden = cap - visible * tail_unit
    errors = error * cap + tail_error * tl.where(hidden > 0.0, hidden, 0.0)
    bound = errors / total * (1.0 + tl.abs(1.0 + ratio))
    low = tl.where(ess < 1.0, 1.0, ess)
    tl.store(ESS + row * length + at, tl.where(low > cap, cap, low), mask=live)
    tl.store(BOUND + row * length + at, tl.where(unseen, float("inf"), bound), mask=live)


def entropy_of(quadrature: Quadrature, logdets: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy-ESS and its bound, float64 `[N, L]`, from `logdets` `[N, K, L]` and `cap` `[L]`.

    Twin: `Quadrature.entropy_of`.
    """
    N, _, L = logdets.shape
    ess, bound = (torch.empty(N, L, dtype=torch.float64, device=logdets.device) for _ in range(2))
    table = torch.tensor([row[1:] for row in quadrature.table], dtype=torch.float64, device=logdets.device)
    if ess.numel():
        weights_kernel[(N, triton.cdiv(L, WIDTH))](
            logdets.contiguous(), table, cap, ess, bound, L, **_constants(quadrature), W=WIDTH, **LAUNCH.options()
        )  # fmt: skip
    return ess, bound


def _constants(quadrature: Quadrature) -> dict[str, float]:
    """A Python number among the arguments would be rounded to float32; there are two quadratures."""
    a, b = quadrature.tail
    errors = {"error": quadrature.error, "tail_error": quadrature.tail_error, "tail_unit": 1.0 / quadrature.tail_span}
    return errors | {"K": len(quadrature), "A": a, "B": b}


def variants() -> Iterator[Variant]:
    arguments = dict.fromkeys(("LOGDETS", "WEIGHTS", "CAP", "ESS", "BOUND"), "*fp64") | {"length": "i32"}
    for quadrature in (STANDARD, FINE):
        constants = _constants(quadrature) | {"W": WIDTH}
        yield Variant(f"weights of {len(quadrature)} shifts", weights_kernel, arguments, constants, LAUNCH)
