"""Mamba-3 with one input and one output a head: rotated reads and writes, a trapezoid rule for the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_groups, check_layout, check_positive_size, check_same_device, check_shape
from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .rotation import turned_pairs
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(
    Q="[B, L, G, N]", K="[B, L, G, N]", ADT="[B, H, L]", DT="[B, H, L]", Trap="[B, H, L]", Angles="[B, L, H, R]"
)
@over_time.accumulates
def mamba3(
    Q: Tensor,
    K: Tensor,
    *,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    Angles: Tensor,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Mamba-3 (SISO): `T_ij = q_i . k_j exp(ADT_{j+1} + ... + ADT_i) (t_j DT_j + (1 - t_{j+1}) DT_{j+1})` for `i > j`.

    On the diagonal it is `q_i . k_i t_i DT_i`, which no `H_i` contains. `t = sigmoid(Trap)`. `q` and `k` are `Q` and
    `K` with their bias added, and then each pair of coordinates `(2r, 2r + 1)` turned by the sum up to the token of
    `pi tanh(Angles) DT`, as far as there are angles. There is no scale; skip (`D`) and output gate (`Z`) are no part of
    `T`.

    Args:
        Q, K: `[B, L, G, N]` with `G` dividing `H`: head h reads group `h // (H // G)`. float16, bfloat16, float32 or
            float64.
        ADT: `[B, H, L]`, natural logarithms of the decays (-inf empties the state).
        DT: `[B, H, L]`, step sizes after their softplus.
        Trap: `[B, H, L]`, before its sigmoid.
        Q_bias, K_bias: `[H, N]`.
        Angles: `[B, L, H, R]` with `R <= N / 2`, before their tanh.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        NotImplementedError: `Q` has an axis for ranks (MIMO): T then depends on the value channel.
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `mamba_ssm.ops.triton.mamba3.mamba3_siso_combined`.
    """
    if isinstance(Q, Tensor) and Q.dim() == 5:
        raise NotImplementedError(
            "Q: expected [B, L, G, N] (SISO), got 5 axes: with several inputs and outputs (MIMO) T depends on the "
            "value channel, and a block recurrence of rank x rank blocks has to be built"
        )
    batch, length, groups, size = check_layout("Q", Q, "[B, L, G, N]")
    check_positive_size("Q", "N", size)
    check_shape("K", K, Q.shape, "[B, L, G, N]")
    heads = check_layout("ADT", ADT, "[B, H, L]")[1]
    for name, x in (("ADT", ADT), ("DT", DT), ("Trap", Trap)):
        check_shape(name, x, (batch, heads, length), "[B, H, L]")
    check_groups("Q", groups, "G", heads)
    check_shape("Q_bias", Q_bias, (heads, size), "[H, N]")
    check_shape("K_bias", K_bias, (heads, size), "[H, N]")
    pairs = check_layout("Angles", Angles, "[B, L, H, R]")[3]
    check_shape("Angles", Angles, (batch, length, heads, pairs), "[B, L, H, R]")
    if 2 * pairs > size:
        raise ValueError(f"Angles: expected R to be at most N / 2 = {size // 2}, got {pairs}")
    check_same_device(Q=Q, K=K, ADT=ADT, DT=DT, Trap=Trap, Q_bias=Q_bias, K_bias=K_bias, Angles=Angles)

    # sigmoid, tanh and a vanishing decay would hide infinite numbers
    steps, trap = (finite_or_nan(x.double()).transpose(1, 2) for x in (DT, Trap))
    turns = torch.tanh(finite_or_nan(Angles.double())) * steps[..., None]
    angle = math.pi * over_time.cumsum(turns, 1)
    share = torch.sigmoid(trap)
    own, of_next = share * steps, (1 - share) * steps
    write_scale = own + torch.cat([of_next[:, 1:], torch.zeros_like(of_next[:, :1])], 1)[:, :length]

    def per_head(x: Tensor, bias: Tensor) -> Tensor:
        return x.double().repeat_interleave(heads // max(groups, 1), 2) + bias.double()

    read, write = _turned(per_head(Q, Q_bias), angle), _turned(per_head(K, K_bias), angle)
    return GatedStateSpace(
        read,
        write,
        ADT.transpose(1, 2)[..., None].expand(read.shape),
        write_scale=write_scale,
        diagonal_entries=(read * write).sum(-1) * own,
        turned=bool(pairs),
        inputs=(Q, K, ADT, DT, Trap, Q_bias, K_bias, Angles),
    )


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """`x [..., N]` with its first R pairs of neighbours turned by `angle [..., R]`."""
    size = 2 * angle.shape[-1]
    return torch.cat([turned_pairs(x[..., :size], angle.cos(), angle.sin()), x[..., size:]], -1)
