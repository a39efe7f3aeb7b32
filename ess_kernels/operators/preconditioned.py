"""Delta rules whose writes are preconditioned by how often each coordinate of the keys has been used.

A second state, one number a coordinate, adds up squared keys, `A_t = exp(g_atk_t) A_{t-1} + beta_atk_t k_t^2`, and the
written key is `M_t * k_t` with `M_t = x^(-r / (1 + |r|))`, `r = log(A_t + eps) - log_atk_scale`. That state reads no
values, so that the mixer stays linear in them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_bool, check_same_device, check_shape, finite_float
from . import over_time
from .delta_inputs import check_value_heads, normalized
from .finiteness import finite_or_nan
from .layout import LAYOUT, check_alike, scale_of
from .rank_one import RankOneStateSpace
from .separate import takes_sequences
from .structure import Operator

# upstream's centre of the logarithms where none is given
LOG_ATK_SCALE = -0.2


@takes_sequences(q=LAYOUT, k=LAYOUT, g_atk="[B, T, H]", g="[B, T, HV]", beta_atk="[B, T, H]", beta="[B, T, HV]")
@over_time.accumulates
def precond_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    *,
    g_atk: Tensor,
    g: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = True,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """The preconditioned gated delta rule: `P_t = exp(g_t) (I - beta_t (M_t * k_t) k_t^T)`, writes `beta_t M_t * k_t`.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g_atk, beta_atk: `[B, T, H]`, log decays and step sizes of the preconditioner; see the module.
        g, beta: `[B, T, HV]`, log decays and step sizes of the delta rule.
        scale: `None` means `K ** -0.5`.
        use_qk_l2norm_in_kernel: whether `q` and `k` are still to be divided by `sqrt(|x|^2 + 1e-6)`; here, unlike
            elsewhere, True unless said otherwise, as upstream has it.
        x: the base of the preconditioner, above 1 to slow coordinates down that are used much.
        eps: added to the sum of squares before its logarithm.
        log_atk_scale: the centre of the logarithms, a number or `[H]`; `None` means -0.2.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.precond_gated_delta_rule`.
    """
    check_alike(q=q, k=k)
    check_value_heads("g", g, q)
    gates = g[..., None].expand(*g.shape, q.shape[3])
    check_bool("use_qk_l2norm_in_kernel", use_qk_l2norm_in_kernel)
    reads, keys = (normalized(raw, use_qk_l2norm_in_kernel) for raw in (q, k))
    return _preconditioned(reads, keys, gates, g_atk, beta_atk, beta, scale, x, eps, log_atk_scale, (q, k, g))


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, HV, K]", g_atk="[B, T, H]", beta_atk="[B, T, H]", beta="[B, T, HV]")
@over_time.accumulates
def precond_kda(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None = None,
    x: float = 1.5,
    eps: float = 1e-6,
    log_atk_scale: Tensor | float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Preconditioned KDA: one decay a channel; `P_t = (I - beta_t (M_t * k_t) k_t^T) diag(exp(g_t))`.

    Args:
        q, k: `[B, T, H, K]`, normalised already. Upstream's kernel does that itself, by `x / sqrt(|x|^2 + 1e-6)`; its
            reference function, which this one follows, does not.
        g: `[B, T, HV, K]`, natural logarithms of the decays.
        g_atk, beta_atk, beta, scale, x, eps, log_atk_scale: as in `precond_gated_delta_rule`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.precond_kda`.
    """
    check_alike(q=q, k=k)
    check_value_heads("g", g, q, "[B, T, HV, K]")
    return _preconditioned(q, k, g, g_atk, beta_atk, beta, scale, x, eps, log_atk_scale, (q, k, g))


def _preconditioned(
    q: Tensor,
    k: Tensor,
    gates: Tensor,
    g_atk: Tensor,
    beta_atk: Tensor,
    beta: Tensor,
    scale: float | None,
    x: float,
    eps: float,
    log_atk_scale: Tensor | float | None,
    inputs: tuple[Tensor, ...],
) -> RankOneStateSpace:
    """The rule of keys as they enter it; `gates` are log decays `[B, T, HV, K]`, `inputs` what the caller gave."""
    for name, tensor in {"g_atk": g_atk, "beta_atk": beta_atk}.items():
        check_shape(name, tensor, q.shape[:3], "[B, T, H]")
    check_shape("beta", beta, gates.shape[:3], "[B, T, HV]")
    base, eps = finite_float("x", x, positive=True), finite_float("eps", eps, positive=True)
    inputs = (*inputs, g_atk, beta_atk, beta)
    center: Tensor | float = LOG_ATK_SCALE
    if isinstance(log_atk_scale, Tensor):
        check_shape("log_atk_scale", log_atk_scale, q.shape[2:3], "[H]")
        center, inputs = finite_or_nan(log_atk_scale.double())[:, None], (*inputs, log_atk_scale)
        check_same_device(q=q, log_atk_scale=log_atk_scale)
    elif log_atk_scale is not None:
        center = finite_float("log_atk_scale", log_atk_scale)
    check_same_device(q=q, g_atk=g_atk, beta_atk=beta_atk, beta=beta)
    keys = k.double()
    used = over_time.decayed_sum(beta_atk.double()[..., None] * keys.square(), g_atk.double().exp()[..., None], 1)
    r = finite_or_nan((finite_or_nan(used) + eps).log() - center)
    written = keys * torch.exp(-math.log(base) * r / (1 + r.abs()))
    return RankOneStateSpace(
        q, written, gates, lookup=k, write_scale=beta, scale=scale_of(scale, q.shape[-1]), inputs=inputs
    )
