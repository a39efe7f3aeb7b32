"""The two structures that the engine sees: a finite state, or a matrix produced by bands of rows.

Every operator family lowers to one of them; nothing downstream knows which family it came from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engine.blocks import Blocks, block_parts, cut
from ..memory import Need, make_sure, out_of_memory_as_memory_error
from .sparsity import Sparsity
from .tile_sources import COPIES, TileSource


def rank_cap(
    positions: Tensor, length: int | Tensor, state_size: int | None, block: tuple[int, int] = (1, 1)
) -> Tensor:
    """The largest rank that `H_i` can have: the smaller one of its sides, and no more than the state size, if any.

    Its sides are L - i and i; where a token has a block of `(p, m)` rows and columns, `p (L - i)` and `m i`.
    """
    rows, columns = block
    cap = torch.minimum(columns * positions, rows * (length - positions))
    return cap if state_size is None else cap.clamp_max(state_size)


class Operator(ABC):
    """A causal linear map `y = T u` for every head of a batch, `T` lower triangular.

    Operators are immutable: an attribute keeps the value that the constructor gives it, so that what is rebuilt from
    the constructor's arguments, as in a compiled graph, is the same operator.

    Heads are numbered along the flattened `batch_shape`; methods that take `heads` want a 1-D int64 tensor of
    such numbers on the operator's device and answer with one leading axis `N = len(heads)`.

    Attributes:
        length: sequence length `L`.
        batch_shape: leading dimensions of every result, for instance `(B, H)`.
        block: how many rows and columns of `T` a token has, `(p, m)`; one and one for most operators.
        state_size: the theoretically realisable state size (TSS), `None` where there is no finite state.
        inputs: the caller's tensors, as they came (used to find the device and whether a gradient is wanted).
        accumulated: an `over_time.Accumulated`; missing where no number depends on earlier tokens.
        TENSORS, NUMBERS: the constructor's arguments, each also an attribute: tensors or None, and plain numbers or
            None. An operator can be rebuilt from them.
    """

    TENSORS: ClassVar[tuple[str, ...]] = ()
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    accumulated: Any

    def __init__(
        self,
        length: int,
        batch_shape: Sequence[int],
        state_size: int | None,
        inputs: Sequence[Tensor],
        *,
        block: tuple[int, int] = (1, 1),
    ):
        # sizes stay as they come: while a graph is traced they may be symbolic
        self.length = length
        self.batch_shape = tuple(batch_shape)
        self.block = block
        self.state_size = state_size
        self.inputs = tuple(inputs)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(self, name):
            family = type(self).__name__
            raise AttributeError(f"{name}: operators are immutable; construct another {family} to change it")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: operators are immutable")

    @property
    def num_heads(self) -> int:
        return math.prod(self.batch_shape)

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device

    @property
    def requires_grad(self) -> bool:
        return any(x.requires_grad for x in self.inputs)

    @property
    def bandwidth(self) -> int | None:
        """The smallest known `w` such that `T_ij = 0` for `i - j >= w` in every head; None where none below L is known.

        It is the window of windowed attention and the number of taps of a short convolution. For masks, kernels and
        dense operators the numbers are looked at.
        """
        return None

    def sequence_bounds(self) -> tuple[Tensor, Tensor]:
        """Where the sequence of each position starts and stops, in tokens of its row: int64 `[B, L - 1]` both.

        An operator made with `cu_seqlens`, `seq_idx` or `attention_mask` has several sequences in a row, or padding
        beside one; any other has `0` and `L` everywhere. `B` is the first of two or more batch dimensions, else 1.
        """
        rows = self.batch_shape[0] if len(self.batch_shape) > 1 else 1
        start = torch.zeros(rows, max(self.length - 1, 0), dtype=torch.int64, device=self.device)
        return start, start + self.length

    @property
    def valid(self) -> Tensor:
        """bool `[B, L - 1]`: which positions are inside a sequence, `1 .. L_s - 1` of it.

        Not those at which a sequence starts, nor padding: there every count and every value is 0.
        """
        start, stop = self.sequence_bounds()
        position = torch.arange(1, start.shape[1] + 1, device=start.device)
        return (start < position) & (position < stop)

    def within(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The positions counted from the start of their sequences, and whether they are valid: as `rank_cap`."""
        return positions, torch.ones_like(positions, dtype=torch.bool)

    @property
    def inner(self) -> Operator:
        """The operator that the engine sees: this one, unless a token has several rows or columns of `T`."""
        return self

    def inner_positions(self, positions: Tensor) -> Tensor:
        """The positions of `inner` that have the `H_i` of these."""
        return positions

    def rank_cap(self, positions: Tensor) -> Tensor:
        """The largest rank that `H_i` can have at each of the positions, `[P]`; it broadcasts to `[*batch, P]`."""
        return rank_cap(positions, self.length, self.state_size, self.block)

    def submatrix(self, T: Tensor, i: int) -> Tensor:
        """`H_i` of this operator's `T`: the rows of tokens from i on, the columns of tokens before i."""
        rows, columns = self.block
        return T[..., rows * i :, : columns * i]

    def strictly_lower(self, T: Tensor) -> Tensor:
        """This operator's `T`, zero where the row's token does not come after the column's."""
        rows, columns = self.block
        if rows == columns == 1:
            return T.tril(-1)
        token = torch.arange(self.length, device=T.device)
        after = token.repeat_interleave(rows)[:, None] > token.repeat_interleave(columns)
        return torch.where(after, T, 0.0)

    def all_heads(self) -> Tensor:
        return torch.arange(self.num_heads, device=self.device)

    def unravel(self, heads: Tensor) -> tuple[Tensor, ...]:
        """The index of each head along every batch dimension."""
        index: list[Tensor] = []
        for size in reversed(self.batch_shape):
            index.insert(0, heads % max(size, 1))
            heads = heads // max(size, 1)
        return tuple(index)

    def take(self, x: Tensor, heads: Tensor) -> Tensor:
        """Some heads of a tensor `[*batch, ...]`, copied to `[N, ...]`; the other heads are not touched."""
        return x[self.unravel(heads)] if self.batch_shape else x[None][heads]

    @abstractmethod
    def finite(self, heads: Tensor) -> Tensor:
        """bool `[N]`: whether all numbers that the head reads are finite, so that its answers mean something.

        The `-inf` of a log-gate or of an additive mask says "nothing passes", and is no bad number.
        """

    @abstractmethod
    def dense_heads(self, heads: Tensor) -> Tensor:
        """`T` of some heads, float64 `[N, L p, L m]`, zero above the diagonal: `[N, L, L]` for most operators."""

    def own_tiles(self, heads: Tensor) -> TileSource | None:
        """Tiles of `T` that need no other rows or columns, or None: see `tile_sources.tile_source`."""
        return None

    def dense(self) -> Tensor:
        """The operator itself: float64 `[*batch, L p, L m]`, zero above the diagonal; `[*batch, L, L]` for most."""
        if torch.compiler.is_compiling():
            return self._dense()
        rows, columns = self.block
        size = self.num_heads * self.bytes_of_dense()
        unit = f"T of {self.num_heads} heads, {self.length * rows} by {self.length * columns},"
        make_sure(Need(unit, size, size, "fewer heads, or rows of them (dense_heads)"), self.device)
        return out_of_memory_as_memory_error(self._dense)()

    def _dense(self) -> Tensor:
        rows, columns = self.block
        return self.dense_heads(self.all_heads()).reshape(*self.batch_shape, self.length * rows, self.length * columns)

    def bytes_of_dense(self) -> int:
        """What `dense_heads` takes for one head, with `T` itself."""
        rows, columns = self.block
        return 8 * COPIES * self.length**2 * rows * columns

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_shape={self.batch_shape}, length={self.length}, state_size={self.state_size})"
        )


@dataclass(frozen=True)
class Tokens:
    """A recurrence token by token, float64, for `N` heads.

    With `reads_before` false, row i reads the state after its own transition:
    `T[i, j] = read[i] . A_i ... A_{j+1} . write[j]` for `i >= j`.
    With `reads_before` true it reads the state before it, and there is no diagonal:
    `T[i, j] = read[i] . A_{i-1} ... A_{j+1} . write[j]` for `i > j`.

    Attributes:
        read: `[N, L, n]`.
        write: `[N, L, n]`.
        transition: `[N, L, n]` for diagonal `A_t` (decay factors, not their logarithms) or `[N, L, n, n]`.
        reads_before: see above.
        lookup: `[N, L, n]` for transitions that are diagonal plus one rank-one term, as in the delta rules:
            `A_t = diag(transition[t]) + update[t] lookup[t]^T`. What the state before the transition holds under the
            lookup is multiplied into the update.
        update: `[N, L, n]`, beside a lookup. None means minus the write: the token replaces what it looked up.
    """

    read: Tensor
    write: Tensor
    transition: Tensor
    reads_before: bool
    lookup: Tensor | None = None
    update: Tensor | None = None

    @property
    def diagonal(self) -> bool:
        return self.transition.dim() == self.read.dim() and self.lookup is None

    @property
    def rank_one(self) -> bool:
        return self.lookup is not None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there."""
        every = (self.read, self.write, self.transition, self.lookup, self.update)
        return tuple(x for x in every if x is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """The tokens with every tensor changed."""
        read, write, transition = change(self.read), change(self.write), change(self.transition)
        lookup, update = (None if x is None else change(x) for x in (self.lookup, self.update))
        return Tokens(read, write, transition, self.reads_before, lookup, update)

    def cat(self, *others: Tokens, dim: int) -> Tokens:
        """These tokens and others of the same kind, one behind the other."""
        tensors = zip(self.tensors, *(other.tensors for other in others), strict=True)
        joined = iter([torch.cat(same, dim) for same in tensors])
        return self.map(lambda _: next(joined))

    @property
    def updates(self) -> Tensor:
        """`update`, made from the write where it is None."""
        return -self.write if self.update is None else self.update

    def matrices(self) -> Tensor:
        """The transitions as matrices `[..., L, n, n]`, whatever their kind."""
        if self.transition.dim() > self.read.dim():
            return self.transition
        diagonal = torch.diag_embed(self.transition)
        return diagonal if self.lookup is None else diagonal + self.updates[..., :, None] * self.lookup[..., None, :]

    def move(self, t: int, states: Tensor, transposed: bool = False) -> Tensor:
        """`A_t states`, or `A_t^T states`, for columns `[N, n, m]`."""
        step = self.transition[:, t]
        if self.transition.dim() > self.read.dim():
            return (step.mT if transposed else step) @ states
        moved = step[..., None] * states
        if self.lookup is None:
            return moved
        seen, changed = self.lookup[:, t], self.updates[:, t]
        if transposed:
            seen, changed = changed, seen
        return moved + changed[..., None] * (seen[:, None] @ states)

    def diagonal_entries(self) -> Tensor:
        """`T_ii` `[N, L]`."""
        entries = (self.read * self.write).sum(-1)
        return torch.zeros_like(entries) if self.reads_before else entries

    def finite(self) -> Tensor:
        """bool `[N]`: whether every number of the head is finite."""
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in self.tensors])
        return finite.all(0)


class StateSpace(Operator):
    """An operator with a finite state of `state_size` numbers per head.

    Attributes:
        reads_before: whether row i reads the state before its own transition.
        diagonal, rank_one: whether transitions are diagonal, or diagonal plus a rank-one term (see `Tokens`). Where
            they are neither, they are matrices.
    """

    state_size: int

    def __init__(
        self,
        length: int,
        batch_shape: Sequence[int],
        state_size: int,
        inputs: Sequence[Tensor],
        *,
        reads_before: bool = False,
        diagonal: bool = True,
        rank_one: bool = False,
    ):
        super().__init__(length, batch_shape, state_size, inputs)
        self.reads_before = reads_before
        self.diagonal = diagonal and not rank_one
        self.rank_one = rank_one

    @abstractmethod
    def tokens(self, heads: Tensor) -> Tokens:
        """The recurrence of some heads, upcast to float64. Bad data must stay visible as non-finite numbers."""

    def block_parts(self, heads: Tensor, c: int) -> Blocks:
        """Parts of blocks of `c` tokens (a power of two), `[N, ceil(L / c), ...]`, the last one filled up."""
        return block_parts(cut(self.tokens(heads), c))

    def own_diagonal(self, heads: Tensor) -> Tensor | None:
        """`T_ii` `[N, L]`, float64, where it is another number than tokens make; None where it is theirs.

        The diagonal is in no `H_i`, so that tokens need not have it.
        """
        return None

    def one_period(self, heads: Tensor) -> Tokens | None:
        """The first tokens, after which all others repeat as often as they fit; None where tokens do not repeat."""
        return None

    def already_lost(self, heads: Tensor) -> Tensor | None:
        """By how much `H_i` may be wrong because the tokens come from states that were rounded.

        float64 `[N, L]`, or `[N, 1]` for all positions, in the operator's units. None where tokens are the caller's
        numbers: then all that is lost follows from them.
        """
        return None

    @property
    def seams(self) -> tuple[int, ...]:
        """The tokens at which others begin to stand for tokens that are not here, or end to do so, ascending.

        A block with such a token inside is not the block of the whole sequence.
        """
        return ()

    def without_gradient(self, heads: Tensor) -> Tensor | None:
        """bool `[N]`: heads whose `tokens` cannot be differentiated, or None where all can or none has to be.

        Such heads have `matrix_tokens`, whose gradient is right.
        """
        return None

    def matrix_tokens(self, heads: Tensor) -> Tokens:
        """The recurrence of some heads with transitions that are matrices. `T` is that of `tokens`."""
        tokens = self.tokens(heads)
        return replace(tokens, transition=tokens.matrices(), lookup=None, update=None)

    def from_tokens(self, heads: Tensor, answer: Callable[[Tensor, Tokens], Tensor]) -> Tensor:
        """`answer(heads, tokens)` `[N, ...]`, from tokens that can be differentiated where a gradient is wanted.

        Each head decides for itself, so that its answer does not depend on the other heads.
        """
        matrices = self.without_gradient(heads)
        if matrices is None or not bool(matrices.any()):
            return answer(heads, self.tokens(heads))
        if bool(matrices.all()):
            return answer(heads, self.matrix_tokens(heads))
        some, others = matrices.nonzero()[:, 0], (~matrices).nonzero()[:, 0]
        answers = torch.cat(
            [answer(heads[some], self.matrix_tokens(heads[some])), answer(heads[others], self.tokens(heads[others]))]
        )
        return answers.index_select(0, torch.cat([some, others]).argsort())

    def finite(self, heads: Tensor) -> Tensor:
        return self.tokens(heads).finite()

    def bytes_of_dense(self) -> int:
        # T, once more where the diagonal is another, and vectors: tokens, and what their states have become so far
        vectors = 8 if self.diagonal or self.rank_one else 8 + 2 * self.state_size
        same = type(self).own_diagonal is StateSpace.own_diagonal
        return 8 * ((1 if same else 3) * self.length**2 + vectors * self.length * self.state_size)

    def dense_heads(self, heads: Tensor) -> Tensor:
        T, own = self.from_tokens(heads, lambda _, tokens: dense_of(tokens)), self.own_diagonal(heads)
        return T if own is None else T.tril(-1) + torch.diag_embed(own)


def dense_of(tokens: Tokens) -> Tensor:
    """`T` `[N, L, L]` of a recurrence."""
    count, length, state_size = tokens.write.shape
    # column j of `reach` is the state now, had only token j been written
    reach = tokens.write.new_zeros(count, state_size, 0)
    # Rows that are put together at the end are for autograd and vmap only: between them and ever larger states an
    # allocator would leave holes that are several times as large as T.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    apart = any(x.requires_grad or wrapped(x) for x in tokens.tensors)
    rows: list[Tensor] = []
    T = None if apart else tokens.write.new_zeros(count, length, length)
    for i in range(length):
        written = tokens.write[:, i, :, None]
        read = tokens.read[:, i, None]
        if tokens.reads_before:
            seen = torch.cat([read @ reach, torch.zeros_like(read[..., :1])], -1)
        reach = tokens.move(i, reach)
        reach = torch.cat([reach, written], -1)
        if not tokens.reads_before:
            seen = read @ reach
        if T is None:
            rows.append(torch.nn.functional.pad(seen[:, 0], (0, length - 1 - i)))
        else:
            T[:, i, : i + 1] = seen[:, 0]
    if T is not None:
        return T
    return torch.stack(rows, 1) if rows else tokens.write.new_zeros(count, 0, 0)


class Tiled(Operator):
    """Any other operator, produced by bands of rows so that no more of `T` need exist than is being used."""

    @abstractmethod
    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start..stop-1` of `T`, columns `0..stop-1`: float64 `[N, rows, stop]`, zero above the diagonal."""

    def stored(self, head: Tensor) -> Tensor | None:
        """`T` `[L, L]` of one head `[1]` where it lies in memory as float64 with contiguous rows, or None.

        What lies on or above its diagonal means nothing.
        """
        return None

    @property
    def copies(self) -> int:
        """How many arrays of the size of some rows exist at most while `rows` makes them."""
        return COPIES

    def bytes_of_dense(self) -> int:
        return 8 * self.copies * self.length**2

    def dense_heads(self, heads: Tensor) -> Tensor:
        return self.rows(heads, 0, self.length)

    def sparsity(self, heads: Tensor) -> Sparsity | None:
        """Where `T` of some heads is zero for certain; None where nothing is known. Bad data may give any answer."""
        return None

    @property
    def bandwidth(self) -> int | None:
        known = self.sparsity(self.all_heads()) if self.num_heads else None
        widest = self.length if known is None else int(known.bandwidth.max())
        return widest if widest < self.length else None

    def of_tokens(self, heads: Tensor, tokens: Tensor) -> Tiled:
        """The operator of some tokens only, for families that have a sparsity: its T is a submatrix of this one's.

        Only rows whose tokens see none but these tokens are meant: where a row sees others as well, its numbers mean
        nothing, but are finite where the head is.

        Args:
            heads: `[N]`.
            tokens: `[N, m]`, ascending. They are neighbours, but for those of the first columns of the sparsity.

        Returns:
            An operator of length m and N heads.
        """
        raise NotImplementedError
