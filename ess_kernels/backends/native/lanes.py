"""Small states by the compiled kernels: many heads side by side in vector lanes, eight positions a block."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from ...engine.cost import Cost
from ...engine.quadrature import STANDARD, Estimate, Quadrature
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
# arrays of a number a position that exist together: for each tolerance, and for an entropy
COUNTS_ARRAYS, ENTROPY_ARRAYS = 12, 12


def takes(op: StateSpace) -> bool:
    """Whether these kernels are the faster ones: lanes must be full, and the channels of Mamba always are many.

    A matter of the family and not of how many heads there are: a head's bits must not depend on its company.
    """
    return isinstance(op, SelectiveStateSpace) and op.state_size <= MAX_STATE_SIZE


def bytes_per_head(op: StateSpace, entropy: bool, shifts: int) -> int:
    """What one head needs while it is in work: its steps in float64, three arrays of an elimination at every tolerance
    (of an entropy at all shifts together), and what certainty makes of these, about as much three times."""
    return 8 * op.length * (1 + ENTROPY_ARRAYS if entropy else 1 + COUNTS_ARRAYS * shifts)


def bytes_shared(op: StateSpace, entropy: bool) -> int:
    """What heads need together: reads and writes in float64, and the workspace of the pinned library's threads, which
    holds the transitions and Gramians of all blocks of as many heads as there are lanes."""
    copies = sum(8 * x.numel() for x in op.inputs if x.dtype != torch.float64)
    _, how = call.current()
    return copies + _workspace(op.num_heads, op.length, op.state_size, entropy, how.threads, how.level)


@lru_cache(maxsize=64)
def _workspace(heads: int, length: int, states: int, entropy: bool, threads: int, level: int) -> int:
    if not heads or not length:
        return 0
    # the library looks whether there are addresses; to measure the workspace it does not read what they have
    places = torch.ones(heads, dtype=torch.int64, device="cpu")
    some = places.data_ptr()
    tokens = abi.Tokens(heads, length, states, read=some, write=some, gate=some, read_unit=some, write_unit=some)
    if entropy:
        nodes = Nodes(STANDARD)
        return call.workspace(abi.LanesEntropy(ctypes.pointer(tokens), nodes.pointer, *[some] * 5))
    return call.workspace(abi.LanesCounts(ctypes.pointer(tokens), 1, *[some] * 5))


class NativeLanes(SummingEngine):
    """`N` heads of a recurrence with diagonal transitions and a small state."""

    group = BLOCK
    scale_span = ENTROPY_BLOCK
    all_finite = True
    takes_scales = False
    state_size: int

    def __init__(self, op: StateSpace, heads: Tensor, found: Survey, together: int, cost: Cost):
        """`found`: the heads' tokens and their largest magnitudes; `together`: of how many heads singular values may be
        found at a time, which takes far more memory than what this engine does by itself."""
        self.op, self.heads, self.found, self.together, self.cost = op, heads, found, together, cost
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
        values = self.unit.new_zeros(len(heads), self.state_size)
        needed, back = heads.unique(return_inverse=True)
        for start in range(0, len(needed), self.together):
            some = needed[start : start + self.together]
            pairs = ((back >= start) & (back < start + len(some))).nonzero()[:, 0]
            values[pairs] = self._values_of(some, back[pairs] - start, positions[pairs])
        return values

    def _values_of(self, some: Tensor, heads: Tensor, positions: Tensor) -> Tensor:
        """Scaled singular values `[Q, n]`, of some heads of this engine that `heads` `[Q]` counts."""
        # these tokens get the units of this engine, because units follow from the magnitudes
        tokens = NativeTokens(source_of(self.op, self.heads[some]))
        found = Survey(tokens, self.found.peaks[:, some.numpy()])
        c = block_length(self.op, False)
        return NativeRecurrence(self.op, self.heads[some], found, c, self.cost).values_at(heads, positions)
