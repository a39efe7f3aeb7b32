"""Weighted sums of operators: differential attention, and mixers that work side by side on the same values."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_floating, check_same_device, finite_float
from .recurrence_rows import recurrence_rows
from .structure import Operator, StateSpace, Tiled, Tokens

Weight = float | Tensor


class SumOf(Tiled):
    """`T = sum_m w_m T_m`; see `sum_of`.

    Attributes:
        ops: the operators.
        weights: a number, or a tensor that broadcasts to `[*batch]` or, with one axis more, to `[*batch, L]`, for each.
    """

    def __init__(self, ops: Sequence[Operator], weights: Sequence[Weight]):
        first = ops[0]
        sizes = [op.state_size for op in ops]
        state_size = None if None in sizes else sum(size for size in sizes if size is not None)
        inputs = [x for op in ops for x in op.inputs] + [w for w in weights if isinstance(w, Tensor)]
        super().__init__(first.length, first.batch_shape, state_size, inputs)
        self.ops, self.weights = tuple(ops), tuple(weights)

    def rows(self, heads: Tensor, start: int, stop: int) -> Tensor:
        terms = (
            rows_of(op, heads, start, stop) * _of_heads(weight, self, heads, start, stop)
            for op, weight in zip(self.ops, self.weights)
        )
        return functools.reduce(torch.add, terms)

    @torch.no_grad()
    def finite(self, heads: Tensor) -> Tensor:
        finite = torch.ones(len(heads), dtype=torch.bool, device=heads.device)
        for op, weight in zip(self.ops, self.weights):
            finite = finite & op.finite(heads)
            own = _of_heads(weight, self, heads, 0, self.length)
            if isinstance(own, Tensor):
                finite = finite & own.isfinite().flatten(1).all(1)
        return finite


class SumOfStates(StateSpace):
    """The same sum where every operator has diagonal transitions: one recurrence, with their states side by side."""

    def __init__(self, ops: Sequence[StateSpace], weights: Sequence[Weight]):
        first = ops[0]
        inputs = [x for op in ops for x in op.inputs] + [w for w in weights if isinstance(w, Tensor)]
        size = sum(op.state_size for op in ops)
        super().__init__(first.length, first.batch_shape, size, inputs, reads_before=first.reads_before)
        self.ops, self.weights = tuple(ops), tuple(weights)

    def tokens(self, heads: Tensor) -> Tokens:
        terms = [op.tokens(heads) for op in self.ops]
        reads = [
            term.read * _of_heads(weight, self, heads, 0, self.length) for term, weight in zip(terms, self.weights)
        ]
        write = torch.cat([term.write for term in terms], -1)
        transition = torch.cat([term.transition for term in terms], -1)
        return Tokens(torch.cat(reads, -1), write, transition, self.reads_before)

    def without_gradient(self, heads: Tensor) -> Tensor | None:
        found = [x for op in self.ops if (x := op.without_gradient(heads)) is not None]
        return torch.stack(found).any(0) if found else None

    def matrix_tokens(self, heads: Tensor) -> Tokens:
        size = self.state_size
        transition = torch.zeros(len(heads), self.length, size, size, dtype=torch.float64, device=self.device)
        reads, writes, first = [], [], 0
        for op, weight in zip(self.ops, self.weights):
            term, stop = op.matrix_tokens(heads), first + op.state_size
            reads.append(term.read * _of_heads(weight, self, heads, 0, self.length))
            writes.append(term.write)
            transition[..., first:stop, first:stop] = term.transition
            first = stop
        return Tokens(torch.cat(reads, -1), torch.cat(writes, -1), transition, self.reads_before)

    def own_diagonal(self, heads: Tensor) -> Tensor | None:
        owns = [op.own_diagonal(heads) for op in self.ops]
        if all(own is None for own in owns):
            return None
        entries = (
            (op.tokens(heads).diagonal_entries() if own is None else own.double())[..., None]
            * _of_heads(weight, self, heads, 0, self.length)
            for op, weight, own in zip(self.ops, self.weights, owns)
        )
        return functools.reduce(torch.add, entries)[..., 0]


def terms_of(op: Operator) -> list[Operator]:
    """The operators that a sum of states consists of, those of sums within it among them; or the one, if it is none."""
    return [term for each in op.ops for term in terms_of(each)] if isinstance(op, SumOfStates) else [op]


def weighted_sum(ops: Sequence[Operator], weights: Sequence[Weight]) -> SumOf | SumOfStates:
    """The sum as a recurrence where it is one with diagonal transitions, by rows elsewhere."""
    states = [op for op in ops if isinstance(op, StateSpace) and op.diagonal]
    if len(states) == len(ops) and len({op.reads_before for op in states}) == 1:
        return SumOfStates(states, weights)
    return SumOf(ops, weights)


def _of_heads(weight: Weight, op: Operator, heads: Tensor, start: int, stop: int) -> Weight:
    """The weight of rows `start..stop-1` of some heads: a number, or `[N, rows or 1, 1]` float64."""
    if not isinstance(weight, Tensor):
        return weight
    if weight.dim() <= len(op.batch_shape):
        return op.take(weight.expand(op.batch_shape), heads).double()[:, None, None]
    rows = weight.expand(*op.batch_shape, op.length)[..., start:stop]
    return op.take(rows, heads).double()[..., None]


def rows_of(op: Operator, heads: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start..stop-1` of any operator with one row and one column a token, columns `0..stop-1`."""
    if isinstance(op, Tiled):
        return op.rows(heads, start, stop)
    assert isinstance(op, StateSpace)
    rows = op.from_tokens(heads, lambda _, tokens: recurrence_rows(tokens, start, stop))
    own = op.own_diagonal(heads)
    if own is None:
        return rows
    return rows.tril(start - 1) + torch.nn.functional.pad(torch.diag_embed(own[:, start:stop]), (start, 0))


def sum_of(*ops: Operator, weights: Sequence[float | Tensor]) -> SumOf | SumOfStates:
    """The weighted sum `T = w_1 T_1 + w_2 T_2 + ...` of operators of one length and batch shape.

    Differential attention is `sum_of(attention(q1, k1), attention(q2, k2), weights=(1.0, -lam))`. Mixers that work side
    by side on the same values are `sum_of(gla(...), attention(...), weights=(a, b))`. Where all operators have a state,
    the state size is the sum of theirs. A sum of diagonal recurrences is one, and costs what one costs; answers about
    every other sum come from rows of T, at the cost of a dense operator. Certificates take these rows as exact,
    whatever rounding has done to the states that they were made from.

    Args:
        ops: operators of `ess_kernels.operators`, one row and one column a token.
        weights: one for each operator: a number, or a floating-point tensor. With as many axes as the batch shape, or
            fewer, it broadcasts to `[*batch]`, one weight a head; with one axis more it broadcasts to `[*batch, L]`,
            one weight a row. Gradients flow into them.

    Raises:
        TypeError, ValueError: no operators, unlike lengths, batch shapes or devices, or wrong weights.

    Source: differential attention is arXiv 2410.05258.
    """
    if not ops:
        raise ValueError("ops: expected at least one operator, got none")
    for number, op in enumerate(ops):
        if not isinstance(op, (StateSpace, Tiled)):
            raise TypeError(
                "ops: expected operators with one row and one column a token, each row of the batch one sequence, "
                f"got {type(op).__name__} at {number}"
            )
        shape, expected = (op.length, op.batch_shape), (ops[0].length, ops[0].batch_shape)
        if shape != expected:
            raise ValueError(
                f"ops: expected length {expected[0]} and batch shape {expected[1]} as the first one has, got length "
                f"{shape[0]} and batch shape {shape[1]} at {number}"
            )
        check_same_device(**{"ops[0]": ops[0].inputs[0], f"ops[{number}]": op.inputs[0]})
    if not isinstance(weights, (tuple, list)):
        raise TypeError(f"weights: expected a list or a tuple, one weight an operator, got {type(weights).__name__}")
    if len(weights) != len(ops):
        raise ValueError(f"weights: expected {len(ops)} of them, one for each operator, got {len(weights)}")
    checked = [_checked(f"weights[{number}]", weight, ops[0]) for number, weight in enumerate(weights)]
    return weighted_sum(ops, checked)


def _checked(name: str, weight: Any, op: Operator) -> Weight:
    if not isinstance(weight, Tensor):
        return finite_float(name, weight)
    check_floating(name, weight)
    check_same_device(**{"ops[0]": op.inputs[0], name: weight})
    full = op.batch_shape if weight.dim() <= len(op.batch_shape) else (*op.batch_shape, op.length)
    sizes = tuple(weight.shape)
    fits = len(sizes) <= len(full) and all(size in (1, n) for size, n in zip(reversed(sizes), reversed(full)))
    if not fits:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to [*batch] = {list(op.batch_shape)}, or with one axis more to "
            f"[*batch, L], got {list(sizes)}"
        )
    return weight
