"""Counts from a few random vectors: lower bounds everywhere, exact where they can be certified."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import backends
from ._checks import check_positions, check_tolerances, integer
from ._progress import progress
from ._readable import check_readable
from .by_sequence import answer_by_sequence
from .engine.sketch import PROBES, certify, draw, sketch
from .engine.state_space import BLOCK_WORKSPACE, bytes_of_lost, lost_in
from .engine.thin_products import BLOCK, ThinProducts, bytes_per_head, bytes_to_make
from .memory import Need, granted, out_of_memory_as_memory_error
from .metrics import Positions, Tolerance
from .operators.dense import as_operator
from .operators.separate import SeparateSequences
from .operators.structure import Operator, StateSpace, Tiled
from .processes import on_one_thread_if_forked

FIELDS = (torch.int64, torch.bool, torch.float64)


class RandomizedESS(NamedTuple):
    """What `randomized_ess` found; tensors of the counts' shape.

    Attributes:
        count: int64, singular values surely above the tolerance: never more than there are. -1 where the operator holds
            NaN or infinity, or its products overflow.
        certified: bool, whether `count` is the tolerance-ESS.
        error: float64, bound on the 2-norm of what the sketch does not see of `H_i`, rounding errors included; NaN
            where the count is -1. It fails with probability 1e-10 at one position of one head.
    """

    count: Tensor  # type: ignore[assignment]  # tuples have a method of that name
    certified: Tensor
    error: Tensor


def randomized_ess(
    op: Operator | Tensor,
    positions: Positions | None,
    *,
    atol: Tolerance | None = None,
    rtol: Tolerance | None = None,
    rank: int = 64,
    power_iterations: int = 2,
    seed: int = 0,
    backend: str = "auto",
) -> RandomizedESS:
    """Tolerance-ESS at chosen positions by a randomized singular value decomposition of rank `rank`.

    `H_i` is only multiplied with thin matrices, `2 power_iterations + 3` times: for long sequences whose `H_i` are
    numerically of low rank. `T` is rebuilt in tiles or bands for every product, but for heads whose `T` has room in
    half of the memory budget: these form it once. `Q` `[L - i, rank]` is an orthonormal basis for the range of `H_i`,
    found from a Gaussian matrix; then `H_i = Q B + E` with `B = Q^T H_i` and `E = (I - Q Q^T) H_i`, and for the j-th
    singular values

        s_j(B) <= s_j(H_i) <= sqrt(s_j(B)^2 + error^2),    error >= |E|_2,

    with `s_j(B) = 0` for j > rank. The count is that of the values of B above the tolerance: a lower bound. It is
    certified where no interval reaches across the tolerance, which then has as many values of `H_i` above it as of B;
    in particular `error` itself must not exceed the tolerance, unless `rank >= min(i, L - i)`, where there are no more
    values than those of B. For `rtol` the tolerance is an interval too, because `s_1` is. Intervals are widened by
    rounding errors, about 1e-13 of `s_1`.

    `error` is `alpha sqrt(2 / pi) max |E w|` over 16 Gaussian probes w, with alpha such that it is below `|E|_2` with
    probability 1e-10 at one position of one head (Halko, Martinsson, Tropp 2011, lemma 4.1).

    Args:
        op, positions, atol, rtol: as in `tolerance_ess`.
        rank: columns of the Gaussian matrix, at least 1: all that can be counted. Take some more than the count.
        power_iterations: at least 0. Each costs two products and makes Q fit the largest values better.
        seed: of the Gaussian numbers, which are the same on every device, and for every head and position.
        backend: `"auto"`, `"torch"`, or `"triton"` for attention, which `"auto"` takes for CUDA tensors.

    Returns:
        `RandomizedESS(count, certified, error)`, each `[*batch, P]`, with a leading axis `M` where a tolerance is a
        list. No gradient.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        RuntimeError: a backend asked for by name that cannot take the call.
    """
    op = as_operator(op)
    check_readable("op", op.inputs)
    absolute, relative, listed = check_tolerances(atol, rtol)
    wanted = check_positions(positions, op.length)
    distinct, back = wanted.unique(return_inverse=True)
    rank = integer("rank", rank, minimum=1)
    power_iterations = integer("power_iterations", power_iterations, minimum=0)
    seed = integer("seed", seed, minimum=0)
    if isinstance(op, SeparateSequences):
        backends.choose(backend, "randomized_ess", op.empty_sequence())

        def of_one(one: Operator, its: list[int]) -> RandomizedESS:
            return randomized_ess(
                one,
                its,
                atol=absolute,
                rtol=relative,
                rank=rank,
                power_iterations=power_iterations,
                seed=seed,
                backend=backend,
            )

        count, certified, error = answer_by_sequence(op, wanted.tolist(), of_one, FIELDS, several=len(absolute))
        # the zeros at positions of no sequence are right
        certified |= ~op.within(wanted.to(op.device))[1]
        return RandomizedESS(*(x if listed else x[0] for x in (count, certified, error)))
    products = backends.choose(backend, "randomized_ess", op.inner).thin_products
    absolute, relative, distinct, back = (x.to(op.device) for x in (absolute, relative, distinct, back))
    cap, inner = op.rank_cap(distinct), op.inner_positions(distinct)
    found = answer(op.inner, inner, cap, absolute, relative, products, rank, power_iterations, seed)

    def shaped(x: Tensor) -> Tensor:
        x = x[..., back].movedim(1, 0).reshape(len(absolute), *op.batch_shape, len(back))
        return x if listed else x[0]

    return RandomizedESS(*map(shaped, found))


@torch.no_grad()
@out_of_memory_as_memory_error
@on_one_thread_if_forked
def answer(
    op: Operator,
    positions: Tensor,
    cap: Tensor,
    atol: Tensor,
    rtol: Tensor,
    products: Callable[[Operator, Tensor, int], ThinProducts],
    rank: int,
    power_iterations: int,
    seed: int,
) -> RandomizedESS:
    """The answer at distinct positions `[P]`, ascending, for tolerances `[M]`: fields `[N, M, P]`.

    `cap` `[P]` is the largest rank that each `H_i` can have. `products` makes the thin products of some heads within a
    number of bytes.
    """
    shape = (op.num_heads, len(atol), len(positions))
    count = torch.full(shape, -1, dtype=torch.int64, device=op.device)
    certified = torch.zeros(shape, dtype=torch.bool, device=op.device)
    error = torch.full(shape, torch.nan, dtype=torch.float64, device=op.device)
    if not count.numel():
        return RandomizedESS(count, certified, error)
    # no H_i has more than L // 2 singular values, so a wider sketch sees no more
    rank = min(rank, op.length // 2)
    test, probes = draw(op.length, rank, seed, op.device)
    results = 17 * count.numel()
    budget = granted(lambda budget: _need(op, len(positions), rank, results, budget), op.device)
    heads_at_once, positions_at_once, rest = _slices(op, len(positions), rank, budget)
    for heads in progress(op.all_heads().split(heads_at_once), "heads"):
        finite = heads[op.finite(heads)]
        if not len(finite):
            continue
        source = products(op, finite, rest)
        lost = lost_in(op, finite)
        for piece in torch.arange(len(positions), device=op.device).split(positions_at_once):
            seen = sketch(source, positions[piece], len(finite), test, probes, power_iterations, _svdvals)
            seen = seen.widened(lost[:, positions[piece]])
            index = (finite[:, None, None], torch.arange(len(atol), device=op.device)[:, None], piece)
            count[index], certified[index] = certify(seen, cap[piece], atol, rtol)
            error[index] = seen.error[:, None].expand(-1, len(atol), -1)
    return RandomizedESS(count, certified, error)


def _svdvals(A: Tensor) -> Tensor:
    return backends.choose("auto", "small_spectra", A).small_spectra(A, None)


def _thin_bytes(op: Operator, rank: int) -> int:
    """What the thin matrices of one position of one head take."""
    thin = 8 * op.length * (8 * rank + 3 * PROBES)
    return thin + 16 * op.length // BLOCK * op.state_size * rank if isinstance(op, StateSpace) else thin


def _slices(op: Operator, positions: int, rank: int, budget: int) -> tuple[int, int, int]:
    """How many heads and positions are worked on at a time, and the bytes left beside their thin matrices."""
    thin, rest = _thin_bytes(op, rank), budget // 2
    at_once = min(positions, max(1, rest // thin))
    heads = min(rest // (thin * at_once), budget // max(1, bytes_to_make(op)))
    return max(1, min(op.num_heads, heads)), at_once, rest


def _need(op: Operator, positions: int, rank: int, results: int, budget: int) -> Need:
    heads, at_once, rest = _slices(op, positions, rank, budget)
    # an operator without a state makes its rows in bands, of the whole of it at most, in five copies at most
    bands = min(rest, 40 * heads * op.length**2) * (1 + op.copies) // 5 if isinstance(op, Tiled) else 0

    def bytes_of(heads: int, at_once: int) -> int:
        """What products are made of, or what they hold beside one of the two: bounds of lost digits, thin matrices."""
        lost = min(heads * bytes_of_lost(op), max(bytes_of_lost(op), BLOCK_WORKSPACE))
        work = max(lost, heads * at_once * _thin_bytes(op, rank))
        return max(heads * bytes_to_make(op), heads * bytes_per_head(op) + work)

    return Need(
        f"one position of a head of {op.length} tokens",
        bytes_of(1, 1) + results,
        bytes_of(heads, at_once) + bands + results,
        "a smaller rank, or shorter sequences",
    )
