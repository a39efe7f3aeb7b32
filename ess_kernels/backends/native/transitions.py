"""Kinds of transitions, and matrices where they lie in memory: a matrix a token is by far the largest of all inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ...operators.recurrence import LinearRecurrence
from ...operators.structure import StateSpace

_BYTES = 8
# `transitions` of `csrc/include/ess_recurrence.h`
DIAGONAL, ROWS, COLUMNS, RANK_ONE = range(4)


class Matrices:
    """Reads, writes and transition matrices of some heads, float64; holds whatever memory it points to.

    Attributes:
        read, write: `[N, L, n]`.
        address: of the addresses of the heads' first matrices, `[n, n]`.
        kind: ROWS or COLUMNS, whichever are contiguous.
        stride: numbers from one token's matrix to the next one's, 0 where all share one.
    """

    def __init__(self, op: StateSpace, heads: Tensor):
        if isinstance(op, LinearRecurrence) and op.A.dtype == torch.float64 and op.A[..., 0, 0].numel():
            self.read, self.write = op.by_token(op.C, heads), op.by_token(op.B, heads)
            n, layout = op.state_size, op.A.stride()[-2:]
            matrices = op.A if layout in ((n, 1), (1, n)) else op.A.contiguous()
            self.stride = 0 if op.constant else matrices.stride(-3)
            index = op.unravel(heads)
            offsets = sum((i * s for i, s in zip(index, matrices.stride())), torch.zeros_like(heads))
        else:
            tokens = op.tokens(heads)
            self.read, self.write = tokens.read, tokens.write
            matrices = tokens.matrices().contiguous()
            self.stride = matrices.stride(1)
            offsets = torch.arange(len(heads), device=heads.device) * matrices.stride(0)
        self.kind = ROWS if matrices.stride()[-1] == 1 else COLUMNS
        addresses = matrices.data_ptr() + _BYTES * offsets
        self._alive = matrices, addresses
        self.address = addresses.data_ptr()
