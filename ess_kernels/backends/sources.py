"""A recurrence as strided views of the caller's own tensors, for backends that read them where they lie.

Families differ in how a gate is stored, not in what is done with it: one number per coordinate (GLA), one per token
(Mamba-2), a step times a rate (Mamba), or a factor instead of its logarithm (control recurrences).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.scaling import LARGE_UNIT
from ..engine.state_space import REPRESENTABLE
from ..operators.gated import GatedStateSpace
from ..operators.rank_one import RankOneStateSpace
from ..operators.selective_scan import SelectiveStateSpace
from ..operators.structure import StateSpace, Tokens

# What is 2^-62 of the largest read or write of a head is lost in rounding, and is a normal number above this peak.
SMALLEST_PEAK = 2.0**-960


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recurrence of `N` heads, head `n` being number `heads[n]` of the flattened `[B, H]`.

    Its transitions are diagonal, with a rank-one term a token where there is a lookup.

    Attributes:
        read, write: `[B, T, G, n]` for `G` key heads, any strides; head `h` of `H` reads key head `h // (H // G)`.
        gate: `[B, T, H, n]`, or `[B, T, H, 1]` where all coordinates of a token share it.
        rate: `[H, n]` multiplied onto the gate, or None.
        read_scale, write_scale: `[B, T, H]` or None.
        scale: folded into the read.
        log: whether the gate is the logarithm of the transition.
        reads_before: whether a row reads the state before its own transition.
        heads: int64 `[N]`.
        H: number of heads.
        lookup, update: `[B, T, G, n]` or None, as in `Tokens`.
        lookup_decayed: whether the token's own transition is multiplied onto its lookup.
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
    lookup: Tensor | None = None
    update: Tensor | None = None
    lookup_decayed: bool = False

    @property
    def length(self) -> int:
        return self.read.shape[1]

    @property
    def state_size(self) -> int:
        return self.read.shape[3]


def source_of(op: StateSpace, heads: Tensor) -> Source:
    """The source of some heads of an operator whose transitions are no matrices; upcasts nothing where it need not."""
    if isinstance(op, GatedStateSpace):
        return Source(
            read=op.q,
            write=op.k,
            gate=_stored_gates(op.g),
            rate=None,
            read_scale=op.read_scale,
            write_scale=op.write_scale,
            scale=op.scale,
            log=True,
            reads_before=op.reads_before,
            heads=heads,
            H=op.g.shape[2],
        )
    if isinstance(op, SelectiveStateSpace):
        steps = op.delta.transpose(1, 2)
        return Source(
            read=_by_token(op.C, op.length),
            write=_by_token(op.B, op.length),
            gate=steps[..., None],
            rate=op.A,
            read_scale=None,
            write_scale=steps,
            scale=1.0,
            log=True,
            reads_before=op.reads_before,
            heads=heads,
            H=op.delta.shape[1],
        )
    if isinstance(op, RankOneStateSpace):
        return Source(
            read=op.q,
            write=op.k,
            gate=_stored_gates(op.g),
            rate=None,
            read_scale=None,
            write_scale=op.write_scale,
            scale=op.scale,
            log=True,
            reads_before=op.reads_before,
            heads=heads,
            H=op.g.shape[2],
            lookup=op.k if op.lookup is None else op.lookup,
            update=op.update,
            lookup_decayed=op.looks_up_decayed,
        )
    return source_of_tokens(op.tokens(heads))


def _stored_gates(g: Tensor) -> Tensor:
    """Gates `[B, T, H, n]`, or `[B, T, H, 1]` where all coordinates of a token share one number in memory."""
    return g[..., :1] if g.stride(3) == 0 or g.shape[3] == 1 else g


def bytes_of_tokens(op: StateSpace) -> int:
    """What the tokens of one head take as float64: copies of the inputs that are of another type, or the tokens that
    the family makes of its inputs, and once more while they are put together."""
    if isinstance(op, (GatedStateSpace, SelectiveStateSpace, RankOneStateSpace)):
        return sum(8 * x.numel() for x in op.inputs if x.dtype != torch.float64) // max(1, op.num_heads)
    return 8 * op.length * 6 * op.state_size


def source_of_tokens(tokens: Tokens) -> Source:
    """Ready-made float64 tokens `[N, L, n]` as a batch of `N` with one head each."""
    N = tokens.read.shape[0]
    heads = torch.arange(N, device=tokens.read.device)
    read, write, transition = (x[:, :, None] for x in (tokens.read, tokens.write, tokens.transition))
    lookup, update = (None if x is None else x[:, :, None] for x in (tokens.lookup, tokens.update))
    return Source(
        read=read,
        write=write,
        gate=transition,
        rate=None,
        read_scale=None,
        write_scale=None,
        scale=1.0,
        log=False,
        reads_before=tokens.reads_before,
        heads=heads,
        H=1,
        lookup=lookup,
        update=update,
    )


def _by_token(x: Tensor, length: int) -> Tensor:
    """Mamba's `B` or `C`, `[D, n]` or `[B, G, n, L]`, as a view `[B, L, G, n]`."""
    if x.dim() == 2:
        return x[None, None].expand(1, length, -1, -1)
    return x.permute(0, 3, 1, 2)


def supported_heads(op: StateSpace, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which heads the kernels can take as they are, bool `[N]`, and the largest magnitude of reads and writes `[N]`.

    A supported head is finite and its transitions do not grow, so that no number that is squared can overflow. The
    tensors are looked at as they came, in their own precision. Heads of dense transitions are all supported here: their
    engines find those that are growing once the products of the transitions are known.
    """
    if not op.diagonal:
        one = torch.ones(len(heads), dtype=torch.float64, device=heads.device)
        return torch.ones_like(heads, dtype=torch.bool), one, one
    source = source_of(op, heads)
    read = _peak(source, source.read, source.read_scale) * abs(source.scale)
    write = _peak(source, source.write, source.write_scale)
    gate = _by_head(source, source.gate, torch.amax)
    if source.rate is not None:
        lowest = _by_head(source, source.gate, torch.amin)
        head = source.heads % source.H
        rates = source.rate.double()
        corners = [g * r[head] for g in (gate, lowest) for r in (rates.amax(1), rates.amin(1))]
        gate = torch.stack(corners).amax(0)
    supported = gate <= 0 if source.log else _by_head(source, source.gate.abs(), torch.amax) <= 1
    # A step, a rate or a gate that is not finite makes a comparison fail, or a write infinite. The logarithm of a gate
    # may be -inf, a step or a rate may not.
    if source.rate is not None:
        supported &= torch.stack(corners).isfinite().all(0)
    return supported & representable(read, write, op.state_size), read, write


def representable(read: Any, write: Any, states: int) -> Any:
    """Whether float64 is sure to hold the numbers of `T`, bool `[N]`, from the largest reads and writes `[N]`.

    No entry may overflow. Kernels take numbers below the normal ones for zero before they multiply a unit onto them.
    """
    unit = read * write
    return (unit * states <= REPRESENTABLE) & (unit <= LARGE_UNIT) & held_in_kernels(read) & held_in_kernels(write)


def held_in_kernels(peak: Any) -> Any:
    """Whether kernels lose nothing that matters of numbers of which these are the largest, bool."""
    return (peak >= SMALLEST_PEAK) | (peak == 0)


def _peak(source: Source, x: Tensor, scale: Tensor | None) -> Tensor:
    """The largest magnitude of each head's reads or writes, or a bound of it; NaN and infinity stay visible."""

    def largest_magnitude(x: Tensor, dim: tuple[int, int]) -> Tensor:
        # several times faster than the maximum norm of torch.linalg, and NaN passes through as well
        return torch.maximum(x.amax(dim), -x.amin(dim))

    peak = _by_head(source, x, largest_magnitude)
    return peak if scale is None else peak * _by_head(source, scale[..., None], largest_magnitude)


def _by_head(source: Source, x: Tensor, reduce: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
    """`x` `[B, T, G, n]` reduced over tokens and coordinates for each head; nothing else is looked at."""
    batch = source.heads // source.H if x.shape[0] > 1 else torch.zeros_like(source.heads)
    key_head = source.heads % source.H // max(1, source.H // x.shape[2])
    b, last_b, g, last_g = torch.stack([batch.min(), batch.max(), key_head.min(), key_head.max()]).tolist()
    flat = reduce(x[b : last_b + 1, :, g : last_g + 1], (1, 3)).double()
    return flat[batch - b, key_head - g]
