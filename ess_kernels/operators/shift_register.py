"""Short convolutions whose taps or gates change from token to token: a shift register that is read differently."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import check_layout, check_positive_size, check_same_device, check_shape
from .convolution import Convolution, shift_matrix
from .finiteness import all_finite
from .separate import takes_sequences
from .structure import Operator, StateSpace, Tokens


class ShiftRegister(StateSpace):
    """`T_ij = x0_i taps_i[i - j] x1_j` for `i - j < W`, with the last `W - 1` inputs as the state.

    The register is read before the new input enters it. What the current input contributes is `T`'s diagonal, which the
    tokens do not have and `dense` adds.

    Attributes:
        taps: `[B, H, L, W]` by lag, or `[H, W]` where they are the same at every token.
        x0, x1: gates `[B, H, L]` of outputs and inputs, or both None.
    """

    TENSORS = ("taps", "x0", "x1")

    def __init__(
        self,
        taps: Tensor,
        x0: Tensor | None = None,
        x1: Tensor | None = None,
        inputs: Sequence[Tensor] | None = None,
    ):
        shape = taps.shape[:3] if x0 is None else x0.shape
        inputs = [x for x in (taps, x0, x1) if x is not None] if inputs is None else inputs
        super().__init__(shape[2], shape[:2], taps.shape[-1] - 1, inputs, reads_before=True, diagonal=False)
        self.taps, self.x0, self.x1 = taps, x0, x1

    def _by_token(self, heads: Tensor) -> Tensor:
        """Taps with the gate of the output, `[N, L, W]`."""
        if self.taps.dim() == 4:
            taps = self.take(self.taps, heads).double()
        else:
            taps = self.taps[self.unravel(heads)[1]].double()[:, None].expand(-1, self.length, -1)
        return taps if self.x0 is None else taps * self.take(self.x0, heads).double()[..., None]

    def _inputs_gates(self, heads: Tensor) -> Tensor:
        """`x1 [N, L]`."""
        if self.x1 is None:
            return torch.ones(len(heads), self.length, dtype=torch.float64, device=self.device)
        return self.take(self.x1, heads).double()

    def tokens(self, heads: Tensor) -> Tokens:
        taps = self._by_token(heads)
        # the taps on the diagonal are in no token, but must be finite as well
        read = torch.where(all_finite(taps)[:, None, None], taps[..., 1:], torch.nan)
        size = (len(heads), self.length, self.state_size)
        write = pad(self._inputs_gates(heads)[..., None], (0, self.state_size - 1))
        shift = shift_matrix(self.state_size, read.device)
        return Tokens(read, write, shift.expand(*size, -1), self.reads_before)

    def own_diagonal(self, heads: Tensor) -> Tensor:
        return self._by_token(heads)[..., 0] * self._inputs_gates(heads)

    def dense_heads(self, heads: Tensor) -> Tensor:
        row = torch.arange(self.length, device=heads.device)
        lag = row[:, None] - row
        width = self.state_size + 1
        inside = (lag >= 0) & (lag < width)
        taps = self._by_token(heads)
        T = taps.gather(2, lag.clamp(0, width - 1).expand(len(heads), -1, -1))
        return torch.where(inside, T * self._inputs_gates(heads)[:, None], 0.0)


@takes_sequences(B="[B, D, L]", C="[B, D, L]")
def lfm2_conv(
    B: Tensor,
    C: Tensor,
    weight: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """LFM2's gated short convolution, one operator a channel: `T_ij = C_i weight[W - 1 - (i - j)] B_j` for `i - j < W`.

    Args:
        B, C: `[B, D, L]`, gates of inputs and outputs, float16, bfloat16, float32 or float64.
        weight: `[D, W]` in causal_conv1d's order: the last tap is the current input's.
        cu_seqlens, seq_idx, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator with batch shape `(B, D)` and `W - 1` numbers of state.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `Lfm2ShortConv` of transformers, without its projections.
    """
    shape = check_layout("B", B, "[B, D, L]")
    check_shape("C", C, shape, "[B, D, L]")
    taps = check_layout("weight", weight, "[D, W]")[1]
    check_shape("weight", weight, (shape[1], taps), "[D, W]")
    check_positive_size("weight", "W", taps)
    check_same_device(B=B, C=C, weight=weight)
    if taps == 1:
        # no state at all: a diagonal matrix
        return Convolution(pad(weight, (0, shape[2] - 1)), C, B, state_size=0)
    return ShiftRegister(weight.flip(-1), C, B, inputs=(B, C, weight))


@takes_sequences(weight="[B, H, L, W]")
def dynamic_short_convolution(
    weight: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """A short convolution with taps of its own at every token: `T_ij = weight[i, i - j]` for `i - j < W`.

    What upstream adds to the taps or multiplies onto them is the caller's: Inkling-2 adds 1 to the first and divides
    all by `sqrt(2 W + 1)`.

    Args:
        weight: `[B, H, L, W]` by lag: the first tap is the current input's, the reverse of `short_convolution`.
            float16, bfloat16, float32 or float64.
        cu_seqlens, seq_idx, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Returns:
        An operator with batch shape `(B, H)` and `W - 1` numbers of state.

    Raises:
        TypeError, ValueError: the type, the dtype or the shape is wrong.

    Source: `Inkling2DynamicShortConvolution` of transformers.
    """
    taps = check_layout("weight", weight, "[B, H, L, W]")[3]
    check_positive_size("weight", "W", taps)
    if taps == 1:
        # no state at all: a diagonal matrix
        gate = weight[..., 0]
        ones = torch.ones_like(gate)
        first = pad(gate.new_ones(gate.shape[1], 1), (0, gate.shape[2] - 1))
        return Convolution(first, gate, ones, state_size=0)
    return ShiftRegister(weight)
