"""Calls whose sequences stand one after the other in a row: flash-linear-attention packs padded batches so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .layouts import Layout

# names of the boundaries between sequences; the first is flash-linear-attention's
BOUNDARIES = ("cu_seqlens", "cu_seq_lens", "seq_idx")


def is_packed(arguments: Mapping[str, Any]) -> bool:
    return any(arguments.get(name) is not None for name in BOUNDARIES)


def tokens_of(
    arguments: Mapping[str, Any], attention_mask: Tensor | None, rows: int | None, length: int | None
) -> Tensor | None:
    """bool `[B, L]`, which tokens of a batch a call has packed into one row; None if it has not packed this batch."""
    boundaries = arguments.get("cu_seqlens")
    if not isinstance(boundaries, Tensor) or rows is None or length is None:
        return None
    tokens = torch.ones(rows, length, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    tokens = tokens.to(boundaries.device)
    if attention_mask is None and rows == 1:
        return None  # the row as it was given, of one sequence or several
    return tokens if torch.equal(tokens.sum(1).cumsum(0), boundaries[1:].long()) else None


def padded(x: Tensor, tokens: Tensor) -> Tensor:
    """`[1, total, ...]` back in its rows, `[B, L, ...]`, with zeros for padding; or `n total` as `n L`."""
    total = int(tokens.sum())
    each = x.shape[1] // max(total, 1)
    rows = x.new_zeros(*tokens.shape, each, *x.shape[2:])
    rows[tokens] = x[0].unflatten(0, (total, each))
    return rows.flatten(1, 2)


def padded_arguments(arguments: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The arguments of the same call of the batch in its rows."""
    total = int(tokens.sum())

    def is_packed(x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 2 and x.shape[0] == 1 and 0 == x.shape[1] % total < x.shape[1]

    rows = {name: padded(x, tokens) if is_packed(x) else x for name, x in arguments.items()}
    return rows | {"cu_seqlens": None}


def in_rows(layout: Layout, tokens: Tensor) -> Layout:
    """The layout of tensors whose tokens are packed, for what has a batch in its rows."""

    def from_heads(x: Tensor) -> Tensor:
        return layout.from_heads(x).unflatten(1, (tokens.shape[1], -1))[tokens].flatten(0, 1)[None].contiguous()

    return Layout(lambda x: layout.to_heads(padded(x, tokens)), from_heads)
