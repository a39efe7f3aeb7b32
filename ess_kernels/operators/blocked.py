"""Operators whose tokens have several rows and columns of `T`: for the engine each is several tokens in a row."""

from __future__ import annotations

from torch import Tensor

from .structure import Operator


class Blocked(Operator):
    """An operator whose positions are every `sub_tokens`-th position of another one.

    Every token of this operator is `sub_tokens` tokens of the inner one, which the engine knows. Some of them have rows
    of `T`, some have columns; the inner operator's other rows and columns must be zero below its diagonal. Then `H_i`
    of this operator, `T[p i:, :m i]`, has the singular values of the inner operator's `H` at `sub_tokens * i`.

    Attributes:
        inner: a state space or a matrix of length `sub_tokens * L`.
        sub_tokens: tokens of the inner operator for each of this one.
        rows: the p sub-tokens that have rows of `T`, as `(first, stop)` among those of a token.
        columns: the m sub-tokens that have columns, likewise.
    """

    NUMBERS = ("sub_tokens", "rows", "columns")

    def __init__(
        self,
        inner: Operator,
        sub_tokens: int,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ):
        rows, columns = rows or (0, sub_tokens), columns or (0, sub_tokens)
        block = (rows[1] - rows[0], columns[1] - columns[0])
        super().__init__(inner.length // sub_tokens, inner.batch_shape, inner.state_size, inner.inputs, block=block)
        self._inner = inner
        self.sub_tokens, self.rows, self.columns = sub_tokens, rows, columns

    @property
    def inner(self) -> Operator:
        return self._inner

    @property
    def bandwidth(self) -> int | None:
        within = self._inner.bandwidth
        # the first row of a token and the last column of an earlier one are nearer than the tokens' first sub-tokens
        nearer = self.columns[1] - 1 - self.rows[0]
        widest = self.length if within is None else max(-(-(within + nearer) // self.sub_tokens), 1)
        return widest if widest < self.length else None

    def inner_positions(self, positions: Tensor) -> Tensor:
        return self.sub_tokens * positions

    def finite(self, heads: Tensor) -> Tensor:
        return self._inner.finite(heads)

    def dense_heads(self, heads: Tensor) -> Tensor:
        """As the inner operator has it. Within a token a column has no part in the rows of earlier sub-tokens."""
        T = self._inner.dense_heads(heads)
        of_tokens = T.unflatten(1, (self.length, self.sub_tokens)).unflatten(3, (self.length, self.sub_tokens))
        return of_tokens[:, :, slice(*self.rows), :, slice(*self.columns)].flatten(3).flatten(1, 2)
