"""From the ESS at every position of every head to the few numbers that the paper prints, each with its convention.

The ESS of one layer is a tensor `[..., H, P]`, as the metrics return it: any axes before the last two are averaged over
(batches, or stacked layers), `H` counts heads or channels, `P` positions. Several layers may also come as a list or
tuple of such tensors, whose `H` may differ. A count of -1 and a NaN mark bad data: they make the result NaN, they are
never averaged. Results of several tolerances `[M, ...]` must be taken apart first.

Channels: the paper sums over the `d` channels of a layer. The `d/H` channels of an attention head share one `T`, so
their metrics have only `H` rows. `channels=d` counts each head `d/H` times (the paper's text); without it each head
counts once, which is what the paper's heat maps show.

Packed and padded batches have positions inside of no sequence, where every ESS is 0. Functions that take the operator
leave these out; `average_ess` and `total_ess` do so if they are given it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ._checks import check_positions, finite_float, integer
from ._shares import COLLAPSED, SATURATED, as_numbers, collapsed_share, mean_where, of_bound, saturated_share
from .operators.dense import as_operator
from .operators.structure import Operator


def _layers(ess: Any, axes: int) -> list[Tensor]:
    if not isinstance(ess, (list, tuple)):
        return [as_numbers("ess", ess, axes)]
    if not ess:
        raise ValueError("ess: expected at least one layer, got an empty list")
    return [as_numbers(f"ess[{number}]", layer, axes) for number, layer in enumerate(ess)]


def _over_layers(ess: Any, axes: int, of_layer: Callable[[Tensor], Tensor], reduce: str) -> Tensor:
    values = torch.stack([of_layer(layer) for layer in _layers(ess, axes)])
    return values.sum(0) if reduce == "sum" else values.mean(0)


def _copies(layer: Tensor, channels: int | None) -> float:
    """How many channels one head stands for."""
    if channels is None:
        return 1.0
    heads = layer.shape[-2]
    if heads < 1 or integer("channels", channels, minimum=1) % heads:
        raise ValueError(f"channels: expected a multiple of the {heads} heads, got {channels}")
    return channels / heads


def average_ess(
    ess: Tensor | Sequence[Tensor],
    *,
    length: int | None = None,
    op: Operator | Tensor | None = None,
    positions: Any = None,
) -> Tensor:
    """The average ESS: the mean over positions, heads (channels), batch and layers.

    The paper's formula divides the sum over positions by the length `L`, its program returns `L - 1` positions. Without
    `length` the mean is over the positions given; with it (all `L - 1` positions must be there) it is the formula's,
    in which position 0 counts as 0.

    Args:
        ess: `[..., P]`, or a list of layers, each with the same weight.
        length: see above.
        op: a packed or padded operator that `ess` was measured on: the mean is over its valid positions. Layers of a
            list hold the same sequences, so one of their operators will do. Not together with `length`.
        positions: those of `ess`, beside `op`; `None` means `1..L-1`.

    Returns:
        float64 scalar, NaN if any value marks bad data (or there is none).

    Source: "average ESS" of the paper (arXiv 2504.19561).
    """
    if op is not None and length is not None:
        raise ValueError(f"length: expected None beside op, got {length}")
    if op is None and positions is not None:
        raise ValueError("positions: expected None without op, which says where its sequences are")

    def of_layer(layer: Tensor) -> Tensor:
        if op is not None:
            valid = _valid("ess", layer, op, positions)
            return mean_where(layer, valid)
        if length is None:
            return layer.mean()
        if layer.shape[-1] != length - 1:
            raise ValueError(f"ess: expected all {length - 1} positions of length={length}, got {layer.shape[-1]}")
        return layer.mean() * ((length - 1) / length)

    return _over_layers(ess, 1, of_layer, "mean")


def total_ess(
    ess: Tensor | Sequence[Tensor],
    *,
    channels: int | None = None,
    length: int | None = None,
    op: Operator | Tensor | None = None,
    positions: Any = None,
) -> Tensor:
    """The total ESS of a layer: the mean over positions, batch and layers, the sum over heads or channels.

    It is the average ESS times the number of channels.

    Args:
        ess: `[..., H, P]`, or a list of layers.
        channels: the layer's `d`, if its heads share operators (see the module); `None` sums the heads as they are.
        length, op, positions: as in `average_ess`.

    Returns:
        float64 scalar, NaN if any value marks bad data.

    Source: "total ESS", as above. The paper's heat maps sum heads, its text channels.
    """

    def of_layer(layer: Tensor) -> Tensor:
        return average_ess(layer, length=length, op=op, positions=positions) * (
            layer.shape[-2] * _copies(layer, channels)
        )

    return _over_layers(ess, 2, of_layer, "mean")


def total_ess_per_index(
    ess: Tensor | Sequence[Tensor], *, channels: int | None = None, layers: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """The total ESS at each position: the mean over batch and layers, the sum over heads or channels.

    Args:
        ess: `[..., H, P]`, or a list of layers at the same positions. In one tensor all axes before `H` are averaged,
            so only a list can be summed over its layers.
        channels: as in `total_ess`.
        layers: `"mean"` as in the paper's formula for `(total ESS)_i`, or `"sum"` as the captions of its figures 42
            to 46 say.

    Returns:
        float64 `[P]`, NaN at the positions where any value marks bad data.

    Raises:
        ValueError: `layers` is neither, or the layers' positions differ in number.

    Source: `(total ESS)_i`, as above.
    """
    if layers not in ("mean", "sum"):
        raise ValueError(f"layers: expected 'mean' or 'sum', got {layers!r}")
    if layers == "sum" and not isinstance(ess, (list, tuple)):
        raise ValueError("ess: expected a list of layers for layers='sum', got a tensor, whose layer axis is not known")

    def of_layer(layer: Tensor) -> Tensor:
        per_head = layer.reshape(-1, *layer.shape[-2:]).mean(0)
        return per_head.sum(0) * _copies(layer, channels)

    sizes = {layer.shape[-1] for layer in _layers(ess, 2)}
    if len(sizes) > 1:
        raise ValueError(f"ess: expected the same number of positions in every layer, got {sorted(sizes)}")
    return _over_layers(ess, 2, of_layer, layers)


def cap(op: Operator | Tensor, positions: Any = None) -> Tensor:
    """The largest ESS that each position can have, `min(TSS, i, L - i)`: int64 `[P]`.

    `TSS` is the state size, i where there is no finite state. Where tokens are blocks of p rows and m columns, the cap
    is `min(TSS, m i, p (L - i))`, and `m i` the TSS without a finite state. The fall towards the end of a window is
    this cap, an effect of the boundary, not of the mixer. In a packed or padded batch i and L are those of the
    position's sequence, and the cap of other positions is 0; where B rows have sequences of their own it is
    `[B, 1, P]`, beside results `[B, H, P]`.

    Args:
        op: an operator, or a dense `T [..., L, L]`.
        positions: integers in `1..L-1`, in any order; `None` means all of them.
    """
    op, i = _positions(op, positions)
    return op.rank_cap(i)


def _positions(op: Operator | Tensor, positions: Any) -> tuple[Operator, Tensor]:
    """The operator, and the positions on its device."""
    op = as_operator(op, spread=True)
    return op, check_positions(positions, op.length).to(op.device)


def _tss(op: Operator, i: Tensor) -> Tensor:
    """The theoretically realisable state size at the positions `i`, of the shape of their caps."""
    within, _ = op.within(i)
    return op.block[1] * within if op.state_size is None else torch.full_like(within, op.state_size)


def _valid(name: str, numbers: Tensor, op: Operator | Tensor, positions: Any) -> Tensor:
    """Which positions are inside a sequence, bool that broadcasts to `numbers` `[..., P]`."""
    op, i = _positions(op, positions)
    valid = op.within(i)[1].to(numbers.device)
    _check_beside(name, numbers, valid)
    return valid


def _check_beside(name: str, numbers: Tensor, x: Tensor) -> None:
    """`ValueError` unless `x`, which is known at each position, broadcasts to the numbers."""
    if numbers.shape[-1] != x.shape[-1]:
        raise ValueError(f"{name}: expected {x.shape[-1]} positions in its last axis, got {numbers.shape[-1]}")
    # the rows of a batch, where they have sequences of their own
    if x.dim() > 1 and (numbers.dim() < x.dim() or numbers.shape[-x.dim()] != len(x)):
        raise ValueError(f"{name}: expected shape [..., {len(x)}, H, {x.shape[-1]}], got {list(numbers.shape)}")


def _per_position(name: str, ess: Tensor, op: Operator | Tensor, positions: Any) -> tuple[Tensor, Tensor]:
    numbers = as_numbers(name, ess, 1)
    caps = cap(op, positions).to(numbers.device)
    _check_beside(name, numbers, caps)
    return numbers, caps


def utilisation(
    ess: Tensor, op: Operator | Tensor, against: Literal["tss", "cap"] = "tss", positions: Any = None
) -> Tensor:
    """State utilisation at every position: the ESS divided by the TSS, or by the cap. Nothing is summed or averaged.

    Args:
        ess: `[..., P]`, tolerance- or entropy-ESS.
        op: the operator that it was measured on (or its dense `T`).
        against: `"tss"` divides by the state size (the paper's), by i for an operator without a finite state;
            `"cap"` by `min(TSS, i, L - i)`, which alone lets a short window reach 1.
        positions: those of `ess`; `None` means `1..L-1`.

    Returns:
        float64 in the shape of `ess`; NaN for bad data, at positions inside of no sequence, and where the operator has
        no state at all (0 of 0).

    Source: state utilisation ESS/TSS of the paper (arXiv 2504.19561); the cap is this package's.
    """
    if against not in ("tss", "cap"):
        raise ValueError(f"against: expected 'tss' or 'cap', got {against!r}")
    numbers, bound = _per_position("ess", ess, op, positions)
    if against == "tss":
        bound = _tss(*_positions(op, positions)).to(numbers.device)
    return of_bound(numbers, bound, _valid("ess", numbers, op, positions))


def saturated(ess: Tensor, op: Operator | Tensor, fraction: float = SATURATED, positions: Any = None) -> Tensor:
    """The share of positions whose ESS is at least `fraction` of the cap: near 1, the state is too small for its task.

    The mean over positions only; heads and batch keep their axes.

    Args:
        ess: `[..., P]`, tolerance- or entropy-ESS.
        op: the operator that it was measured on (or its dense `T`).
        fraction: this package's threshold, not the paper's.
        positions: those of `ess`; `None` means `1..L-1`.

    Returns:
        float64 `[...]`; NaN for a head with bad data, without a position or without a state.

    Source: state saturation in the paper (arXiv 2504.19561), which gives no threshold.
    """
    numbers, caps = _per_position("ess", ess, op, positions)
    return saturated_share(numbers, caps, finite_float("fraction", fraction))


def collapsed(counts: Tensor, op: Operator | Tensor, fraction: float = COLLAPSED, positions: Any = None) -> Tensor:
    """The share of positions whose tolerance-ESS is below `fraction` of the cap: near 1, the state has collapsed.

    The mean over those positions whose cap is at least 16; heads and batch keep their axes. Entropy-ESS cannot see a
    collapse, for it knows no scale.

    Args:
        counts: `[..., P]`, tolerance-ESS.
        op: the operator that it was measured on (or its dense `T`).
        fraction: this package's threshold, not the paper's, as is the 16.
        positions: those of `counts`; `None` means `1..L-1`.

    Returns:
        float64 `[...]`; NaN for a head with bad data or where no cap is large enough.

    Source: state collapse in the paper (arXiv 2504.19561), which gives no threshold.
    """
    numbers, caps = _per_position("counts", counts, op, positions)
    return collapsed_share(numbers, caps, finite_float("fraction", fraction))
