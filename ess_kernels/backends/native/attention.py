"""Softmax weights on the CPU by the kernel of `csrc/matrix/attention.h`."""

from __future__ import annotations

from torch import Tensor

from ...operators.attention import Attention
from . import abi, call, memory

TILE = 16  # ESS_ATTENTION_TILE of csrc/include/ess_attention.h
OPERATOR = "operator"


def takes(op: Attention) -> bool:
    """Whether the kernel has everything that the operator asks for: not a mask, gates or slopes."""
    return op.attn_mask is None and not op.depends_on_distance and op.length > 0


def weights(op: Attention, heads: Tensor) -> Tensor:
    """`T` of some heads `[N, L, L]`, float64, borrowed memory; undefined above the diagonal, and for bad heads."""
    batch, head = op.unravel(heads)
    q = op.q[batch, head].double().contiguous()
    k = op.k[batch, op.kv_head(head)].double().contiguous()
    sinks = None if op.sinks is None else op.sinks[head].double().contiguous()
    N, L, E = q.shape
    rounded = -(-L // TILE) * TILE
    stride = rounded + 8  # a power of two would put a column into few cache sets
    T = memory.borrow(OPERATOR, N * rounded * stride).view(N, rounded, stride)
    call.run(
        abi.AttentionRows(
            *(N, L, E),
            q=q.data_ptr(),
            k=k.data_ptr(),
            sinks=None if sinks is None else sinks.data_ptr(),
            scale=op.scale,
            softcap=op.softcap or 0.0,
            window=min(op.window_size or 0, L),
            weights=T.data_ptr(),
            row_stride=stride,
        )
    )
    return T[:, :L, :L]
