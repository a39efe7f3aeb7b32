"""Causal convolutions: long ones, which have no finite state, and short ones, whose state is a shift register."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import check_layout, check_positive_size, check_same_device, check_shape, integer
from .finiteness import all_finite, largest, strictly_lower_finite
from .separate import takes_sequences
from .sparsity import Sparsity
from .structure import Operator, StateSpace, Tiled, Tokens
from .tile_sources import TileSource


def toeplitz(kernel: Tensor, rows: slice, columns: slice) -> Tensor:
    """Rows and columns of the causal Toeplitz matrix of `kernel [N, lags]`, zero above the diagonal, in memory of its
    own. The slices have a start and a stop."""
    width = columns.stop - columns.start
    if rows.start >= rows.stop:
        return kernel.new_zeros(len(kernel), 0, width)
    # from the lag of the first row and the last column to that of the last row and the first column
    least = rows.start - (columns.stop - 1)
    lags = pad(kernel[:, max(0, least) : max(0, rows.stop - columns.start)], (max(0, -least), 0))
    # row i begins with the lag of the last column
    return lags.unfold(-1, width, 1).flip(-1)


def shift_matrix(size: int, device: torch.device) -> Tensor:
    """The transition of a shift register, float64 `[size, size]`: every number moves one place on, the last is lost."""
    eye = torch.eye(size, dtype=torch.float64, device=device)
    return pad(eye, (0, 0, 1, 0))[:-1]


class ToeplitzTiles(TileSource):
    """Tiles of a convolution, gated or not: each lag of the kernel is one of a tile's diagonals."""

    def __init__(self, op: Convolution, heads: Tensor):
        super().__init__(op, heads)
        self.kernel = op.kernel(heads)
        self.gates = op.gates(heads)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        tile = toeplitz(self.kernel, rows, columns)
        if self.gates is None:
            return tile
        x0, x1 = self.gates
        return x0[:, rows, None] * tile * x1[:, None, columns]

    def largest(self) -> Tensor:
        peak = largest(self.kernel)
        for gate in self.gates or ():
            peak = peak * largest(gate)
        return peak


class Convolution(Tiled):
    """`T_ij = x0_i k[i - j] x1_j`; see `convolution` and `gated_convolution`.

    Attributes:
        k: `[channels, L]`, by lag.
        x0, x1: gates `[B, channels, L]`, or both `None`.
    """

    TENSORS = ("k", "x0", "x1")
    NUMBERS = ("state_size",)

    def __init__(self, k: Tensor, x0: Tensor | None = None, x1: Tensor | None = None, state_size: int | None = None):
        gates = [x for x in (x0, x1) if x is not None]
        super().__init__(k.shape[1], gates[0].shape[:2] if gates else k.shape[:1], state_size, [k, *gates])
        self.k, self.x0, self.x1 = k, x0, x1

    def kernel(self, heads: Tensor) -> Tensor:
        """`[N, L]` by lag, float64."""
        # the kernels are shared by the batch, if there is one
        return self.k[self.unravel(heads)[-1]].double()

    @property
    def time_invariant(self) -> bool:
        """Whether `T_ij` depends on `i - j` only."""
        return self.x0 is None

    def sparsity(self, heads: Tensor) -> Sparsity:
        """As wide as the kernel's last lag that is not zero."""
        lag = torch.arange(1, self.length + 1, device=self.device)
        widths = torch.where(self.k != 0, lag, 1).amax(1) if self.length else self.k.new_ones(len(self.k)).long()
        return Sparsity.of_width(widths[self.unravel(heads)[-1]])

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> Convolution:
        """Of neighbours: a convolution has no first columns."""
        kernel = self.k[self.unravel(heads)[-1], : tokens.shape[1]]
        if self.x0 is None or self.x1 is None:
            return Convolution(kernel)
        at = (*(index[:, None] for index in self.unravel(heads)), tokens)
        return Convolution(kernel, self.x0[at][None], self.x1[at][None])

    @property
    def copies(self) -> int:
        return 1 if self.x0 is None else 3

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        rows = toeplitz(self.kernel(heads), slice(start, stop), slice(0, stop))
        gates = self.gates(heads)
        if gates is None:
            return rows
        x0, x1 = gates
        return (x0[:, start:stop, None] * rows * x1[:, None, :stop]).tril(start)

    def gates(self, heads: Tensor) -> tuple[Tensor, Tensor] | None:
        """What outputs and inputs are multiplied with, float64 `[N, L]` both, if there are gates."""
        if self.x0 is None or self.x1 is None:
            return None
        return self.take(self.x0, heads).double(), self.take(self.x1, heads).double()

    def own_tiles(self, heads: Tensor) -> ToeplitzTiles:
        return ToeplitzTiles(self, heads)

    @torch.no_grad()
    def finite(self, heads: Tensor) -> Tensor:
        kernel = self.kernel(heads)
        finite = all_finite(kernel)
        if self.x0 is None or self.x1 is None:
            return finite
        x0, x1 = self.take(self.x0, heads), self.take(self.x1, heads)
        finite = finite & all_finite(x0) & all_finite(x1)
        if bool((finite & ~(largest(x0) * largest(kernel) * largest(x1)).isfinite()).any()):
            finite = finite & strictly_lower_finite(self, heads)
        return finite


class ShortConvolution(StateSpace):
    """A filter of `W` taps as a shift register of its last `W - 1` inputs; see `short_convolution`.

    The register is read before the new input enters it. What the current input contributes (the last weight) is `T`'s
    diagonal, which the tokens do not have and `dense` adds.

    Attributes:
        weight: `[D, W]`, the last tap is the current input's.
    """

    TENSORS = ("weight",)
    NUMBERS = ("length",)

    def __init__(self, weight: Tensor, length: int):
        size = weight.shape[1] - 1
        super().__init__(length, weight.shape[:1], size, (weight,), reads_before=True, diagonal=False)
        self.weight = weight

    @property
    def bandwidth(self) -> int | None:
        taps = self.weight.shape[1]
        return taps if taps < self.length else None

    def _taps(self, heads: Tensor) -> Tensor:
        """`[N, W]` by lag."""
        return self.weight[heads].double().flip(-1)

    def tokens(self, heads: Tensor) -> Tokens:
        taps = self._taps(heads)
        # the tap on the diagonal is in no token, but must be finite as well
        read = torch.where(all_finite(taps)[:, None], taps[:, 1:], torch.nan)
        size = (len(heads), self.length, self.state_size)
        first = pad(read.new_ones(1), (0, self.state_size - 1))
        shift = shift_matrix(self.state_size, read.device)
        return Tokens(read[:, None].expand(size), first.expand(size), shift.expand(*size, -1), self.reads_before)

    def own_diagonal(self, heads: Tensor) -> Tensor:
        return self._taps(heads)[:, :1].expand(-1, self.length)

    def dense_heads(self, heads: Tensor) -> Tensor:
        return toeplitz(_fit(self._taps(heads), self.length), slice(0, self.length), slice(0, self.length))


def _fit(taps: Tensor, length: int) -> Tensor:
    """Taps by lag, cut or padded with zeros to the sequence."""
    return pad(taps, (0, length - taps.shape[-1]))


@takes_sequences(k="[H, lag]")
def convolution(k: Tensor, *, cu_seqlens: Tensor | None = None, attention_mask: Tensor | None = None) -> Operator:
    """A causal convolution, one operator a channel: `T_ij = k[i - j]`, a Toeplitz matrix.

    Args:
        k: `[H, L]` by lag (`k[:, 0]` is the current input's), float16, bfloat16, float32 or float64.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: the dtype or the number of axes is wrong.

    Source: `fftconv_ref` of H3 and Hyena (without its skip); `H_{i-j}` in the paper (arXiv 2504.19561).
    """
    check_layout("k", k, "[H, L]")
    return Convolution(k)


@takes_sequences(x0="[B, D, L]", k="[D, lag]", x1="[B, D, L]")
def gated_convolution(
    x0: Tensor,
    k: Tensor,
    x1: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """A convolution gated on both sides: `T_ij = x0_i k[i - j] x1_j`, which is `diag(x0) T diag(x1)`.

    Args:
        x0: `[B, D, L]`, multiplies the outputs.
        k: `[D, L]` by lag.
        x1: `[B, D, L]`, multiplies the inputs. All float16, bfloat16, float32 or float64.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's dtype, shape or device is wrong; the message names it.

    Source: Hyena of order 2; gated convolution in the paper (arXiv 2504.19561).
    """
    shape = check_layout("x0", x0, "[B, D, L]")
    check_shape("k", k, shape[1:], "[D, L]")
    check_shape("x1", x1, shape, "[B, D, L]")
    check_same_device(x0=x0, k=k, x1=x1)
    return Convolution(k, x0, x1)


@takes_sequences()
def short_convolution(
    weight: Tensor,
    length: int,
    *,
    cu_seqlens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """A depthwise filter of `W` taps, one operator a channel: `T_ij = weight[W - 1 - (i - j)]` for `i - j < W`.

    The tap order is causal_conv1d's (and `torch.nn.Conv1d`'s): the last weight is the current input's, the reverse of
    `convolution`. The state has `W - 1` numbers, the last inputs. Bias and activation are no part of `T`.

    Args:
        weight: `[D, W]`, float16, bfloat16, float32 or float64.
        length: of the sequence.
        cu_seqlens, seq_idx, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype or shape is wrong; the message names it.

    Source: `causal_conv1d.causal_conv1d_fn`.
    """
    taps = check_layout("weight", weight, "[D, W]")[1]
    check_positive_size("weight", "W", taps)
    length = integer("length", length, minimum=0)
    if taps == 1:
        # no state at all: a diagonal matrix
        return Convolution(_fit(weight, length), state_size=0)
    return ShortConvolution(weight, length)
