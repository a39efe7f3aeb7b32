"""Recurrences by the compiled kernels: the engine's certainty, with block parts, scans and eliminations of `csrc/`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...caching import cached_property
from ...engine.cost import Cost
from ...engine.lost import lost_in_dense_states
from ...engine.lost_rank_one import TokenSizes, lost_in_rank_one_states
from ...engine.scaling import largest, power_of_two
from ...engine.state_space import REPRESENTABLE, SQUARABLE, Recurrence
from ...engine.state_space import block_length as exact_block_length
from ...engine.wanted import grouped
from ...engine.zeros import zero_positions_of
from ...operators.structure import StateSpace, Tokens
from ..sources import bytes_of_tokens, held_in_kernels, source_of, source_of_tokens
from . import abi, memory, spectra
from .block_parts import Parts, PartsEngine, outside_size, padded
from .call import run
from .memory import aligned
from .tokens import NativeTokens, Survey
from .transitions import DIAGONAL, RANK_ONE, Matrices

# the name under which memory is kept between calls
PRODUCTS = "root products"
# bytes of matrices whose singular values are taken together
PRODUCTS_WORKSPACE = 1 << 24
# The kernels' roots take numbers below 1e-140 for zero, so positions whose largest singular value is below this are
# computed in PyTorch.
FAINT = 1e-120


def block_length(op: StateSpace, entropy: bool) -> int:
    """Tokens a block, as measured: boundaries cost `n^3` each, the staircase `c^2` a position.

    With a rank-one term the boundary is a matrix, and costs several times as much as with diagonal transitions.
    """
    n = op.state_size
    if op.rank_one:
        most_of_16, most_of_32 = (32, 96) if entropy else (16, 80)
        return 16 if n <= most_of_16 else 32 if n <= most_of_32 else 64
    if entropy:
        return 16 if n <= 64 else 32
    return 16 if n <= 16 else 32 if n <= 128 else 64


def bytes_per_head(op: StateSpace, entropy: bool) -> int:
    """What one head needs while it is in work: its tokens, the parts and boundaries of its blocks, and answers."""
    c, m = block_length(op, entropy), padded(op.state_size)
    per_block = 2 * m * c + c * c + (m if op.diagonal else m * m) + 2 * m * m
    if not entropy:
        per_block += m * m + outside_size(m, c)  # for tolerances far down
    matrices = 0 if op.diagonal or op.rank_one else op.length * op.state_size**2
    return 8 * (-(-op.length // c) * per_block + matrices + 64 * op.length) + bytes_of_tokens(op)


class NativeRecurrence(PartsEngine):
    """`N` heads of a recurrence, cut into blocks of `c` tokens, with the boundary recurrences run.

    Heads that are `growing` `[N]` (only where transitions are not diagonal) are left to another engine.
    """

    state_size: int

    def __init__(self, op: StateSpace, heads: Tensor, found: Survey | None, c: int, cost: Cost):
        """`found`: the heads' tokens and their largest magnitudes, for diagonal transitions; `c`: tokens a block."""
        self.op, self.heads, self.cost = op, heads, cost
        self.length, self.state_size = op.length, op.state_size
        self.group = c
        self.finite = torch.ones_like(heads, dtype=torch.bool)
        self._filled = False
        self._kind = DIAGONAL
        self._matrices: Matrices | None = None
        if found is not None:
            self.unit = found.take_units()
            self.tokens = found.tokens
            self.growing, self.all_finite = ~self.finite, True
        else:
            self._look_at_tokens()
            self._look_at_parts()

    @cached_property
    def _blocks(self) -> Parts:
        """Memory for the parts, borrowed at their first use.

        Kernels evict the interpreter's cache lines, so everything is prepared before the first kernel runs.
        """
        return Parts(len(self.heads), self.length, self.op.state_size, self.group, self._kind)

    @property
    def parts(self) -> Parts:
        if not self._filled:
            run(self._making)
            self._filled = True
        return self._blocks

    @property
    def _making(self) -> abi.RecurrenceParts:
        """The job that fills the parts."""
        matrices = (None, 0) if self._matrices is None else (self._matrices.address, self._matrices.stride)
        return abi.RecurrenceParts(self._blocks.pointer, self.tokens.pointer, *matrices)

    def _answer(self, job: abi.RecurrenceCounts | abi.RecurrenceEntropy) -> None:
        """Does a job that fills the parts on its way, if nothing has yet: blocks are answered during the scans."""
        job.parts, job.tokens = self._blocks.pointer, None if self._filled else self.tokens.pointer
        run(job)
        self._filled = True

    def _look_at_tokens(self) -> None:
        """Finds tokens and units of transitions that are not diagonal."""
        if self.op.rank_one:
            self._kind = RANK_ONE
            self.tokens = NativeTokens(source_of(self.op, self.heads))
            peaks = torch.from_numpy(self.tokens.survey()[1])
        else:
            self._matrices = matrices = Matrices(self.op, self.heads)
            self._kind = matrices.kind
            # the third field stands for gates, which kernels do not read where transitions are matrices
            source = source_of_tokens(Tokens(matrices.read, matrices.write, matrices.write, self.op.reads_before))
            self.tokens = NativeTokens(source)
            peaks = torch.stack([largest(matrices.read), largest(matrices.write)])
        self._peaks, self.finite = peaks, peaks.isfinite().all(0)
        self.unit = Survey(self.tokens, torch.where(self.finite, peaks, 0.0).numpy()).take_units()

    def _look_at_parts(self) -> None:
        """Finds heads that grow: no product of their transitions may be too large for kernels."""
        arrays, squares = self.parts.arrays, self._squares
        # norms of blocks, which are needed anyway, are bounds of their entries that mostly do
        bounds = {name: x.amax(1).sqrt() for name, x in squares.items()}
        exact = {name: largest(arrays[name]) for name in ("Y", "Phi")}
        supported = self._supported(bounds | exact)
        if not bool(supported.all()):
            # The tiles of Q above its diagonal are undefined. Q is semidefinite: its largest entry is on the diagonal.
            exact["Q"] = self._seen.flatten(1).amax(1)
            supported = self._supported(exact | {name: largest(arrays[name]) for name in ("X", "Z", "F")})
        growing = (self.finite & ~supported).nonzero()[:, 0]
        if len(growing):
            # NaN or infinity in a transition has reached the parts of its block: such a head is not growing, it is bad
            self.finite[growing] = self.op.finite(self.heads[growing])
        self.growing = self.finite & ~supported
        if not bool(supported.all()):
            for x in (*arrays.values(), *squares.values()):
                x[~supported] = 0.0

    def _supported(self, size: dict[str, Tensor]) -> Tensor:
        """bool `[N]`: whether kernels can take heads of which the entries of each array are so large at most."""
        entry = torch.maximum(self.op.state_size * size["X"] * size["F"], size["Y"]) * self.unit
        supported = torch.stack([x <= SQUARABLE for x in size.values()]).all(0) & (entry <= REPRESENTABLE)
        return supported & held_in_kernels(self._peaks).all(0)

    @cached_property
    def _squares(self) -> dict[str, Tensor]:
        """Squared Frobenius norms by block, `[N, B]`; of Q, which is a square itself, the trace."""
        shape = len(self.heads), self.parts.structure.blocks, -1
        squares = {name: self.parts.arrays[name].view(shape).square().sum(-1) for name in ("F", "Z", "X")}
        return squares | {"Q": self._seen.sum(-1)}

    def _lost(self, span: int) -> Tensor:
        if self.op.diagonal:
            return self.tokens.lost(span)
        F, Q = self._squares["F"], self._squares["Q"]
        if self.op.rank_one:
            lost = lost_in_rank_one_states(self._sizes, F, Q, self.group, self.op.reads_before, span)
            return lost[:, : -(-self.length // span)]
        assert self._matrices is not None
        written, read = (
            grouped(power_of_two(tokens)[0].square().sum(-1), self.group).sum(-1) + self._squares[name]
            for tokens, name in ((self._matrices.write, "Z"), (self._matrices.read, "X"))
        )
        lost = lost_in_dense_states(F, written, Q, read, self.parts.arrays["norms"].square(), self.group)
        return lost.expand(-1, -(-self.length // span))

    @cached_property
    def _sizes(self) -> TokenSizes:
        """Of rank-one transitions, `[N, B c]`."""
        return TokenSizes(*self.parts.arrays["norms"].view(len(self.heads), -1, 4).unbind(-1))

    def known_zero(self) -> Tensor:
        return zero_positions_of(self.op, self.heads)

    def values_at(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Scaled singular values `[Q, n]`, descending, zero beyond the rank's cap, from triangular roots."""
        n = self.parts.structure.n
        self.cost.note(len(heads), len(heads) * n**2 * (6 + n + 8 * n / 3))
        order = (heads * self.length + positions).argsort()
        values = heads.new_zeros(len(heads), self.state_size, dtype=torch.float64)
        each = max(1, PRODUCTS_WORKSPACE // (8 * n * n))
        products = memory.borrow(PRODUCTS, min(each, len(order)) * n * n).view(-1, n, n)
        for piece in order.split(each):
            mine = products[: len(piece)]
            self._root_products(heads[piece].contiguous(), positions[piece].contiguous(), mine)
            values[piece] = spectra.singular_values(mine.mT, None)[:, : self.state_size]
        memory.give_back(PRODUCTS, products)
        faint = (values[:, 0] < FAINT).nonzero()[:, 0]
        if len(faint):
            values[faint] = self._faint_values(heads[faint], positions[faint])
        beyond = torch.arange(self.state_size, device="cpu") >= self.cap(positions)[:, None]
        return values.masked_fill(beyond, 0.0)

    def _faint_values(self, heads: Tensor, positions: Tensor) -> Tensor:
        """The same by LAPACK, which takes no norm by its square."""
        needed, back = heads.unique(return_inverse=True)
        tokens = self.op.tokens(self.heads[needed])
        exact = Recurrence(tokens, exact_block_length(self.op.state_size, False), self.cost)
        return exact.values_at(back, positions) * (exact.unit / self.unit[needed])[back][:, None]

    def _root_products(self, heads: Tensor, positions: Tensor, products: Tensor) -> None:
        """Fills `[Q, n, n]`, column-major, with matrices that have `H_i`'s singular values; heads, positions sorted."""
        addresses = (x.data_ptr() for x in (heads, positions, products))
        run(abi.RecurrenceRootProducts(self._rooting(self._observe_roots_of_parts), len(heads), *addresses))

    @cached_property
    def _observe_roots_of_parts(self) -> Tensor:
        roots = aligned(len(self.heads), self.parts.structure.blocks, self.parts.structure.n, self.parts.structure.n)
        run(self._rooting(roots))
        return roots

    def _rooting(self, roots: Tensor) -> abi.RecurrenceObserveRoots:
        """The job that takes the roots of the Gramians of the parts, which are filled."""
        assert self.parts.pointer
        return abi.RecurrenceObserveRoots(self._making, roots.data_ptr())
