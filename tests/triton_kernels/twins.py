"""The staircase kernels' work done by the engine: what takes their place in tests of all that is around them."""

from __future__ import annotations

import torch

from ess_kernels.engine import staircase


def descend_twin(roots, value, growth, least, definite, budget):
    """`staircase.descend` by the engine."""
    answer = staircase.Answer.of(torch.ones(1, len(value), dtype=torch.bool))
    answer.value, answer.growth, answer.least = value[None], growth[None], least[None]
    item, stop = torch.zeros_like(roots.place), roots.place + roots.limit
    state = roots.value, roots.growth, roots.least
    nodes = staircase.Nodes(*roots.rkc.unbind(1), *state, item, roots.place, stop)
    staircase.descend(nodes, answer, definite, budget)
