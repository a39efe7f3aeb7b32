"""Delta rules that replace what a key holds, in flash-linear-attention's layout `[B, T, H, K]`.

All are `s_t = D_t s_{t-1} + beta_t k_t (u_t - p_t . D_t s_{t-1})`, `y_t = scale q_t . s_t`: the state decays, what it
holds under `p_t` (the key itself, but for Comba and GDN-2) is taken away, and the value is written in its place. With
`P_t = (I - beta_t k_t p_t^T) D_t` that is `T_ij = scale q_i . P_i ... P_{j+1} beta_j k_j`. Where the gates and step
sizes have more heads than the keys (`HV`, upstream's value heads), value head h reads key head `h // (HV // H)`.
"""

from __future__ import annotations

from torch import Tensor

from .._checks import check_bool, check_shape
from .delta_inputs import (
    check_value_heads,
    log_decays,
    normalized,
    step_sizes,
)
from .layout import LAYOUT, check_alike, scale_of
from .rank_one import RankOneStateSpace
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(q=LAYOUT, k=LAYOUT, beta="[B, T, H]")
def delta_rule(
    q: Tensor,
    k: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """The delta rule (DeltaNet): no decay, `P_t = I - beta_t k_t k_t^T`; see the module.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        beta: `[B, T, H]`, step sizes after their sigmoid. Where `beta |k|^2` exceeds 2 the state grows.
        scale: `None` means `K ** -0.5`.
        use_qk_l2norm_in_kernel: whether `q` and `k` are still to be divided by `sqrt(|x|^2 + 1e-6)`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.delta_rule.chunk_delta_rule`.
    """
    size = check_alike(q=q, k=k)
    check_bool("use_qk_l2norm_in_kernel", use_qk_l2norm_in_kernel)
    check_shape("beta", beta, q.shape[:3], "[B, T, H]")
    check_value_heads("beta", beta, q)
    no_decay = q.new_zeros(()).expand(q.shape)
    reads, keys = (normalized(x, use_qk_l2norm_in_kernel) for x in (q, k))
    return RankOneStateSpace(reads, keys, no_decay, write_scale=beta, scale=scale_of(scale, size), inputs=(q, k, beta))


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, HV]", beta="[B, T, HV]")
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """The gated delta rule (Gated DeltaNet, Qwen3-Next): one decay a head, `P_t = exp(g_t) (I - beta_t k_t k_t^T)`.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, HV]`, natural logarithms of the decays; with `use_gate_in_kernel` what the gate is made from.
        beta: `[B, T, HV]`, step sizes; with `use_beta_sigmoid_in_kernel` before their sigmoid.
        scale: `None` means `K ** -0.5`.
        use_qk_l2norm_in_kernel: whether `q` and `k` are still to be divided by `sqrt(|x|^2 + 1e-6)`.
        use_beta_sigmoid_in_kernel, allow_neg_eigval: see `beta`; the latter doubles the sigmoid.
        use_gate_in_kernel, A_log, dt_bias: the decay is `-exp(A_log) softplus(g + dt_bias)`, both `[HV]`, the bias
            optional. Tensors without the flag, and the flag without `A_log`, are refused.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.gated_delta_rule.chunk_gated_delta_rule`.
    """
    check_alike(q=q, k=k)
    check_value_heads("g", g, q)
    decays = log_decays(g, use_gate_in_kernel, A_log, dt_bias)
    gates = decays[..., None].expand(*g.shape, q.shape[3])
    return _replacing(
        q,
        k,
        gates,
        beta,
        scale,
        use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
        (g, A_log, dt_bias),
    )


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, HV, K]", beta="[B, T, HV]")
def kda(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Kimi Delta Attention: one decay a channel, `P_t = (I - beta_t k_t k_t^T) diag(exp(g_t))`.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, HV, K]`, natural logarithms of the decays; with `use_gate_in_kernel` what the gate is made from.
        beta, scale, use_qk_l2norm_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval: as in `gated_delta_rule`.
        use_gate_in_kernel, A_log, dt_bias, lower_bound: the decay is `-exp(A_log) softplus(g + dt_bias)`, or with a
            negative `lower_bound` it is `lower_bound sigmoid(exp(A_log) (g + dt_bias))`, where `A_log` may be missing.
            `A_log` is `[HV]`, the optional `dt_bias` `[HV K]`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.kda.chunk_kda`.
    """
    check_alike(q=q, k=k)
    check_value_heads("g", g, q, "[B, T, HV, K]")
    gates = log_decays(g, use_gate_in_kernel, A_log, dt_bias, lower_bound)
    return _replacing(
        q,
        k,
        gates,
        beta,
        scale,
        use_qk_l2norm_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
        (g, A_log, dt_bias),
    )


def _replacing(
    q: Tensor,
    k: Tensor,
    gates: Tensor,
    beta: Tensor,
    scale: float | None,
    use_qk_l2norm_in_kernel: bool,
    use_beta_sigmoid_in_kernel: bool,
    allow_neg_eigval: bool,
    gate_inputs: tuple[Tensor | None, ...],
    lookup: Tensor | None = None,
) -> RankOneStateSpace:
    """The rule that replaces what `k`, or another lookup, holds; `gates` are log decays `[B, T, HV, K]`."""
    check_bool("use_qk_l2norm_in_kernel", use_qk_l2norm_in_kernel)
    check_shape("beta", beta, gates.shape[:3], "[B, T, HV]")
    check_value_heads("beta", beta, q)
    steps = step_sizes(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    return RankOneStateSpace(
        normalized(q, use_qk_l2norm_in_kernel),
        normalized(k, use_qk_l2norm_in_kernel),
        gates,
        lookup=None if lookup is None else normalized(lookup, use_qk_l2norm_in_kernel),
        write_scale=steps,
        scale=scale_of(scale, q.shape[-1]),
        inputs=[x for x in (q, k, lookup, beta, *gate_inputs) if x is not None],
    )


@takes_sequences(q=LAYOUT, k=LAYOUT, p=LAYOUT, g="[B, T, HV]", beta="[B, T, HV]")
def comba(
    q: Tensor,
    k: Tensor,
    *,
    p: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Comba: what is taken away is looked up with `p`, not with the key: `P_t = exp(g_t) (I - beta_t k_t p_t^T)`.

    Args:
        q, k, p: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, HV]`, natural logarithms of the decays.
        beta: `[B, T, HV]`, step sizes after their sigmoid.
        scale: `None` means `K ** -0.5`.
        use_qk_l2norm_in_kernel: whether `q`, `k` and `p` are still to be divided by `sqrt(|x|^2 + 1e-6)`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.comba.chunk_comba`.
    """
    check_alike(q=q, k=k, p=p)
    check_value_heads("g", g, q)
    gates = g[..., None].expand(*g.shape, q.shape[3])
    return _replacing(q, k, gates, beta, scale, use_qk_l2norm_in_kernel, False, False, (g,), lookup=p)


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, HV, K]", b="[B, T, HV, K]")
def gdn2(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    b: Tensor,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Gated DeltaNet-2: a gate a channel for what is taken away, `P_t = (I - k_t (b_t * k_t)^T) diag(exp(g_t))`.

    Upstream's other gate `w` scales the channels of the values and is no part of `T`: fold it into the values.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, HV, K]`, natural logarithms of the decays.
        b: `[B, T, HV, K]`, erase gates.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.gdn2.chunk_gdn2`.
    """
    size = check_alike(q=q, k=k)
    heads = check_value_heads("g", g, q, "[B, T, HV, K]")
    check_shape("b", b, g.shape, "[B, T, HV, K]")
    check_value_heads("b", b, q, "[B, T, HV, K]")
    erased = b.double() * k.double().repeat_interleave(heads // max(q.shape[2], 1), 2)
    return RankOneStateSpace(q, k, g, lookup=erased, scale=scale_of(scale, size), inputs=(q, k, g, b))
