"""`ess_tokens` of `csrc/ess_tokens.h`: a diagonal recurrence where it lies in memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...operators.structure import StateSpace
from ..sources import Source, representable, source_of
from .call import run

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

    def __init__(self, source: Source):
        self.heads, self.length, self.states = len(source.heads), source.length, source.state_size
        self._batch, self._head = np.divmod(source.heads.numpy(), source.H)
        self._H = source.H
        self._alive: list[Any] = []
        shared = source.gate.shape[3] == 1
        structure = _Structure(heads=self.heads, length=self.length, states=self.states)
        structure.read, structure.read_stride = self._tokens(source.read)
        structure.write, structure.write_stride = self._tokens(source.write)
        structure.gate, structure.gate_stride = self._tokens(source.gate)
        if source.rate is not None:
            # the same rates at every token, `[1, 1, H, n]`
            structure.rate, _ = self._tokens(source.rate[None, None])
        if source.read_scale is not None:
            structure.read_scale, structure.read_scale_stride = self._tokens(source.read_scale[..., None])
        if source.write_scale is not None:
            structure.write_scale, structure.write_scale_stride = self._tokens(source.write_scale[..., None])
        structure.gate_shared, structure.gate_is_log = shared, source.log
        structure.reads_before = source.reads_before
        self._structure, self._scale = structure, source.scale
        self.pointer = ctypes.byref(structure)
        self.set_units(*np.ones((2, self.heads)))

    def set_units(self, read: np.ndarray, write: np.ndarray) -> None:
        """What is multiplied onto reads and writes, float64 `[N]`; ones to begin with."""
        self._units = [np.ascontiguousarray(x) for x in (read * self._scale, write)]
        self._structure.read_unit, self._structure.write_unit = (x.ctypes.data for x in self._units)

    def survey(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which heads kernels can take, bool `[N]`, and the largest magnitudes of reads and writes, float64 `[N]`.

        As `sources.tame` finds them, in one look at every number.
        """
        read, write = np.empty(self.heads), np.empty(self.heads)
        fair = np.empty(self.heads, dtype=bool)
        run("tokens_survey", self.pointer, *(x.ctypes.data for x in (read, write, fair)))
        with np.errstate(all="ignore"):
            return fair & representable(read, write, self.states), read, write

    def _tokens(self, x: Tensor) -> tuple[int, int]:
        """Address of the heads' addresses in `x` `[B, T, G, n]` (or `[1, ...]` for all), and the stride of tokens."""
        B, _, G, n = x.shape
        batch = self._batch if B > 1 else np.zeros_like(self._batch)
        group = self._head if G == self._H else self._head // max(1, self._H // G)
        if x.dtype != torch.float64 or (x.stride(3) != 1 and n > 1):
            b, g = int(batch.min()), int(group.min())
            used = x[b : int(batch.max()) + 1, :, g : int(group.max()) + 1].transpose(1, 2)
            x = used.to(torch.float64, memory_format=torch.contiguous_format).contiguous().transpose(1, 2)
            batch, group = batch - b, group - g
        strides = x.stride()
        addresses = x.data_ptr() + _BYTES * (batch * strides[0] + group * strides[2])
        self._alive += [x, addresses]
        return addresses.ctypes.data, strides[1]


@dataclass
class Survey:
    """Tokens of some heads, and the largest magnitudes of their reads and writes, float64 `[N]`, finite."""

    tokens: NativeTokens
    read: np.ndarray
    write: np.ndarray

    def take_units(self) -> Tensor:
        """Scales the tokens by powers of two, and returns the unit taken out, `[N]`."""
        exponents = np.frexp(np.stack([self.read, self.write]))[1].clip(-1022, 1022)
        self.tokens.set_units(*np.ldexp(1.0, -exponents))
        return torch.from_numpy(np.ldexp(1.0, exponents).prod(0))

    def nothing(self) -> Tensor:
        """bool `[N]`: whose operator is zero."""
        return torch.from_numpy((self.read == 0) | (self.write == 0))


def surveyed(op: StateSpace, heads: Tensor) -> tuple[Tensor | None, Survey]:
    """Which heads of an operator with diagonal transitions kernels can take, bool `[N]`, and those heads' tokens.

    None: all of them.
    """
    tokens = NativeTokens(source_of(op, heads))
    fair, read, write = tokens.survey()
    if fair.all():
        return None, Survey(tokens, read, write)
    mask = torch.from_numpy(fair)
    return mask, Survey(NativeTokens(source_of(op, heads[mask])), read[fair], write[fair])
