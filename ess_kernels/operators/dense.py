"""A matrix that is already there."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_floating
from .finiteness import strictly_lower_finite
from .separate import takes_sequences
from .structure import Operator, Tiled


class Dense(Tiled):
    """A given matrix; see `dense`."""

    TENSORS = ("T",)

    def __init__(self, T: Tensor):
        super().__init__(T.shape[-1], T.shape[:-2], None, (T,))
        self.T = T

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        return self.take(self.T[..., start:stop, :stop], heads).double().tril(start)

    def finite(self, heads: Tensor) -> Tensor:
        return strictly_lower_finite(self, heads)


@takes_sequences(T="[*batch, L, L]")
def dense(T: Tensor, *, cu_seqlens: Tensor | None = None, attention_mask: Tensor | None = None) -> Operator:
    """A ready-made mixer matrix `T_ij = T[..., i, j]`.

    What lies above the diagonal is ignored, whatever it is, and so is the diagonal in every ESS.

    Args:
        T: `[..., L, L]`, float16, bfloat16, float32 or float64. The leading dimensions are the batch.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError: `T` is no floating-point tensor.
        ValueError: `T` is not square.

    Source: the operator `T` of "Quantifying Memory Utilization with Effective State-Size" (arXiv 2504.19561).
    """
    check_floating("T", T)
    if T.dim() < 2 or T.shape[-1] != T.shape[-2]:
        raise ValueError(f"T: expected shape [..., L, L], got {list(T.shape)}")
    return Dense(T)


def as_operator(op_or_T: Operator | Tensor) -> Operator:
    """The operator itself, or `dense(T)` for a tensor."""
    if isinstance(op_or_T, Operator):
        return op_or_T
    if not isinstance(op_or_T, Tensor):
        raise TypeError(f"op: expected an operator or a tensor [..., L, L], got {type(op_or_T).__name__}")
    return dense(op_or_T)
