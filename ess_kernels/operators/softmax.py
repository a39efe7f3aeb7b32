"""What softmax attention of every kind is made of: the columns that a row sees, sums of gates between two tokens, rows.

A band of rows `start..stop-1` has columns `first..stop-1`; everything is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import integer


def check_window(window_size: int | None) -> int | None:
    """The number of columns that a row sees, its own among them, or None for all."""
    if isinstance(window_size, (tuple, list)):
        raise TypeError(
            "window_size: expected one integer w, the number of columns that a row sees; flash-attn's pair "
            f"(left, right) is w = left + 1 (left = w - 1) with right = 0, got {window_size}"
        )
    return None if window_size is None else integer("window_size", window_size, minimum=1)


def first_column(start: int, window_size: int | None, stop: int) -> int:
    """The first column that any row of a band sees."""
    return 0 if window_size is None else min(max(0, start - window_size + 1), stop)


def causal_window(start: int, stop: int, first: int, window_size: int | None, device: torch.device) -> Tensor:
    """bool `[rows, columns]`: whether a row sees a column."""
    return sees(slice(start, stop), slice(first, stop), window_size, device)


def sees(rows: slice, columns: slice, window_size: int | None, device: torch.device) -> Tensor:
    """The same for any rows and columns."""
    row = torch.arange(rows.start, rows.stop, device=device)[:, None]
    column = torch.arange(columns.start, columns.stop, device=device)
    seen = column <= row
    return seen if window_size is None else seen & (column > row - window_size)


def gates_between(g: Tensor, start: int, first: int) -> Tensor:
    """`g_{j+1} + ... + g_i`, `[N, rows, columns]`, from `g` `[N, stop - first]`, the gates of the band's columns.

    Each row adds its gates up from its own token backwards. A difference of two sums over the whole past would lose
    digits where both are large, and be NaN behind a gate of -inf. What lies above the diagonal is 0.
    """
    columns = g.shape[1]
    backwards = torch.arange(first + columns - 1, first - 1, -1, device=g.device)
    row = torch.arange(start, first + columns, device=g.device)[:, None]
    from_own = torch.where(backwards <= row, g.double().flip(1)[:, None], 0.0).cumsum(-1)
    # column j of the answer ends with the gate of token j + 1
    return pad(from_own[..., :-1], (1, 0)).flip(-1)


def gates_of_tile(g: Tensor, rows: slice, columns: slice) -> Tensor:
    """`g_{j+1} + ... + g_i`, `[N, rows, columns]`, from all gates `g` `[N, L]`, for any rows and columns.

    Below the diagonal it is a sum over the tile's columns and one over what lies between them and the row, each added
    up from its own end: nothing is subtracted.
    """
    if rows.start < columns.stop:
        stop = max(rows.stop, columns.stop)
        band = gates_between(g[:, columns.start : stop], rows.start, columns.start)
        return band[:, : rows.stop - rows.start, : columns.stop - columns.start]
    ends = columns.stop - 1
    to_end = pad(g[:, columns.start + 1 : columns.stop].double().flip(1).cumsum(1).flip(1), (0, 1))
    from_end = g[:, ends + 1 : rows.stop].double().cumsum(1)[:, rows.start - ends - 1 :]
    return from_end[..., None] + to_end[:, None]


def softmax_rows(logits: Tensor, sinks: Tensor | None = None) -> Tensor:
    """`exp(z_ij) / (sum_r exp(z_ir) + exp(sink))` along the last axis; a row of -inf alone is 0.

    Args:
        logits: `[N, rows, columns]`, -inf where a column is not seen.
        sinks: one more logit of each head `[N]`, or None; -inf is no sink.
    """
    _, weights, total = _exponentials(logits, sinks)
    return weights / total


def softmax_sums(logits: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest logit of each row, and the sum of exponentials in units of its own, `[N, rows, 1]` both.

    A row that sees nothing has 0 and 1, which make it 0.
    """
    top, _, total = _exponentials(logits, sinks)
    return top, total


def _exponentials(logits: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logit of each row, the exponentials in units of its own, and their sum."""
    sink = None if sinks is None else sinks.double()[:, None, None]
    top = logits.detach().amax(-1, keepdim=True) if logits.shape[-1] else logits.new_zeros(*logits.shape[:-1], 1)
    if sink is not None:
        top = torch.maximum(top, sink.detach())
    # a row that sees nothing has top = -inf: 0 instead keeps exp(-inf - 0) = 0, and its gradient, free of NaN
    top = top.masked_fill(top == -torch.inf, 0)
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - top)
    return top, weights, total.masked_fill(total == 0, 1)
