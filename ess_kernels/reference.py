"""The definition itself, slow and obvious: a dense float64 `T` and one SVD per position, the oracle of every backend.

`H_i = T[i:, :i]` for a position `i` in `1..L-1`, or `T[p i:, :m i]` where a token has p rows and m columns;
`s_1 >= s_2 >= ...` are its singular values (arXiv 2504.19561), of which no more than the state size are not zero where
there is a state.
Below that stands the paper's printed program, which differs in details that the docstrings name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ._checks import check_positions, check_tolerances
from ._readable import check_plain, check_readable, refuse_tangents
from .by_sequence import answer_by_sequence
from .operators.dense import as_operator
from .operators.separate import SeparateSequences
from .operators.structure import Operator


def _spectra(op: Operator, positions: Any) -> tuple[Operator, list[Tensor], Tensor]:
    """The operator, `s [N, S]` at each position, and which heads are finite (a bad one counts as zero here).

    `S` is the smaller side of `H_i`, `min(i, L-i)` for most operators, or the state size where that is smaller.
    """
    check_readable("op_or_T", op.inputs)
    wanted = check_positions(positions, op.length).tolist()
    heads = op.all_heads()
    T = op.strictly_lower(op.dense_heads(heads))
    finite = op.finite(heads) & T.isfinite().flatten(1).all(1)
    # an SVD of a NaN is an error
    T = torch.where(finite[:, None, None], T, 0)
    # Values beyond the state size are rounding errors of T, however large, and are cut off. Without a state one value
    # is kept, which is zero.
    most = None if op.state_size is None else max(1, op.state_size)
    return op, [torch.linalg.svdvals(op.submatrix(T, i))[:, :most] for i in wanted], finite


def _by_sequence(
    op: SeparateSequences,
    positions: Any,
    answer: Callable[[Operator, list[int]], list[Tensor]],
    dtype: torch.dtype,
    several: int | None = None,
    values: int | None = None,
) -> Tensor:
    """`answer_by_sequence` for one tensor."""
    check_readable("op_or_T", op.inputs)
    wanted = check_positions(positions, op.length).tolist()
    return answer_by_sequence(op, wanted, answer, [dtype], several=several, values=values)[0]


def _assemble(op: Operator, columns: Iterable[Tensor], finite: Tensor, bad_value: float, dtype: torch.dtype) -> Tensor:
    """`[N]` for each position to `[*batch, P]`, with all positions of a bad head marked."""
    columns = list(columns)
    values = torch.stack(columns, -1) if columns else finite.new_zeros(len(finite), 0, dtype=dtype)
    return torch.where(finite[:, None], values, bad_value).to(dtype).reshape(*op.batch_shape, len(columns))


def reference_singular_values(op_or_T: Operator | Tensor, positions: Any = None) -> Tensor:
    """All singular values of `H_i`, descending.

    Args:
        op_or_T: an operator, or a dense `T [..., L, L]`.
        positions: integers in `1..L-1`, in any order; `None` means all of them.

    Returns:
        float64 `[*batch, P, S]` with `S` the largest `min(m i, p (L-i))`, padded with zeros. NaN for every position of
        a head that reads a non-finite number.

    Raises:
        TypeError, ValueError: a wrong position, or neither an operator nor a square floating-point tensor.
    """
    op = as_operator(op_or_T)
    wanted = check_positions(positions, op.length).tolist()
    rows, columns = op.block
    width = max((min(columns * i, rows * (op.length - i)) for i in wanted), default=0)
    if isinstance(op, SeparateSequences):

        def of_one(one: Operator, its: list[int]) -> list[Tensor]:
            values = reference_singular_values(one, its)
            return [torch.nn.functional.pad(values, (0, width - values.shape[-1]))]

        return _by_sequence(op, wanted, of_one, torch.float64, values=width)
    op, spectra, finite = _spectra(op, positions)
    padded = [torch.nn.functional.pad(s, (0, width - s.shape[-1])) for s in spectra]
    values = torch.stack(padded, 1) if padded else torch.zeros(len(finite), 0, 0, dtype=torch.float64, device=op.device)
    values = torch.where(finite[:, None, None], values, torch.nan)
    return values.reshape(*op.batch_shape, len(spectra), width)


def reference_tolerance_ess(
    op_or_T: Operator | Tensor, atol: Any = None, rtol: Any = None, positions: Any = None
) -> Tensor:
    """Tolerance-ESS, the number of singular values of `H_i` above `max(atol, rtol * s_1)` (equation 2 of the paper).

    Args:
        op_or_T: an operator, or a dense `T [..., L, L]`.
        atol, rtol: numbers >= 0, or lists of them. Both `None` means `atol = 1e-3`; else `None` means 0.
        positions: integers in `1..L-1`, in any order; `None` means all of them.

    Returns:
        int64 `[*batch, P]`, or `[M, *batch, P]` for lists. -1 for every position of a head that reads a non-finite
        number.

    Raises:
        TypeError, ValueError: a wrong tolerance or position, or neither an operator nor a square floating-point tensor.
    """
    absolute, relative, listed = check_tolerances(atol, rtol)
    op = as_operator(op_or_T)
    if isinstance(op, SeparateSequences):
        several = len(absolute) if listed else None
        pairs = (absolute, relative) if listed else (absolute[0], relative[0])
        return _by_sequence(
            op, positions, lambda one, its: [reference_tolerance_ess(one, *pairs, its)], torch.int64, several=several
        )
    op, spectra, finite = _spectra(op, positions)
    counts = [
        _assemble(op, [_count(s, *pair) for s in spectra], finite, -1, torch.int64)
        for pair in zip(absolute.tolist(), relative.tolist())
    ]
    if not listed:
        return counts[0]
    return torch.stack(counts) if counts else finite.new_zeros(0, *op.batch_shape, len(spectra), dtype=torch.int64)


def _count(s: Tensor, atol: float, rtol: float) -> Tensor:
    threshold = (rtol * s.amax(-1, keepdim=True)).clamp(min=atol)
    return (s > threshold).sum(-1)


def reference_entropy_ess(op_or_T: Operator | Tensor, positions: Any = None) -> Tensor:
    """Entropy-ESS `exp(-sum p log p)`, `p = s / sum s`, 0 for a zero `H_i` (equation 3 of the paper).

    Args:
        op_or_T: an operator, or a dense `T [..., L, L]`.
        positions: integers in `1..L-1`, in any order; `None` means all of them.

    Returns:
        float64 `[*batch, P]`. NaN for every position of a head that reads a non-finite number.

    Raises:
        TypeError, ValueError: a wrong position, or neither an operator nor a square floating-point tensor.
    """
    op = as_operator(op_or_T)
    if isinstance(op, SeparateSequences):
        return _by_sequence(op, positions, lambda one, its: [reference_entropy_ess(one, its)], torch.float64)
    op, spectra, finite = _spectra(op, positions)
    return _assemble(op, [_perplexity(s) for s in spectra], finite, torch.nan, torch.float64)


def _perplexity(s: Tensor) -> Tensor:
    total = s.sum(-1, keepdim=True)
    p = s / torch.where(total > 0, total, 1)
    return torch.where(total[:, 0] > 0, torch.special.entr(p).sum(-1).exp(), 0)


def paper_submatrix(T: Tensor, i: int, d: int = 1) -> Tensor:
    """`H_i` as the paper's program cuts it from `T [..., d L, d L]`: rows from block `i` on, columns before it."""
    return T[..., d * i :, : d * i]


@torch.no_grad()
def paper_tolerance_ess(T: Tensor, tol: float = 1e-4, d: int = 1) -> Tensor:
    """Tolerance-ESS as the paper's program computes it: counts `s >= tol`, not `>`, in `T`'s own precision.

    Args:
        T: `[..., d L, d L]`, float32 or float64. What a metric would ignore or mark as bad is not looked for.
        tol: absolute.
        d: block size.

    Returns:
        int64 `[..., L-1]`, for `i = 1..L-1`.

    Source: the program printed in the paper (arXiv 2504.19561).
    """
    counts = [(s >= tol).sum(-1) for s in _paper_spectra(T, d)]
    return torch.stack(counts, -1) if counts else T.new_zeros(*T.shape[:-2], 0, dtype=torch.int64)


@torch.no_grad()
def paper_entropy_ess(T: Tensor, clip: float = 1e-12, d: int = 1) -> Tensor:
    """Entropy-ESS as the paper's program computes it: `p` clipped, not renormalised, NaN for a zero `H_i`.

    Args:
        T: `[..., d L, d L]`, float32 or float64. What a metric would ignore or mark as bad is not looked for.
        clip: the least `p`.
        d: block size.

    Returns:
        `[..., L-1]` in `T`'s dtype, for `i = 1..L-1`.

    Source: the program printed in the paper (arXiv 2504.19561).
    """
    values = []
    for s in _paper_spectra(T, d):
        p = (s / s.sum(-1, keepdim=True)).clamp(min=clip)
        values.append(torch.exp(-(p * p.log()).sum(-1)))
    return torch.stack(values, -1) if values else T.new_zeros(*T.shape[:-2], 0)


def _paper_spectra(T: Tensor, d: int) -> Iterable[Tensor]:
    check_plain("T", T)
    check_readable("T", [T])
    refuse_tangents("T", [T])
    for i in range(1, T.shape[-1] // d):
        yield torch.linalg.svdvals(paper_submatrix(T, i, d))
