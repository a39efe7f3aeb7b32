"""The public call: which heads are taken together, and what is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_bool, finite_float, integer
from .._readable import check_readable
from ..engine.parallel import over_items
from ..memory import Need, make_sure, out_of_memory_as_memory_error
from ..operators.blocked import Blocked
from ..operators.dense import as_operator
from ..operators.separate import SeparateSequences
from ..operators.structure import Operator, StateSpace
from ..processes import on_one_thread_if_forked
from .heads import Wish, of_matrix, of_state_space
from .realisation import Padded, Realisation, padded, put_together
from .reduced import Reduced

# States of at least so many numbers are decomposed one head at a time, as large as that head's state has become. Of
# smaller ones decompositions are so quick that several heads share the cost of calling them: as many as have so many
# numbers in their decomposed matrices.
LARGE_STATE = 32
NUMBERS_AT_ONCE = 4096


def reduce(
    op: Operator | Tensor, *, atol: float | None = None, rank: int | None = None, balanced: bool = False
) -> Reduced:
    """A recurrence with the smallest states that reproduce an operator, or reproduce it within a tolerance.

    It is `s_{i+1} = A_i s_i + B_i u_i`, `y_i = C_i s_i + D_i u_i`, with a state size of its own at every position. With
    neither `atol` nor `rank` it is minimal: it has `rank(H_i)` states at position i, and `T` is reproduced up to
    rounding. With `atol` it has at most as many as `tolerance_ess(op, atol=atol)` says, but for singular values that
    equal the tolerance as far as rounding can tell, and

        |T - T_r|_F^2 = sum_i e_i^2 <= sum_i sum_{k > n_i} s_k(H_i)^2,

    with `n_i` the state sizes, and `e_i` the norm of what was cut at position i, which is known: `error_bound` is the
    Frobenius norm itself, not an estimate. No larger is the spectral norm of the error. Control theory bounds that one
    by twice the sum of the discarded singular values at the worst position; this is not promised here, because its
    proofs put conditions on how discarded values change over time.

    What the answer is not: `A_i` and `B_i` depend on tokens after i, because what is kept at i is what later tokens ask
    for. It says how small the states could be, and is no cache for decoding.

    A recurrence of n states takes `O(L n^3)` and never forms `T`; any other operator forms it, head by head, and takes
    `O(L^2 r + L r^3)` for states of r numbers. The answer has `L n^2` numbers a head, with n the largest state size.
    Decompositions are made on the CPU wherever the operator lies, and no gradient flows through them.

    Args:
        op: an operator of `ess_kernels.operators`, or a dense `T` `[..., L, L]`. Sequences of packed and padded batches
            are reduced one by one: the state is empty where one starts, and in padding.
        atol: singular values of `H_i` up to this one are cut, in the units of `T`. None: 0. Values below `L eps` times
            the largest, which `torch.linalg.matrix_rank` takes for rounding errors, are cut whatever it is.
        rank: no state has more numbers. None: there is no such limit.
        balanced: cut by balanced truncation (square-root method) instead of the sweep. At one tolerance its errors are
            often smaller, in the spectral norm by up to 40 %. Its states are as many as the ESS. It divides by the
            singular values that it keeps, and `error_bound` is measured afterwards: the formula above is not for it.
            Of an operator without a state a minimal recurrence is made first.

    Returns:
        `Reduced`. A head that holds NaN or infinity, or whose products overflow, has NaN everywhere and state sizes of
        -1; the others are not touched. In packed batches that is so for the sequence, and for the head's error.

    Raises:
        TypeError, ValueError: an argument's type or value is wrong; the message names it.
        NotImplementedError: a token has several rows or columns of `T` (`op.block`).

    Source: theorems 3.1 and 3.2 of the paper (arXiv 2504.19561); `reduction/sweep.py` has the proof of the error.
    """
    op = as_operator(op)
    check_readable("op", op.inputs)
    atol = 0.0 if atol is None else finite_float("atol", atol)
    if atol < 0:
        raise ValueError(f"atol: expected a number >= 0 or None, got {atol}")
    rank = None if rank is None else integer("rank", rank, minimum=0)
    check_bool("balanced", balanced)
    if op.block != (1, 1):
        instead = "; reduce op.inner, in which several tokens stand for one" if isinstance(op.inner, StateSpace) else ""
        raise NotImplementedError(
            f"op: expected one row and one column of T a token, got {op.block[0]} and {op.block[1]}: a reduced "
            f"recurrence has one input and one output a token{instead}"
        )
    return _result(op, _reduced(op, Wish(atol, rank, balanced)))


@torch.no_grad()
@out_of_memory_as_memory_error
@on_one_thread_if_forked
def _reduced(op: Operator, wish: Wish) -> Padded:
    if not isinstance(op, SeparateSequences):
        return _of_heads(op, wish)
    pieces = []
    heads = torch.arange(op.heads_in_row)
    for group in op.groups(op.sequences.every()):
        reduced = _of_heads(group.op, wish)
        for number, (row, start, stop) in enumerate(group.sequences):
            first = 0 if group.alike else number * group.heads
            mine = reduced.heads(first, first + group.heads)
            pieces.append((mine, row * op.heads_in_row + heads, torch.arange(start, stop)[None]))
    return put_together(pieces, op.num_heads, op.length)


def _of_heads(op: Operator, wish: Wish) -> Padded:
    """All heads of an operator with one sequence a row, several at a time where states are small."""
    if isinstance(op, Blocked) and op.sub_tokens == 1:
        op = op.inner
    at_once = 1
    if isinstance(op, StateSpace) and op.state_size < LARGE_STATE:
        at_once = NUMBERS_AT_ONCE // max(op.state_size, 4) ** 2
    groups = op.all_heads().split(at_once) if op.num_heads else ()
    if not isinstance(op, StateSpace):
        size = 4 * 8 * op.length**2
        make_sure(Need(f"one head of {op.length} tokens", size, size, "shorter sequences"), torch.device("cpu"))
    found: list[tuple[Realisation, Tensor]] = [None] * len(groups)  # type: ignore[list-item]  # each is filled below

    @torch.no_grad()  # each thread has this setting for itself
    def work(number: int) -> None:
        heads = groups[number]
        if isinstance(op, StateSpace):
            found[number] = of_state_space(op, heads, wish, fixed_width=at_once > 1)
        else:
            found[number] = of_matrix(op, heads, wish)

    over_items(work, list(range(len(groups))), torch.device("cpu"))
    _make_sure_of_result(op, [part for part, _ in found])
    none = torch.zeros(0, op.length, dtype=torch.float64)
    result = padded([part for part, _ in found], torch.cat([none, *(diagonal for _, diagonal in found)]))
    bad = ~op.finite(op.all_heads()).cpu() | ~result.C.isfinite().flatten(1).all(1)
    if found:
        bad |= torch.cat([part.overflowed for part, _ in found])
    result.mark(bad)
    return result


def _make_sure_of_result(op: Operator, found: list[Realisation]) -> None:
    """Heads have one room for their states, the largest that any of them needs, which is known once all are reduced.

    Raises:
        MemoryError: there is none for that.
    """
    most = max((int(part.sizes.max()) for part in found if part.sizes.numel()), default=0)
    size = 8 * op.num_heads * op.length * (most**2 + 2 * most)
    what = f"the result, {op.num_heads} recurrences of {op.length} tokens with {most} states,"
    make_sure(Need(what, size, size, "a larger atol, a rank, or fewer heads"), torch.device("cpu"))


def _result(op: Operator, found: Padded) -> Reduced:
    """With the operator's batch shape, on its device."""

    def shaped(x: Tensor) -> Tensor:
        return x.to(op.device).reshape((*op.batch_shape, *x.shape[1:]))

    return Reduced(
        A=shaped(found.A),
        B=shaped(found.B),
        C=shaped(found.C),
        D=shaped(found.D),
        state_sizes=shaped(found.sizes),
        error_bound=shaped(found.error),
    )
