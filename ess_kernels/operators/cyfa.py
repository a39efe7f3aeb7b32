"""CyclicFlowAttention: slots on a circle that turn with a clock, in Fourier coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_layout, check_same_device, check_shape, finite_float
from . import over_time
from .finiteness import finite_or_nan
from .gated import GatedStateSpace
from .layout import LAYOUT, check_q_k
from .matrix_states import read_states
from .norms import rms_normalized
from .rotation import turned_pairs
from .separate import takes_sequences
from .structure import Operator


@takes_sequences(q=LAYOUT, k=LAYOUT, g="[B, T, H]", delta="[B, T, H]", beta="[B, T, H]")
@over_time.accumulates
def cyfa(
    q: Tensor,
    k: Tensor,
    *,
    g: Tensor,
    delta: Tensor,
    beta: Tensor,
    readout: Tensor,
    q_norm_weight: Tensor,
    k_norm_weight: Tensor,
    q_norm_eps: float,
    k_norm_eps: float,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """CyclicFlowAttention: `T_ij = r_i . w_j exp(g_{j+1} + ... + g_i)`.

    C places on a circle are held by the coefficients of their Fourier series, `C + 1` numbers of which the second is
    always 0. The clock of a token is `delta_0 + ... + delta_t`; `w_j` is `beta_j` at the place of its clock. `r_i` is
    the softmax over the rows of `readout` of what a first pass, with the keys as its values, finds, turned to the clock
    and back. Both norms of `q` and `k` are inside, as upstream has them.

    Args:
        q, k: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        g: `[B, T, H]`, natural logarithms of the decays (-inf empties the state).
        delta, beta: `[B, T, H]`, steps of the clock and weights of the tokens.
        readout: `[H, C, C]` with odd C.
        q_norm_weight, k_norm_weight: `[K]`, of the root mean square norms.
        q_norm_eps, k_norm_eps: what these add to the mean square.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `fla.ops.cyfa.naive_recurrent_cyfa`.
    """
    scale = check_q_k(q, k, scale)
    *per_token, size = q.shape
    for name, x in (("g", g), ("delta", delta), ("beta", beta)):
        check_shape(name, x, per_token, "[B, T, H]")
    places = check_layout("readout", readout, "[H, C, C]")[2]
    check_shape("readout", readout, (per_token[2], places, places), "[H, C, C]")
    if places % 2 == 0:
        raise ValueError(f"readout: expected an odd number of places C, got {places}")
    check_shape("q_norm_weight", q_norm_weight, (size,), "[K]")
    check_shape("k_norm_weight", k_norm_weight, (size,), "[K]")
    weights = {"q_norm_weight": q_norm_weight, "k_norm_weight": k_norm_weight}
    check_same_device(q=q, k=k, g=g, delta=delta, beta=beta, readout=readout, **weights)
    # an infinite number divides to a plausible zero
    queries = rms_normalized(finite_or_nan(q.double()), q_norm_weight, finite_float("q_norm_eps", q_norm_eps)) * scale
    keys = rms_normalized(finite_or_nan(k.double()), k_norm_weight, finite_float("k_norm_eps", k_norm_eps))

    circle = _Circle(places, q.device)
    clock = over_time.cumsum(finite_or_nan(delta.double()), 1)
    written = circle.at(clock) * beta.double()[..., None]
    found = read_states(keys, written, g.double().exp()[..., None, None], _row_times_matrix, queries)
    table = readout.double() @ circle.basis
    logits = (circle.turned(found, clock)[..., None, :] @ table.mT)[..., 0, :]
    # softmax would make a weight of zero out of an infinite number
    chosen = torch.softmax(finite_or_nan(logits), -1)
    reads = circle.turned((chosen[..., None, :] @ table)[..., 0, :], -clock)
    inputs = (q, k, g, delta, beta, readout, q_norm_weight, k_norm_weight)
    return GatedStateSpace(reads, written, g[..., None].expand(reads.shape), inputs=inputs)


def _row_times_matrix(states: Tensor, rows: Tensor) -> Tensor:
    return (rows[..., None, :] @ states)[..., 0, :]


class _Circle:
    """Fourier coordinates of C places: a cosine and a sine for each of the frequencies 0 .. (C - 1) / 2.

    Attributes:
        basis: `[C, C + 1]`, orthonormal but for the sine of frequency 0, which is zero.
    """

    def __init__(self, places: int, device: torch.device):
        self.places = places
        self.frequency = torch.arange((places + 1) // 2, dtype=torch.float64, device=device)
        self.size = self.frequency.clamp(0, 1).add(1).div(places).sqrt()
        place = torch.arange(places, dtype=torch.float64, device=device)
        self.basis = self._pairs(*self._waves(place))

    def _waves(self, clock: Tensor) -> tuple[Tensor, Tensor]:
        # a whole turn is taken off first, without rounding
        angle = torch.remainder(clock, self.places)[..., None] * self.frequency * (2 * math.pi / self.places)
        return angle.cos(), angle.sin()

    def _pairs(self, cosines: Tensor, sines: Tensor) -> Tensor:
        return torch.stack([cosines * self.size, sines * self.size], -1).flatten(-2)

    def at(self, clock: Tensor) -> Tensor:
        """What a token writes at its clock `[...]`: `[..., C + 1]`, the place at minus the clock."""
        cosines, sines = self._waves(clock)
        return self._pairs(cosines, -sines)

    def turned(self, x: Tensor, clock: Tensor) -> Tensor:
        """Coordinates `[..., C + 1]` turned by the clock `[...]`."""
        return turned_pairs(x, *self._waves(clock))
