"""`ess_tokens` of `csrc/ess_tokens.h`: a diagonal recurrence where it lies in memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..sources import Source

_ADDRESS = ctypes.c_void_p
_SIZE = ctypes.c_int64
_FLAG = ctypes.c_int32
_BYTES = 8


class _Structure(ctypes.Structure):
    _fields_ = (
        ("heads", _SIZE),
        ("length", _SIZE),
        ("states", _SIZE),
        ("read", _ADDRESS),
        ("read_stride", _SIZE),
        ("write", _ADDRESS),
        ("write_stride", _SIZE),
        ("gate", _ADDRESS),
        ("gate_stride", _SIZE),
        ("rate", _ADDRESS),
        ("read_scale", _ADDRESS),
        ("read_scale_stride", _SIZE),
        ("write_scale", _ADDRESS),
        ("write_scale_stride", _SIZE),
        ("read_unit", _ADDRESS),
        ("write_unit", _ADDRESS),
        ("gate_shared", _FLAG),
        ("gate_is_log", _FLAG),
        ("reads_before", _FLAG),
        ("reserved", _FLAG),
    )


class NativeTokens:
    """A source as an argument of kernels; holds whatever memory it points to.

    Float64 tensors whose coordinates lie next to each other are read in place, others are copied once, as far as the
    heads of the source read them. Kernels want finite numbers and transitions that do not grow (`sources.tame`).

    Attributes:
        heads, length, states: sizes of the recurrence.
        pointer: what ctypes passes.
    """

    def __init__(self, source: Source, read_unit: Tensor, write_unit: Tensor):
        """`read_unit`, `write_unit` float64 `[N]` on the CPU are multiplied onto reads and writes."""
        self.heads, self.length, self.states = len(source.heads), source.length, source.state_size
        self._alive: list[Tensor] = []
        shared = source.gate.shape[3] == 1
        structure = _Structure(heads=self.heads, length=self.length, states=self.states)
        structure.read, structure.read_stride = self._tokens(source, source.read)
        structure.write, structure.write_stride = self._tokens(source, source.write)
        structure.gate, structure.gate_stride = self._tokens(source, source.gate)
        if source.rate is not None:
            # the same rates at every token, `[1, 1, H, n]`
            structure.rate, _ = self._tokens(source, source.rate[None, None])
        if source.read_scale is not None:
            structure.read_scale, structure.read_scale_stride = self._tokens(source, source.read_scale[..., None])
        if source.write_scale is not None:
            structure.write_scale, structure.write_scale_stride = self._tokens(source, source.write_scale[..., None])
        structure.read_unit = self._keep((read_unit * source.scale).contiguous())
        structure.write_unit = self._keep(write_unit.contiguous())
        structure.gate_shared, structure.gate_is_log = shared, source.log
        structure.reads_before = source.reads_before
        self._structure = structure
        self.pointer = ctypes.byref(structure)

    def _keep(self, x: Tensor) -> int:
        self._alive.append(x)
        return x.data_ptr()

    def _tokens(self, source: Source, x: Tensor) -> tuple[int, int]:
        """Address of the heads' addresses in `x` `[B, T, G, n]` (or `[1, ...]` for all), and the stride of tokens."""
        batch = source.heads // source.H if x.shape[0] > 1 else torch.zeros_like(source.heads)
        group = source.heads % source.H // max(1, source.H // x.shape[2])
        if x.dtype != torch.float64 or (x.stride(3) != 1 and x.shape[3] > 1):
            (b, last_b), (g, last_g) = (torch.stack(i.aminmax()).tolist() for i in (batch, group))
            used = x[b : last_b + 1, :, g : last_g + 1].transpose(1, 2)
            x = used.to(torch.float64, memory_format=torch.contiguous_format).contiguous().transpose(1, 2)
            batch, group = batch - b, group - g
        addresses = self._keep(x) + _BYTES * (batch * x.stride(0) + group * x.stride(2))
        return self._keep(addresses), x.stride(1)
