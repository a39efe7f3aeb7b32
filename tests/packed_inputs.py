"""Inputs of packed batches that several tests use."""

from itertools import pairwise

import torch
from torch.nn.functional import logsigmoid

from ess_kernels.testing.cases import randn

LENGTHS = [5, 1, 0, 17, 40, 17]
CU = torch.tensor([0, *LENGTHS]).cumsum(0)
T = sum(LENGTHS)
PAIRS = [(int(a), int(b)) for a, b in pairwise(CU)]


def gla_inputs(length=T, batch=1, heads=2, n=4):
    q, k, g = (randn(batch, length, heads, n) for _ in range(3))
    return q, k, logsigmoid(g)
