"""Products of delta rules that a layer computes by the gated delta rule, of a row in which every token is several.

Gated DeltaProduct of flash-linear-attention does so for short sequences: each token is `n` steps of the rule, of which
the first decays and the last is read; the queries and the log decays of the others are zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import Refused


def steps_of_a_token(arguments: dict[str, Any], attention_mask: Tensor | None, rows: int | None, length: int) -> int:
    """How many steps of the rule each token of the batch is: 1 unless the call has a multiple of its tokens."""
    batch, steps = arguments["q"].shape[:2]
    tokens = length
    if arguments.get("cu_seqlens") is not None:
        tokens = (rows or batch) * length if attention_mask is None else int(attention_mask.sum())
    return steps // tokens if tokens and steps % tokens == 0 else 1


def as_product(arguments: dict[str, Any], steps: int) -> dict[str, Any]:
    """The same call as one of `chunk_gated_delta_product`.

    Raises:
        Refused: a step that is not its token's last is read, or one that is not its first decays.
    """
    q, g, boundaries = arguments["q"], arguments.get("g"), arguments.get("cu_seqlens")
    of_steps = torch.arange(q.shape[1], device=q.device) % steps
    if q[:, of_steps != steps - 1].any() or (g is not None and g[:, of_steps != 0].any()):
        raise Refused(f"{steps} steps of the delta rule for each token, which are no product of rules")
    return arguments | {
        "q": q[:, steps - 1 :: steps],
        "g": None if g is None else g[:, ::steps],
        "cu_seqlens": None if boundaries is None else boundaries // steps,
        "num_householder": steps,
    }
