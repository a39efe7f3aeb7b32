"""Which of the leading axes of a call's tensors is the batch, where sizes do not tell.

Some models make one axis of batch and heads, in either order, or put heads first where there are as many of them as
rows. The first row alone has the numbers that it has in company, so a second run with that row shows where it stands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .call import MixerCall

SAME = 5e-2  # relative difference of a row alone and in company, in half precision


def rows_first(model: nn.Module, inputs: dict[str, Any], first_row: dict[str, Any], rows: int) -> dict[str, bool]:
    """By module, whether the batch comes before the heads, for attention that only torch's functions show.

    Args:
        model: in eval mode.
        inputs: keyword arguments of a few tokens, `rows` rows.
        first_row: the same of the first row alone.
        rows: at least 2.

    Returns:
        only modules whose calls' shapes leave it open, and of which the second run has told it.
    """
    together = _sizes(model, inputs)
    open_ones = {name: x for name, (x, shape) in together.items() if is_open(shape, rows)}
    if not open_ones:
        return {}
    alone = _sizes(model, first_row)
    found = {}
    for name, sizes in open_ones.items():
        own = alone[name][0] if name in alone else sizes.new_zeros(0)
        if not len(own) or len(sizes) != rows * len(own):
            continue
        batch_first, heads_first = (_distance(own, x) for x in (sizes[: len(own)], sizes[::rows]))
        if min(batch_first, heads_first) < SAME and 10 * min(batch_first, heads_first) < max(batch_first, heads_first):
            found[name] = batch_first < heads_first
    return found


def is_open(shape: torch.Size, rows: int) -> bool:
    """Whether a tensor with these axes before `[L, d]` may have the batch elsewhere than first."""
    return len(shape) == 1 or (len(shape) > 1 and shape[0] == shape[1] == rows)


def _sizes(model: nn.Module, inputs: dict[str, Any]) -> dict[str, tuple[Tensor, torch.Size]]:
    """By module: the norms of its first call's outputs, flattened, and the axes that they had."""
    from .capturing import capturing

    found: dict[str, tuple[Tensor, torch.Size]] = {}

    def receive(call: MixerCall) -> None:
        # without a shape of the batch, the one axis of batch and heads is taken for heads of one row
        leading = call.output.shape[:-2]
        shape = leading[1:] if leading[0] == 1 else leading
        found.setdefault(call.name, (call.output.double().square().sum((-1, -2)).flatten(), shape))

    with capturing(model, receive, seams=("torch",)):
        model(**inputs)
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest relative difference."""
    return float(((a - b).abs() / torch.maximum(a, b).clamp_min(torch.finfo(torch.float64).tiny)).max())
