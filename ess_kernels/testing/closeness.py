"""A comparison of tensors that shows the worst entry."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def assert_close(name: str, actual: Tensor, expected: Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """`AssertionError` that shows the worst entry unless `|actual - expected| <= atol + rtol |expected|`.

    NaN equals NaN. Shapes must be equal; dtypes may differ, the comparison is in float64.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}")
    if not actual.numel():
        return
    a, b = actual.detach().double().cpu(), expected.detach().double().cpu()
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0, (a - b).abs())
    excess = torch.where(same, 0, error / (atol + rtol * b.abs())).nan_to_num(nan=math.inf, posinf=math.inf)
    bad = excess > 1
    if not bool(bad.any()):
        return
    worst = int(excess.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst, device="cpu"), excess.shape)]
    raise AssertionError(
        f"{name}: {int(bad.sum())} of {bad.numel()} entries differ; worst at {index}: {a.flatten()[worst]:.17g}, "
        f"expected {b.flatten()[worst]:.17g}, off by {error.flatten()[worst]:.3g} (rtol={rtol:g}, atol={atol:g})"
    )
