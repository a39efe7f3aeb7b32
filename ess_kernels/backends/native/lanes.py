"""Small states by the compiled kernels: many heads side by side in vector lanes, eight positions a block."""

from __future__ import annotations

import torch
from torch import Tensor

from ...engine.cost import Cost
from ...engine.quadrature import Estimate, Quadrature
from ...engine.staircase import Eliminated
from ...engine.wanted import Wanted, grouped
from ...engine.zeros import zero_positions_of
from ...operators.selective_scan import SelectiveStateSpace
from ...operators.structure import StateSpace
from ..sources import source_of
from . import abi, call
from .nodes import Nodes
from .recurrence import NativeRecurrence, block_length
from .summing import SummingEngine
from .tokens import NativeTokens, Survey

# the largest state, and the block, of `csrc/include/ess_lanes.h`
MAX_STATE_SIZE = 16
BLOCK = 8
# positions of a block of the entropy
ENTROPY_BLOCK = 4


def takes(op: StateSpace) -> bool:
    """Whether these kernels are the faster ones: lanes must be full, and the channels of Mamba always are many.

    A matter of the family and not of how many heads there are: a head's bits must not depend on its company.
    """
    return isinstance(op, SelectiveStateSpace) and op.state_size <= MAX_STATE_SIZE


class NativeLanes(SummingEngine):
    """`N` heads of a recurrence with diagonal transitions and a small state."""

    group = BLOCK
    scale_span = ENTROPY_BLOCK
    all_finite = True
    takes_scales = False

    def __init__(self, op: StateSpace, heads: Tensor, found: Survey, cost: Cost):
        """`found`: the heads' tokens and their largest magnitudes."""
        self.op, self.heads, self.found, self.cost = op, heads, found, cost
        self.length, self.state_size = op.length, op.state_size
        self.unit = found.take_units()
        self.finite = torch.ones_like(heads, dtype=torch.bool)
        self.growing = ~self.finite
        self.tokens = found.tokens

    def _lost(self, span: int) -> Tensor:
        return self.tokens.lost(span)

    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        N, S = tau.shape[:2]
        tau = tau.contiguous()
        result = self._room(N, S, self.length)
        call.run(abi.LanesCounts(self.tokens.pointer, S, *(x.data_ptr() for x in (tau, wanted.groups, *result))))
        return result

    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        assert scale is None, "every block has its own scale"
        wanted_blocks = grouped(wanted, ENTROPY_BLOCK).any(-1).contiguous()
        nodes = Nodes(quadrature)
        found = Estimate(*(torch.zeros_like(wanted, dtype=torch.float64) for _ in range(3)))
        addresses = (x.data_ptr() for x in (wanted_blocks, cap, *found))
        call.run(abi.LanesEntropy(self.tokens.pointer, nodes.pointer, *addresses))
        return found

    def known_zero(self) -> Tensor:
        return zero_positions_of(self.op, self.heads)

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        needed, back = heads.unique(return_inverse=True)
        # these tokens get the units of this engine, because units follow from the magnitudes
        tokens = NativeTokens(source_of(self.op, self.heads[needed]))
        found = Survey(tokens, self.found.peaks[:, needed.numpy()])
        c = block_length(self.op, False)
        return NativeRecurrence(self.op, self.heads[needed], found, c, self.cost).values_at(back, positions)
