"""Block parts in memory where kernels read them, and what kernels find of them, wherever the parts come from."""

from __future__ import annotations

import ctypes
from abc import abstractmethod

import torch
from torch import Tensor

from ...caching import cached_property
from ...engine.certainty import EPS
from ...engine.quadrature import Estimate, Quadrature
from ...engine.staircase import Eliminated
from ...engine.wanted import Wanted
from . import abi, call, memory
from .call import run
from .certainty import judge_entropy
from .memory import aligned
from .nodes import Nodes
from .summing import SummingEngine
from .transitions import DIAGONAL, RANK_ONE

# the name under which memory is kept between calls
PARTS = "block parts"
# the largest state that the kernels hold, padded
MAX_STATE_SIZE = 256
# below this tolerance, in units of the largest reads and writes, squares may have drowned in rounding errors: then the
# width is foreseen from the diagonal before anything is eliminated
FAR_DOWN = 1e-6
ROWS = 8


def padded(n: int) -> int:
    return -(-n // ROWS) * ROWS


def outside_size(n: int, c: int) -> int:
    """Numbers a block that `ess_recurrence_unsquared_counts` keeps; n is padded."""
    return call.size("recurrence_outside_size", n, c)


class Parts:
    """Block parts and boundaries of some heads, with the memory that they lie in."""

    def __init__(self, heads: int, length: int, n: int, c: int, kind: int):
        """`kind`: DIAGONAL, ROWS, COLUMNS or RANK_ONE transitions."""
        blocks, m, diagonal = -(-length // c), padded(n), kind == DIAGONAL
        sizes = {"X": m * c, "Z": m * c, "Y": c * c, "Phi": m if diagonal else m * m, "F": m * m, "Q": m * m}
        # all of these sizes are multiples of a cache line; `norms` need not be, and comes last
        if not diagonal:
            sizes["norms"] = 4 * c if kind == RANK_ONE else 1
        self._sizes = {name: heads * blocks * size for name, size in sizes.items()}
        self._memory = memory.borrow(PARTS, sum(self._sizes.values()))
        addresses, address = {}, self._memory.data_ptr()
        for name, size in self._sizes.items():
            addresses[name] = address
            address += 8 * size
        self.structure = abi.Recurrence(heads, blocks, m, c, kind, 0, **addresses)
        self.pointer = ctypes.pointer(self.structure)

    def __del__(self) -> None:
        if hasattr(self, "_memory"):  # there was memory to borrow
            memory.give_back(PARTS, self._memory)

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        """Views `[N, ...]` of the arrays, by name."""
        pieces = self._memory.split(list(self._sizes.values()))
        return {name: piece.view(self.structure.heads, -1) for name, piece in zip(self._sizes, pieces, strict=True)}

    def array(self, name: str, columns: int) -> Tensor:
        """One array of the parts as matrices of so many numbers a row, `[N, B, rows, columns]`."""
        return self.arrays[name].view(self.structure.heads, self.structure.blocks, -1, columns)


class PartsEngine(SummingEngine):
    """An engine of `N` heads whose eliminations are those of kernels on block parts."""

    unsquared = True

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """Block parts and boundaries, filled."""

    @property
    @abstractmethod
    def _observe_roots_of_parts(self) -> Tensor:
        """Roots of the observability Gramians at all right edges, where and as kernels read them."""

    def _answer(self, job: abi.RecurrenceCounts | abi.RecurrenceEntropy) -> None:
        """Does a job about the parts."""
        job.parts = self.parts.pointer
        run(job)

    @property
    def _seen(self) -> Tensor:
        """The diagonals of the observability Gramians, `[N, B, n]`."""
        return self.parts.array("Q", self.parts.structure.n).diagonal(dim1=2, dim2=3)

    def _foreseen_width(self, tau: Tensor) -> Tensor | None:
        if float(tau.min()) > FAR_DOWN:
            return None
        # the last writes of a block, seen from its right edge: their squares are on the diagonal of what is eliminated
        writes = self.parts.array("Z", self.parts.structure.n)
        return EPS * (writes.square() @ self._seen[..., None]).amax((2, 3))[:, None] / tau.square()

    def eliminate(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        job, result = self._counting(wanted, tau)
        self._answer(job)
        return result

    def eliminate_unsquared(self, wanted: Wanted, tau: Tensor) -> Eliminated:
        job, result = self._counting(wanted, tau)
        job.parts = self.parts.pointer
        arrays = [x.data_ptr() for x in (self._observe_roots_of_parts, *self._outsides)]
        run(abi.RecurrenceUnsquaredCounts(job, *arrays))
        return result

    def _counting(self, wanted: Wanted, tau: Tensor) -> tuple[abi.RecurrenceCounts, Eliminated]:
        """A job that counts, but for its parts, and where it writes."""
        (N, S), L = tau.shape[:2], self.length
        tau = tau.contiguous()
        result = self._room(N, S, L)
        job = abi.RecurrenceCounts(None, None, L, S, *[x.data_ptr() for x in (tau, wanted.groups, *result)])
        job.alive = tau, wanted.groups
        return job, result

    def estimate(self, wanted: Tensor, quadrature: Quadrature, cap: Tensor, scale: Tensor | None = None) -> Estimate:
        wanted_groups = self._wanted_groups(wanted)
        total, mixed, _ = self._room(*wanted.shape)
        rounding, unit = self.unit.new_zeros(2, *wanted_groups.shape).unbind(0)
        nodes = Nodes(quadrature)
        own = None if scale is None else scale.contiguous()
        addresses = [x.data_ptr() for x in (wanted_groups, total, mixed, rounding, unit)]
        given = None if own is None else own.data_ptr()
        self._answer(abi.RecurrenceEntropy(None, None, self.length, given, nodes.pointer, *addresses))
        ess, bound = judge_entropy(nodes, total, mixed, cap, rounding, self.group)
        return Estimate(ess, bound, total * self._spread(unit))

    @cached_property
    def _outsides(self) -> tuple[Tensor, Tensor]:
        """Room for factors of the blocks' outsides, and bool, which of them are there already."""
        structure = self.parts.structure
        blocks = structure.heads * structure.blocks
        room = aligned(blocks, outside_size(structure.n, structure.c))
        return room, torch.zeros(blocks, dtype=torch.bool, device="cpu")
