"""The selective state spaces of Mamba (one state a channel) and Mamba-2 (one state a head), in mamba_ssm's layouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import softplus

from .._checks import (
    as_float,
    check_bool,
    check_groups,
    check_layout,
    check_positive_size,
    check_same_device,
    check_shape,
    is_complex,
    refuse_complex,
)
from .complex_states import ComplexSelectiveStateSpace, as_complex
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .separate import takes_sequences
from .structure import Operator, StateSpace, Tokens


class SelectiveStateSpace(StateSpace):
    """`T_ij = sum_n C_in exp(A_n (delta_{j+1} + ... + delta_i)) delta_j B_jn` for every (batch, channel).

    Attributes:
        delta: step sizes `[B, D, L]`, after bias and softplus.
        A: `[D, N]`.
        B, C: `[D, N]` where constant, or `[B, G, N, L]`; channel `d` reads group `d // (D // G)`.
    """

    TENSORS = ("delta", "A", "B", "C")
    NUMBERS = ("reads_before",)

    def __init__(
        self,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        reads_before: bool = False,
        inputs: Sequence[Tensor] | None = None,
    ):
        inputs = (delta, A, B, C) if inputs is None else inputs
        super().__init__(delta.shape[2], delta.shape[:2], A.shape[1], inputs, reads_before=reads_before)
        self.delta, self.A, self.B, self.C = delta, A, B, C

    def tokens(self, heads: Tensor) -> Tokens:
        batch, channel = self.unravel(heads)
        delta = self.delta[batch, channel].double()[..., None]
        # an infinite A or step would pass for the valid decay exp(-inf) = 0
        log_decay = finite_or_nan(finite_or_nan(self.A[channel].double())[:, None] * delta)
        return Tokens(
            read=self._by_token(self.C, batch, channel),
            write=self._by_token(self.B, batch, channel) * delta,
            transition=log_decay.exp(),
            reads_before=self.reads_before,
        )

    def _by_token(self, x: Tensor, batch: Tensor, channel: Tensor) -> Tensor:
        """`B` or `C` of some channels, `[N, L, n]`."""
        if x.dim() == 2:
            return x[channel].double()[:, None].expand(-1, self.length, -1)
        group = channel // max(self.batch_shape[1] // max(x.shape[1], 1), 1)
        return x[batch, group].double().mT


def _steps(dt: Tensor, bias: Tensor | None, use_softplus: bool) -> Tensor:
    """Step sizes in float64; softplus(-inf) = 0 would hide bad data, so they are made NaN before."""
    steps = dt.double()
    if bias is not None:
        steps = steps + bias.double()
    steps = finite_or_nan(steps)
    return softplus(steps) if use_softplus else steps


@takes_sequences(delta="[B, D, L]", B=("[B, N, L]", "[B, G, N, L]"), C=("[B, N, L]", "[B, G, N, L]"))
def selective_scan(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    cu_seqlens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Mamba's selective scan (S6): `T_ij = sum_n C_in exp(A_dn (s_{j+1} + ... + s_i)) s_j B_jn` for each channel d.

    A complex `A` makes `T_ij = 2 Re(...)`, of the same sum, and a state of `2 N` real numbers. The steps are
    `s = delta + delta_bias`, through a softplus if asked for. Skip (`D`) and output gate (`z`) are no part of `T`.

    Args:
        delta: step sizes `[B, D, L]` (channel first), float16, bfloat16, float32 or float64.
        A: `[D, N]`, negative for a decay (not its logarithm); if complex (complex64, complex128), its real part is.
        B, C: `[D, N]` constant, `[B, N, L]`, or `[B, G, N, L]` with `G` dividing `D`: channel d reads group
            `d // (D // G)`. Beside a complex `A` they are complex, or real with an axis of `2 L` instead of `L` that
            holds real and imaginary parts by turns, as upstream has them. Constant ones may be real, too.
        delta_bias: `[D]`.
        delta_softplus: see above.
        cu_seqlens, seq_idx, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError: a dtype is wrong, or `B` or `C` is complex and `A` is not.
        ValueError: a shape or a device is wrong; the message names the argument.

    Source: `mamba_ssm.ops.selective_scan_interface.selective_scan_fn`; S6 in appendix D.2 of the paper (arXiv
        2504.19561).
    """
    batch, channels, length = check_layout("delta", delta, "[B, D, L]")
    state_size = check_layout("A", A, "[D, N]", or_complex=True)[1]
    check_shape("A", A, (channels, state_size), "[D, N]", or_complex=True)
    in_pairs = A.is_complex()
    if not in_pairs:
        refuse_complex("as A is", B=B, C=C)
    check_positive_size("A", "N", state_size)
    if delta_bias is not None:
        check_shape("delta_bias", delta_bias, (channels,), "[D]")
    check_bool("delta_softplus", delta_softplus)

    def by_group(name: str, x: Tensor) -> Tensor:
        axes = x.dim() if isinstance(x, Tensor) else 0
        packed = in_pairs and not is_complex(x)
        steps, of_steps = (2 * length, "2 L") if packed else (length, "L")
        if axes == 2:
            check_shape(name, x, (channels, state_size), "[D, N]", or_complex=in_pairs)
            return x
        if axes == 3:
            check_shape(name, x, (batch, state_size, steps), f"[B, N, {of_steps}]", or_complex=in_pairs)
            x = x[:, None]
        else:
            groups = check_layout(name, x, f"[B, G, N, {of_steps}]", or_complex=in_pairs)[1]
            shape = (batch, groups, state_size, steps)
            check_shape(name, x, shape, f"[B, G, N, {of_steps}]", or_complex=in_pairs)
            check_groups(name, groups, "G", channels)
        return as_complex(x) if packed else x

    grouped_B, grouped_C = by_group("B", B), by_group("C", C)
    check_same_device(delta=delta, A=A, B=B, C=C, delta_bias=delta_bias)
    if delta_bias is not None or delta_softplus:
        steps = _steps(delta, None if delta_bias is None else delta_bias[:, None], delta_softplus)
    else:
        steps = delta  # as it came: `tokens` upcasts only the channels that are used
    inputs = [x for x in (delta, A, B, C, delta_bias) if x is not None]
    if in_pairs:
        return ComplexSelectiveStateSpace(steps, A, grouped_B, grouped_C, inputs=inputs)
    return SelectiveStateSpace(steps, A, grouped_B, grouped_C, inputs=inputs)


@takes_sequences(dt="[B, L, H]", B="[B, L, G, n]", C="[B, L, G, n]")
def ssd(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] | None = None,
    cu_seqlens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """Mamba-2 (SSD): `T_ij = C_i . B_j dt_j exp(A_h (dt_{j+1} + ... + dt_i))`, without any `1/sqrt(n)`.

    `dt` becomes `clamp(softplus(dt + dt_bias), *dt_limit)`, in this order, each step only if asked for. Skip and output
    gate are no part of `T`. It is a gated state space with `q = C`, `k = B`, `g = A dt` and the write scaled by `dt`.

    Args:
        dt: `[B, L, H]`, float16, bfloat16, float32 or float64.
        A: `[H]`, negative for a decay (not its logarithm).
        B, C: `[B, L, G, n]` with `G` dividing `H`; head h reads group `h // (H // G)`.
        dt_bias: `[H]`.
        dt_softplus: see above.
        dt_limit: `(low, high)`; `None` leaves `dt` as it is, whereas upstream's default `(0, inf)` cuts negative steps.
        cu_seqlens, seq_idx, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined`.
    """
    refuse_complex("Mamba-2 is real", A=A, B=B, C=C)
    batch, length, heads = check_layout("dt", dt, "[B, L, H]")
    check_shape("A", A, (heads,), "[H]")
    groups, state_size = check_layout("B", B, "[B, L, G, n]")[2:]
    check_shape("B", B, (batch, length, groups, state_size), "[B, L, G, n]")
    check_groups("B", groups, "G", heads)
    check_positive_size("B", "n", state_size)
    check_shape("C", C, B.shape, "[B, L, G, n]")
    if dt_bias is not None:
        check_shape("dt_bias", dt_bias, (heads,), "[H]")
    check_bool("dt_softplus", dt_softplus)
    check_same_device(dt=dt, A=A, B=B, C=C, dt_bias=dt_bias)
    steps = _steps(dt, dt_bias, dt_softplus)
    if dt_limit is not None:
        low, high = _limits(dt_limit)
        steps = steps.clamp(low, high)
    # an infinite A or step would pass for the valid decay exp(-inf) = 0
    log_decay = finite_or_nan(finite_or_nan(A.double()) * steps)
    gates = log_decay[..., None].expand(-1, -1, -1, state_size)
    inputs = [x for x in (dt, A, B, C, dt_bias) if x is not None]
    return GatedStateSpace(C, B, gates, write_scale=steps, inputs=inputs)


def _limits(dt_limit: Any) -> tuple[float, float]:
    expected = "dt_limit: expected a pair (low, high) of numbers with low <= high"
    try:
        low, high = (as_float("dt_limit", limit, "a pair (low, high) of numbers") for limit in dt_limit)
    except (TypeError, ValueError):
        raise TypeError(f"{expected} in the range of float64, got {dt_limit!r}") from None
    if math.isnan(low) or math.isnan(high) or low > high:
        raise ValueError(f"{expected}, got {dt_limit!r}")
    return low, high
