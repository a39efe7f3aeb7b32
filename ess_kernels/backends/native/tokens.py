"""`ess_tokens` of `csrc/include/ess_tokens.h`: a recurrence where it lies in memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...operators.structure import StateSpace
from ..sources import Source, representable, source_of
from . import abi
from .call import run

_BYTES = 8


class NativeTokens:
    """A source as an argument of kernels; holds whatever memory it points to.

    Float64 tensors whose coordinates lie next to each other are read in place, others are copied once, as far as the
    heads of the source read them. Kernels take heads that are supported (`sources.supported_heads`).

    Attributes:
        heads, length, states: sizes of the recurrence.
        pointer: what jobs of kernels take.
    """

    def __init__(self, source: Source):
        self.heads, self.length, self.states = len(source.heads), source.length, source.state_size
        self._batch, self._head = np.divmod(source.heads.numpy(), source.H)
        self._H = source.H
        tensors = {"read": source.read, "write": source.write, "gate": source.gate}
        if source.rate is not None:
            # the same rates at every token, `[1, 1, H, n]`
            tensors["rate"] = source.rate[None, None]
        if source.read_scale is not None:
            tensors["read_scale"] = source.read_scale[..., None]
        if source.write_scale is not None:
            tensors["write_scale"] = source.write_scale[..., None]
        if source.lookup is not None:
            tensors["lookup"] = source.lookup
        if source.update is not None:
            tensors["update"] = source.update
        structure = abi.Tokens(heads=self.heads, length=self.length, states=self.states)
        # a tensor that is there under two names, such as a key that is also looked up, is placed (and copied) once
        placed = {id(x): self._place(x) for x in tensors.values()}
        places, self._alive = [], []
        for name, x in tensors.items():
            place, x = placed[id(x)]
            places.append(place)
            self._alive.append(x)
            if name != "rate":
                setattr(structure, f"{name}_stride", x.stride(1))
        # One row of `places` is what `_place` says of a tensor. Its columns, broadcast against the heads, give the
        # address of every head in every tensor, `[tensors, N]`.
        first, batch_stride, sharing, key_stride = np.array(places).T[..., None]
        offsets = self._batch * batch_stride + self._head // sharing * key_stride
        self._addresses = np.ascontiguousarray(first + _BYTES * offsets)
        address = self._addresses.ctypes.data
        for name in tensors:
            setattr(structure, name, address)
            address += _BYTES * self.heads
        structure.gate_shared, structure.gate_is_log = source.gate.shape[3] == 1, source.log
        structure.reads_before, structure.lookup_decayed = source.reads_before, source.lookup_decayed
        self._structure, self._scales = structure, np.array([[source.scale], [1.0]])
        self.pointer = ctypes.pointer(structure)
        self.set_units(np.ones((2, self.heads)))

    def set_units(self, units: np.ndarray) -> None:
        """Sets the factors of reads and writes, float64 `[2, N]`, which are ones to begin with."""
        self._units = np.multiply(units, self._scales, order="C")
        address = self._units.ctypes.data
        self._structure.read_unit, self._structure.write_unit = address, address + _BYTES * self.heads

    def survey(self) -> tuple[np.ndarray, np.ndarray]:
        """Which heads kernels can take, bool `[N]`, and the largest magnitudes of reads and writes, float64 `[2, N]`.

        As `sources.supported_heads` finds them, in one look at every number.
        """
        peaks, supported = np.empty((2, self.heads)), np.empty(self.heads, dtype=bool)
        address = peaks.ctypes.data
        run(abi.TokensSurvey(self.pointer, address, address + _BYTES * self.heads, supported.ctypes.data))
        with np.errstate(all="ignore"):
            return supported & representable(peaks[0], peaks[1], self.states), peaks

    def lost(self, span: int) -> Tensor:
        """How wrong `H_i` may be by rounding in the states, `[N, ceil(L / span)]`: `engine.lost.lost_in_states`."""
        lost = torch.empty(self.heads, -(-self.length // span), dtype=torch.float64, device="cpu")
        run(abi.TokensLost(self.pointer, span, lost.data_ptr()))
        return lost

    def _place(self, x: Tensor) -> tuple[tuple[int, int, int, int], Tensor]:
        """Where `x` `[B, T, G, n]` (or `[1, ...]` for all) has its heads, and `x` itself or a copy with float64 rows.

        The place is four numbers: the address of batch 0 and key head 0, the stride of batches, how many heads share a
        key head, and the stride of key heads. A copy holds only the batches and key heads that are read; the address
        is where batch 0 and key head 0 would be.
        """
        B, _, G, n = x.shape
        sharing = max(1, self._H // G)
        b = g = 0
        if x.dtype != torch.float64 or (x.stride(3) != 1 and n > 1):
            key_head = self._head // sharing
            b, last_b = (int(self._batch.min()), int(self._batch.max())) if B > 1 else (0, 0)
            g, last_g = int(key_head.min()), int(key_head.max())
            used = x[b : last_b + 1, :, g : last_g + 1].transpose(1, 2)
            x = used.to(torch.float64, memory_format=torch.contiguous_format).contiguous().transpose(1, 2)
        batch_stride, _, key_stride, _ = x.stride()
        first = x.data_ptr() - _BYTES * (b * batch_stride + g * key_stride)
        return (first, batch_stride if B > 1 else 0, sharing, key_stride), x


@dataclass
class Survey:
    """Tokens of some heads, and the largest magnitudes of their reads and writes, float64 `[2, N]`, finite."""

    tokens: NativeTokens
    peaks: np.ndarray

    def take_units(self) -> Tensor:
        """Scales the tokens by powers of two, and returns the unit taken out, `[N]`."""
        units = np.ldexp(1.0, np.maximum(np.minimum(np.frexp(self.peaks)[1], 1022), -1022))
        self.tokens.set_units(1.0 / units)
        return torch.from_numpy(units[0] * units[1])


def surveyed(op: StateSpace, heads: Tensor) -> tuple[Tensor | None, Survey | None]:
    """Which heads of an operator with diagonal transitions kernels can take, bool `[N]`, and those heads' tokens.

    No mask where it is all of them, no tokens where it is none.
    """
    tokens = NativeTokens(source_of(op, heads))
    supported, peaks = tokens.survey()
    if supported.all():
        return None, Survey(tokens, peaks)
    mask = torch.from_numpy(supported)
    if not supported.any():
        # no head is supported, and tokens of no heads have no addresses
        return mask, None
    return mask, Survey(NativeTokens(source_of(op, heads[mask])), peaks[:, supported])
