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


def numbers(length: int) -> int:
    """How many numbers the weights of one head take in memory."""
    return padded(length) * row_stride(length)


def padded(length: int) -> int:
    return -(-length // TILE) * TILE


def row_stride(columns: int) -> int:
    return padded(columns) + 8  # a power of two would put a column into few cache sets


class Weights:
    """The weights of some heads, whole or by bands of rows. Bad heads have undefined ones."""

    def __init__(self, op: Attention, heads: Tensor):
        batch, head = op.unravel(heads)
        self.op = op
        self.q = op.q[batch, head].double().contiguous()
        self.k = op.k[batch, op.kv_head(head)].double().contiguous()
        self.sinks = None if op.sinks is None else op.sinks[head].double().contiguous()

    def whole(self) -> Tensor:
        """`T` `[N, L, L]`, float64, borrowed memory; undefined above the diagonal."""
        N, L = self.q.shape[:2]
        T = memory.borrow(OPERATOR, N * numbers(L)).view(N, padded(L), row_stride(L))
        self._make(0, L, T)
        return T[:, :L, :L]

    def band(self, start: int, stop: int) -> Tensor:
        """Rows `start..stop-1` `[N, rows, stop]`, float64; undefined above the diagonal."""
        begin = start // TILE * TILE
        T = memory.aligned(len(self.q), padded(stop - begin), row_stride(stop))
        self._make(begin, stop, T)
        return T[:, start - begin : stop - begin, :stop]

    def _make(self, begin: int, end: int, T: Tensor) -> None:
        N, L, E = self.q.shape
        call.run(
            abi.AttentionRows(
                *(N, L, E),
                q=self.q.data_ptr(),
                k=self.k.data_ptr(),
                sinks=None if self.sinks is None else self.sinks.data_ptr(),
                scale=self.op.scale,
                softcap=self.op.softcap or 0.0,
                window=min(self.op.window_size or 0, L),
                begin=begin,
                end=end,
                weights=T.data_ptr(),
                row_stride=T.stride(1),
            )
        )
