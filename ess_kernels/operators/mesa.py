"""MesaNet: a linear regression of the values on the keys, solved anew for every query."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_bool, check_same_device, check_shape
from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .layout import LAYOUT, check_q_k
from .matrix_states import read_states
from .norms import l2_normalized
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, H]", beta="[B, T, H]")
@over_time.accumulates
def mesa_net(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """MesaNet: `T_ij = x_i . k_j beta_j exp(g_{j+1} + ... + g_i)` where `(S_i + diag(lamb)) x_i = q_i`.

    `S_i = sum_j beta_j k_j k_j^T exp(g_{j+1} + ... + g_i)`. The system is solved exactly; upstream's kernel takes 30
    steps of conjugate gradients, which come within 1e-4 of it. There is no scale.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, H]`, natural logarithms of the decays (-inf empties the state).
        beta: `[B, T, H]`, weights of the tokens.
        lamb: `[H, K]`, the regulariser, positive: with zeros the systems of the first K - 1 tokens are singular, and
            what comes out is rounding, or bad data.
        use_qk_l2norm_in_kernel: divides `q` and `k` by `sqrt(|x|^2 + 1e-6)`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.mesa_net.chunk_mesa_net`, `naive_mesa_net_exact`.
    """
    check_q_k(q, k, None)
    check_shape("g", g, q.shape[:3], "[B, T, H]")
    check_shape("beta", beta, q.shape[:3], "[B, T, H]")
    check_shape("lamb", lamb, q.shape[2:], "[H, K]")
    check_bool("use_qk_l2norm_in_kernel", use_qk_l2norm_in_kernel)
    check_same_device(q=q, k=k, g=g, beta=beta, lamb=lamb)
    inputs = (q, k, g, beta, lamb)
    # an infinite number divides to a plausible zero, here and in the system below
    query, key, weight = (finite_or_nan(x.double()) for x in (q, k, beta))
    if use_qk_l2norm_in_kernel:
        query, key = l2_normalized(query), l2_normalized(key)
    regulariser = torch.diag_embed(finite_or_nan(lamb.double()))

    def solved(states: Tensor, queries: Tensor) -> Tensor:
        # a system that is singular gives numbers that are not finite, and no error for the other heads
        return torch.linalg.solve_ex(states + regulariser, queries[..., None])[0][..., 0]

    decay = g.double().exp()[..., None, None]
    reads = read_states(key * weight[..., None], key, decay, solved, query)
    return GatedStateSpace(reads, key, g[..., None].expand(q.shape), write_scale=weight, inputs=inputs)
