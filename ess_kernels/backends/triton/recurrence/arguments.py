"""How the block builder's kernels are given a diagonal recurrence: pointers, strides and flags."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...sources import Source


def arguments_of(source: Source, read_unit: Tensor, write_unit: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The first arguments of every kernel that reads a source, and its constants.

    `read_unit`, `write_unit` float64 `[N]` are multiplied onto reads and writes.
    """
    read, write, gate = (_full(x) for x in (source.read, source.write, source.gate))

    def one_batch(x: Tensor) -> tuple[int, ...]:
        # where the batch is larger than this axis of size one, all of the batch shares it
        return (0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:])

    if gate.shape[3] == 1:
        # all coordinates of a token read the same number, whatever the stride of the axis
        gate = gate.as_strided(gate.shape, (*gate.stride()[:3], 0))
    optional = (source.rate, source.read_scale, source.write_scale)
    # heads that share a key head
    sharing = (max(1, source.H // x.shape[2]) for x in (read, write))
    strides = (s for x, axes in zip(optional, (2, 3, 3)) for s in ((0,) * axes if x is None else x.stride()))
    positional = (
        *(read, write, gate),
        *(read_unit if x is None else _full(x) for x in optional),
        *(source.heads, read_unit * source.scale, write_unit, source.length, source.H, *sharing),
        *(*one_batch(read), *one_batch(write), *one_batch(gate), *strides),
    )
    flags = {
        "n": source.state_size,
        "SHARED": gate.shape[3] == 1,
        "RATED": source.rate is not None,
        "LOG": source.log,
        "BEFORE": source.reads_before,
        "QSCALED": source.read_scale is not None,
        "KSCALED": source.write_scale is not None,
    }
    return positional, flags


def _full(x: Tensor) -> Tensor:
    """A tensor whose strides kernels can multiply by 16 in 32 bits: itself, or a contiguous copy."""
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
# ready-made tokens of which rows read the state after their own transition: rank-one terms are added to their parts
READ_AFTER = _kind("*fp64", ("q_n", "k_n", "g_n"))
