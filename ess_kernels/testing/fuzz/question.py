"""One call of a metric on one case, and what the answer says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ... import metrics
from .case import Case

Metric = Literal["atol", "rtol", "entropy"]


@dataclass(frozen=True)
class Question:
    """What is asked of a backend.

    Attributes:
        metric: counts by absolute or by relative tolerances, or the entropy.
        backend: its name.
        positions: at which positions the answer is judged.
        everywhere: the call names no positions, and the answer is taken at these.
        tolerances: for counts.
        device: where the tensors lie.
    """

    metric: Metric
    backend: str
    positions: Sequence[int]
    everywhere: bool = False
    tolerances: Sequence[float] = ()
    device: str = "cpu"

    @property
    def call(self) -> str:
        """The call as code; `op` is the operator."""
        arguments = ["op"]
        if self.metric != "entropy":
            tau = list(self.tolerances) if len(self.tolerances) != 1 else self.tolerances[0]
            arguments.append(f"{self.metric}={tau!r}")
        if not self.everywhere:
            arguments.append(f"positions={list(self.positions)}")
        arguments.append(f"backend={self.backend!r}")
        arguments.append("certificate=True")
        return f"ek.{'entropy_ess' if self.metric == 'entropy' else 'tolerance_ess'}({', '.join(arguments)})"


class CountAnswer(NamedTuple):
    """Tensors `[M, H, P]`: int64, float64, bool, bool."""

    counts: Tensor
    width: Tensor
    redone: Tensor
    unresolved: Tensor


class EntropyAnswer(NamedTuple):
    """Tensors `[H, P]`: the entropy-ESS, the bound of its relative error (infinite: flagged, nothing is claimed)."""

    entropy: Tensor
    error: Tensor


def count(case: Case, question: Question) -> CountAnswer:
    op = case.operator(question.device)
    asked = None if question.everywhere else question.positions
    tolerances = list(question.tolerances)
    atol, rtol = (tolerances, None) if question.metric == "atol" else (None, tolerances)
    counts, certificate = metrics.tolerance_ess(op, atol, rtol, asked, question.backend, certificate=True)
    shape = (len(tolerances), op.num_heads, -1)
    found = (x.reshape(shape) for x in (counts, certificate.width, certificate.redone, certificate.unresolved))
    return CountAnswer(*(_taken(x, question) for x in found))


def entropy(case: Case, question: Question) -> EntropyAnswer:
    op = case.operator(question.device)
    asked = None if question.everywhere else question.positions
    found, certificate = metrics.entropy_ess(op, asked, question.backend, certificate=True)
    error = torch.where(certificate.unresolved, torch.inf, certificate.error)
    return EntropyAnswer(*(_taken(x.reshape(op.num_heads, -1), question) for x in (found, error)))


def _taken(x: Tensor, question: Question) -> Tensor:
    x = x.cpu()
    return x[..., torch.as_tensor(question.positions) - 1] if question.everywhere else x
