"""What the block builder reads: a diagonal recurrence as strided views of the caller's own tensors.

Families differ in how a gate is stored, not in what is done with it: one number per coordinate (GLA), one per token
(Mamba-2), a step times a rate (Mamba), or a factor instead of its logarithm (control recurrences).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...operators.gated import GatedStateSpace
from ...operators.selective_scan import SelectiveStateSpace
from ...operators.structure import StateSpace, Tokens


@dataclass(frozen=True)
class Source:
    """A diagonal recurrence of `N` heads, head `n` being number `heads[n]` of the flattened `[B, H]`.

    Attributes:
        read, write: `[B, T, G, n]`, any strides; head `h` of `H` reads group `h // (H // G)`.
        gate: `[B, T, H, n]`, or `[B, T, H, 1]` where all coordinates of a token share it.
        rate: `[H, n]` multiplied onto the gate, or None.
        read_scale, write_scale: `[B, T, H]` or None.
        scale: folded into the read.
        log: whether the gate is the logarithm of the transition.
        reads_before: whether a row reads the state before its own transition.
        heads: int64 `[N]`.
        H: number of heads.
    """

    read: Tensor
    write: Tensor
    gate: Tensor
    rate: Tensor | None
    read_scale: Tensor | None
    write_scale: Tensor | None
    scale: float
    log: bool
    reads_before: bool
    heads: Tensor
    H: int

    def arguments(self, read_unit: Tensor, write_unit: Tensor) -> tuple[tuple, dict[str, Any]]:
        """The first arguments of every kernel that reads a source, and its constants.

        `read_unit`, `write_unit` float64 `[N]` are multiplied onto reads and writes.
        """
        read, write, gate = (_full(x) for x in (self.read, self.write, self.gate))

        def one_batch(x: Tensor) -> tuple[int, ...]:
            # an axis of size one, where the batch is larger, is shared by the whole batch
            return (0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:])

        if gate.shape[3] == 1:
            # all coordinates read the one number, whatever its stride
            gate = gate.as_strided(gate.shape, (*gate.stride()[:3], 0))
        optional = (self.rate, self.read_scale, self.write_scale)
        groups = (max(1, self.H // x.shape[2]) for x in (read, write))
        strides = (s for x, axes in zip(optional, (2, 3, 3)) for s in ((0,) * axes if x is None else x.stride()))
        positional = (
            *(read, write, gate),
            *(read_unit if x is None else _full(x) for x in optional),
            *(self.heads, read_unit * self.scale, write_unit, self.length, self.H, *groups),
            *(*one_batch(read), *one_batch(write), *one_batch(gate), *strides),
        )
        flags = {
            "n": self.state_size,
            "SHARED": gate.shape[3] == 1,
            "RATED": self.rate is not None,
            "LOG": self.log,
            "BEFORE": self.reads_before,
            "QSCALED": self.read_scale is not None,
            "KSCALED": self.write_scale is not None,
        }
        return positional, flags

    @property
    def length(self) -> int:
        return self.read.shape[1]

    @property
    def state_size(self) -> int:
        return self.read.shape[3]


def source_of(op: StateSpace, heads: Tensor) -> Source:
    """The source of some heads of an operator with diagonal transitions; upcasts nothing where it need not."""
    if isinstance(op, GatedStateSpace):
        shared = op.g.stride(3) == 0 or op.g.shape[3] == 1
        return Source(
            op.q,
            op.k,
            op.g[..., :1] if shared else op.g,
            None,
            op.read_scale,
            op.write_scale,
            op.scale,
            True,
            op.reads_before,
            heads,
            op.g.shape[2],
        )
    if isinstance(op, SelectiveStateSpace):
        steps = op.delta.transpose(1, 2)
        return Source(
            _by_token(op.C, op.length),
            _by_token(op.B, op.length),
            steps[..., None],
            op.A,
            None,
            steps,
            1.0,
            True,
            op.reads_before,
            heads,
            op.delta.shape[1],
        )
    return source_of_tokens(op.tokens(heads))


def source_of_tokens(tokens: Tokens) -> Source:
    """Ready-made float64 tokens `[N, L, n]` as a batch of `N` with one head each."""
    N = tokens.read.shape[0]
    heads = torch.arange(N, device=tokens.read.device)
    read, write, transition = (x[:, :, None] for x in (tokens.read, tokens.write, tokens.transition))
    return Source(read, write, transition, None, None, None, 1.0, False, tokens.reads_before, heads, 1)


def _by_token(x: Tensor, length: int) -> Tensor:
    """Mamba's `B` or `C`, `[D, n]` or `[B, G, n, L]`, as a view `[B, L, G, n]`."""
    if x.dim() == 2:
        return x[None, None].expand(1, length, -1, -1)
    return x.permute(0, 3, 1, 2)


def _full(x: Tensor) -> Tensor:
    """A tensor as kernels can read it: 16 strides must fit 32 bits."""
    return x if max(x.stride(), default=0) < 2**27 else x.contiguous()


_POINTERS = ("Q", "K", "G", "RATE", "QS", "KS")
_INTEGERS = (
    *("length", "H", "q_repeat", "k_repeat", "q_b", "q_t", "q_h", "q_n", "k_b", "k_t", "k_h", "k_n"),
    *("g_b", "g_t", "g_h", "g_n", "rate_h", "rate_n", "qs_b", "qs_t", "qs_h", "ks_b", "ks_t", "ks_h"),
)


def _kind(dtype: str, unit_strides: tuple[str, ...], *on: str) -> tuple[dict[str, str], dict[str, Any]]:
    arguments = dict.fromkeys(_POINTERS, dtype) | dict.fromkeys(_INTEGERS, "i32")
    arguments |= {"HEADS": "*i64", "QUNIT": "*fp64", "KUNIT": "*fp64"}
    flags = {name: name in on for name in ("SHARED", "RATED", "LOG", "BEFORE", "QSCALED", "KSCALED")}
    # Triton compiles a stride of one into the kernel
    return arguments, flags | dict.fromkeys(unit_strides, 1)


# types of the arguments and constants of each kind of source, for compiling ahead of time
KINDS = {
    "gla": _kind("*fp32", ("q_n", "k_n", "g_n"), "LOG"),
    "gla bf16": _kind("*bf16", ("q_n", "k_n", "g_n"), "LOG"),
    "ssd": _kind("*fp32", ("q_n", "k_n", "g_h", "ks_h"), "SHARED", "LOG", "KSCALED"),
    "mamba": _kind("*fp32", ("q_t", "k_t", "g_t", "ks_t", "rate_n"), "SHARED", "RATED", "LOG", "KSCALED"),
    "mamba bf16": _kind("*bf16", ("q_t", "k_t", "g_t", "ks_t", "rate_n"), "SHARED", "RATED", "LOG", "KSCALED"),
    "factors": _kind("*fp64", ("q_n", "k_n", "g_n"), "BEFORE"),
}
