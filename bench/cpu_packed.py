"""What packed sequences cost, against the same work that is not packed."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import inputs
import torch
from torch import Tensor

import ess_kernels as ek
from ess_kernels.operators import Operator

REPEATS = 5
METRICS = {"counts 0.001": ek.tolerance_ess, "entropy": ek.entropy_ess}


def packed(backend: str, quick: bool) -> list[dict[str, Any]]:
    """Recurrences against one sequence of all tokens, attention against separate calls; equal lengths and random ones.

    Processor time, the least of some calls taken in turn.
    """
    count, each = (4, 32) if quick else (64, 256)
    tokens = count * each
    equal = torch.arange(0, tokens + 1, each)
    inner = torch.randint(1, tokens, (count - 1,), generator=torch.Generator().manual_seed(14)).sort().values
    rows = []
    for kind, boundaries in (("equal", equal), ("random", torch.cat([equal[:1], inner, equal[-1:]]))):
        title = f"{count} sequences of {'' if kind == 'equal' else 'about '}{each}"
        compared = (
            ("GLA n=64", inputs.packed_gla(boundaries, 64), "one sequence", [inputs.gla(tokens, 64)]),
            ("attention", inputs.packed_attention(boundaries), "separate calls", _separate(boundaries)),
        )
        for case, op, against, others in compared:
            for metric, call in METRICS.items():
                row = {"case": case, "kind": kind, "title": title, "metric": metric, "against": against}
                rows.append(row | _compare(lambda op, call=call: call(op, backend=backend), op, others))
    return rows


def _separate(boundaries: Tensor) -> list[Operator]:
    """The attention operators of single sequences."""
    q, k, scale = inputs.attention_inputs(int(boundaries[-1]))
    cuts = pairwise(boundaries.tolist())
    return [ek.operators.attention(q[:, :, a:b], k[:, :, a:b], scale=scale) for a, b in cuts]


def _compare(call: Callable[[Operator], Any], op: Operator, others: list[Operator]) -> dict[str, float]:
    """The operator's time beside that of the others together."""
    least = [float("inf")] * 2
    for _ in range(REPEATS + 1):
        for number, operators in enumerate(([op], others)):
            start = time.process_time()
            for one in operators:
                call(one)
            least[number] = min(least[number], time.process_time() - start)
    return {"seconds": least[0], "other_seconds": least[1], "ratio": least[0] / least[1]}
