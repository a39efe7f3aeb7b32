"""What delta rules do to their inputs before the recurrence: norms, gates and step sizes, as upstream's kernels do.

Upstream's flags say that a kernel is given what the layer's projections made, and does the rest. Everything is computed
in float64, and an infinity in what a kernel would squash (`sigmoid`, `softplus`) is bad data, not a valid gate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import (
    check_bool,
    check_groups,
    check_layout,
    check_same_device,
    check_shape,
    finite_float,
)
from .finiteness import finite_or_nan
from .norms import l2_normalized


def check_value_heads(name: str, x: Tensor, q: Tensor, layout: str = "[B, T, HV]") -> int:
    """`HV` of `x`, `[B, T, HV]` or `[B, T, HV, K]`; each head of `q` serves `HV // H` of them."""
    batch, length, heads, size = q.shape
    value_heads = check_layout(name, x, layout)[2]
    check_shape(name, x, (batch, length, value_heads, size)[: x.dim()], layout)
    check_groups("q", heads, "H", value_heads)
    check_same_device(q=q, **{name: x})
    return value_heads


def normalized(x: Tensor, wanted: bool) -> Tensor:
    """`x / sqrt(|x|^2 + 1e-6)` along the last axis, float64, or `x` itself if that is not wanted."""
    return l2_normalized(x) if wanted else x


def step_sizes(beta: Tensor, use_beta_sigmoid_in_kernel: bool, allow_neg_eigval: bool) -> Tensor:
    """`beta` as the recurrence takes it: itself, its sigmoid, or twice that, which allows negative eigenvalues."""
    check_bool("use_beta_sigmoid_in_kernel", use_beta_sigmoid_in_kernel)
    check_bool("allow_neg_eigval", allow_neg_eigval)
    if not use_beta_sigmoid_in_kernel:
        if allow_neg_eigval:
            raise ValueError(
                "allow_neg_eigval: expected use_beta_sigmoid_in_kernel=True beside it, got False; "
                "double beta yourself where it is the sigmoid already"
            )
        return beta
    squashed = torch.sigmoid(finite_or_nan(beta.double()))
    return 2 * squashed if allow_neg_eigval else squashed


def log_decays(
    g: Tensor,
    use_gate_in_kernel: bool,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    lower_bound: float | None = None,
) -> Tensor:
    """Log decays of `g` `[B, T, HV]` or `[B, T, HV, K]`: itself, or what the gate makes of it.

    The gate is `-exp(A_log) softplus(g + dt_bias)`, or with a lower bound `lower_bound sigmoid(exp(A_log) (g +
    dt_bias))`, where `A_log` may be missing. `A_log` is `[HV]`, `dt_bias` has an entry for each of `g`'s last axes.
    """
    check_bool("use_gate_in_kernel", use_gate_in_kernel)
    given = {"A_log": A_log, "dt_bias": dt_bias, "lower_bound": lower_bound}
    if not use_gate_in_kernel:
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: expected use_gate_in_kernel=True beside it, got False")
        return g
    heads = g.shape[2:3]
    bound = None if lower_bound is None else finite_float("lower_bound", lower_bound)
    if bound is not None and bound >= 0:
        raise ValueError(f"lower_bound: expected a negative number, got {bound}")
    if A_log is None and bound is None:
        raise ValueError("A_log: expected a tensor [HV] with use_gate_in_kernel=True, got None")
    if A_log is not None:
        check_shape("A_log", A_log, heads, "[HV]")
    if dt_bias is not None:
        check_shape("dt_bias", dt_bias, (g.shape[2:].numel(),), "[HV]" if g.dim() == 3 else "[HV K]")
    check_same_device(g=g, A_log=A_log, dt_bias=dt_bias)
    raw = finite_or_nan(g.double())
    rate = torch.ones((), dtype=torch.float64, device=g.device)
    if A_log is not None:
        rate = finite_or_nan(A_log.double()).exp().view(-1, *[1] * (g.dim() - 3))
    if dt_bias is not None:
        raw = raw + finite_or_nan(dt_bias.double()).view(g.shape[2:])
    if bound is not None:
        return finite_or_nan(bound * torch.sigmoid(finite_or_nan(rate * raw)))
    return finite_or_nan(-rate * torch.nn.functional.softplus(raw))
