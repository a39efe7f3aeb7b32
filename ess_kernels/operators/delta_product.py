"""Products of several delta rules a token: Gated DeltaProduct."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import check_same_device, check_shape, integer
from .blocked import Blocked
from .layout import LAYOUT, check_alike, scale_of
from .rank_one import RankOneStateSpace
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, HV]", beta="[B, T, HV]")
def gated_delta_product(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor | None = None,
    beta: Tensor,
    num_householder: int,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Gated DeltaProduct: every token decays once and then takes `n_h` steps of the delta rule, each with a value.

    So `T` is `[L, n_h L]`, with a row a token and a column a step, and the inputs before position i are all steps of
    the tokens before it: `H_i = T[i:, :n_h i]`. With `P_s = I - beta_s k_s k_s^T` for step s, entry `(i, s)` is
    `scale q_i .` (decays and `P` of all steps after s, up to the last of token i) `beta_s k_s`.

    Args:
        q: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        k: `[B, T n_h, H, K]`, the steps of each token next to each other.
        g: `[B, T, H]`, natural logarithms of the decays; None for no decay.
        beta: `[B, T n_h, H]`, step sizes after their sigmoid.
        num_householder: `n_h`, how many steps a token takes.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.gated_delta_product.chunk_gated_delta_product`.
    """
    size = check_alike(q=q)
    steps = integer("num_householder", num_householder, minimum=1)
    batch, length, heads, _ = q.shape
    if isinstance(k, Tensor) and k.dim() == 4 and k.shape[1] % steps:
        raise ValueError(
            f"num_householder: expected a number that divides the {k.shape[1]} steps of k, got {num_householder}"
        )
    check_shape("k", k, (batch, length * steps, heads, size), "[B, T n_h, H, K]")
    check_shape("beta", beta, k.shape[:3], "[B, T n_h, H]")
    if g is not None:
        check_shape("g", g, q.shape[:3], "[B, T, H]")
    check_same_device(q=q, k=k, g=g, beta=beta)
    # the last step of a token is read, the first one decays
    reads = pad(q[:, :, None], (0, 0, 0, 0, steps - 1, 0)).flatten(1, 2)
    gate = q.new_zeros(batch, length, heads, dtype=torch.float64) if g is None else g.double()
    gates = pad(gate[:, :, None], (0, 0, 0, steps - 1)).flatten(1, 2)[..., None].expand(k.shape)
    inputs = [x for x in (q, k, g, beta) if x is not None]
    inner = RankOneStateSpace(reads, k, gates, write_scale=beta, scale=scale_of(scale, size), inputs=inputs)
    return Blocked(inner, steps, rows=(steps - 1, steps))
