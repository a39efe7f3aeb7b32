"""Softmax weights on the CPU by the kernel of `csrc/matrix/attention.h`."""

from __future__ import annotations

import ctypes

from torch import Tensor

from ...operators.attention import Attention
from . import call, memory

_ADDRESS, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
TILE = 16  # ESS_ATTENTION_TILE of csrc/include/ess_attention.h
OPERATOR = "operator"


class _Attention(ctypes.Structure):
    """`ess_attention` of `csrc/include/ess_attention.h`."""

    _fields_ = (
        ("heads", _SIZE),
        ("length", _SIZE),
        ("size", _SIZE),
        ("q", _ADDRESS),
        ("k", _ADDRESS),
        ("sinks", _ADDRESS),
        ("scale", _NUMBER),
        ("softcap", _NUMBER),
        ("window", _SIZE),
    )


def declare(handle: ctypes.CDLL) -> None:
    """The signatures of `csrc/include/ess_attention.h`."""
    call.declare(handle, "attention_rows", ctypes.POINTER(_Attention), _ADDRESS, _SIZE)


def takes(op: Attention) -> bool:
    """Whether the kernel has everything that the operator asks for: not a mask."""
    return op.attn_mask is None and op.length > 0


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
    structure = _Attention(N, L, E, q.data_ptr(), k.data_ptr(), None if sinks is None else sinks.data_ptr())
    structure.scale, structure.softcap = op.scale, op.softcap or 0.0
    structure.window = min(op.window_size or 0, L)
    call.run("attention_rows", ctypes.byref(structure), T.data_ptr(), stride)
    return T[:, :L, :L]
