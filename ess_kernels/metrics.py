"""The public calls: check the arguments, and put together the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from . import _ops, _smooth_ops
from ._checks import LARGEST_INTEGER, position_list, refuse_gradient, tolerance_lists
from ._readable import check_plain
from .engine.certainty import Certificate, EntropyCertificate
from .operators.dense import as_operator
from .operators.spread import Spread
from .operators.structure import Operator

Tolerance = float | Sequence[float] | Tensor
Positions = Sequence[int] | range | Tensor

MAX_SMALL = 256


def tolerance_ess(
    op: Operator | Tensor,
    atol: Tolerance | None = None,
    rtol: Tolerance | None = None,
    positions: Positions | None = None,
    backend: str = "auto",
    certificate: bool = False,
) -> Tensor | tuple[Tensor, Certificate]:
    """Tolerance-ESS: how many singular values of `H_i = T[i:, :i]` exceed the tolerance (paper, equation 2).

    The threshold is `max(atol, rtol * s_1(H_i))`, position by position, as in `torch.linalg.matrix_rank`; values equal
    to it do not count. A count is exact where no singular value lies within the certificate's width of the threshold.

    Args:
        op: an operator of `ess_kernels.operators`, or a dense `T` `[..., L, L]` of which only the strictly lower part
            is read.
        atol: absolute tolerance, in the units of `T`; the paper's. A float, or a 1-D list or tensor of `M` of them.
            Both `None`: `atol=1e-3`; if only one of the two is given, the other is 0.
        rtol: tolerance relative to the largest singular value of each `H_i`. Two lists must have the same length
            (pairs).
        positions: values in 1..L-1 (sequence, range or 1-D integer tensor, any order, repeats kept); `None`: all of
            them.
        backend: `"auto"`, `"reference"`, `"torch"`, `"native"` or `"triton"`.
        certificate: also return how far each count can be trusted.

    Returns:
        int64 `[*batch, P]`, with a leading axis `M` where a tolerance is a list; -1 at every position of a (batch,
        head) that holds NaN or infinity. With `certificate=True`, `(counts, Certificate(width, redone, unresolved))`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
        RuntimeError: a backend asked for by name that cannot take the call.
    """
    op = as_operator(op, spread=True)
    if isinstance(op, Spread):
        return op.answer(tolerance_ess, positions, atol=atol, rtol=rtol, backend=backend, certificate=certificate)
    absolute, relative, listed = tolerance_lists(atol, rtol)
    wanted = position_list(positions, op.length)
    found = _ops.tolerance_ess(op, absolute, relative, wanted, backend)
    width, counts, redone, unresolved = found if listed else (x[0] for x in found)
    return (counts, Certificate(width, redone, unresolved)) if certificate else counts


@overload
def entropy_ess(
    op: Operator | Tensor,
    positions: Positions | None = None,
    backend: str = "auto",
    certificate: Literal[False] = False,
) -> Tensor: ...
@overload
def entropy_ess(
    op: Operator | Tensor, positions: Positions | None = None, backend: str = "auto", *, certificate: Literal[True]
) -> tuple[Tensor, EntropyCertificate]: ...
def entropy_ess(
    op: Operator | Tensor, positions: Positions | None = None, backend: str = "auto", certificate: bool = False
) -> Tensor | tuple[Tensor, EntropyCertificate]:
    """Entropy-ESS: `exp(-sum p log p)`, `p = s / sum s`, over the singular values `s` of `H_i` (paper, equation 3).

    Natural logarithm, singular values not squared, no epsilon; 0 where `H_i` is zero, or so near it that rounding can
    have made all of it. Within 1e-4 of the definition at every position, typically 1e-6. Differentiable where the
    operator's inputs require grad (`torch` backend). Gradients are exact but for one case: many positions of an
    operator without a finite state take theirs from the quadrature that the value comes from. They are then within 1e-4
    (second derivatives 5e-3) where all singular values that matter are above 1e-2 of the largest one, and within some
    per cent where they reach down to 1e-6 of it.

    Args:
        op, positions, backend: as in `tolerance_ess`.
        certificate: also return how far each value can be trusted.

    Returns:
        float64 `[*batch, P]`; NaN at every position of a (batch, head) that holds NaN or infinity. With
        `certificate=True`, `(ess, EntropyCertificate(error, total, unresolved))`.

    Raises:
        TypeError, ValueError, RuntimeError: as in `tolerance_ess`. RuntimeError also where a second derivative is asked
            for that does not exist, and for third derivatives; the message says why.
    """
    op = as_operator(op, spread=True)
    if isinstance(op, Spread):
        return op.answer(entropy_ess, positions, backend=backend, certificate=certificate)
    ess, *fields = _ops.entropy_ess(op, position_list(positions, op.length), backend)
    return (ess, EntropyCertificate(*fields)) if certificate else ess


def soft_ess(
    op: Operator | Tensor, atol: Tolerance, positions: Positions | None = None, backend: str = "auto"
) -> Tensor:
    """The soft count `sum s^2 / (s^2 + atol^2)` over the singular values `s` of `H_i`: a smooth tolerance-ESS.

    A singular value equal to the tolerance counts one half, one ten times as large 0.99, one a tenth of it 0.01.
    Differentiable as `entropy_ess` is, and everywhere smooth. Within 1e-4 of the definition, typically 1e-7.

    Args:
        op, positions, backend: as in `tolerance_ess`.
        atol: positive and finite, in the units of `T`. A float, or a 1-D list or tensor of `M` of them. No gradient
            flows to it: a tensor that requires grad is refused, unless gradients are switched off.

    Returns:
        float64 `[*batch, P]`, with a leading axis `M` where the tolerance is a list; NaN at every position of a
        (batch, head) that holds NaN or infinity, and where numbers may matter that are 1e300 times smaller than the
        head's largest one.

    Raises:
        TypeError, ValueError, RuntimeError: as in `tolerance_ess`. RuntimeError also where a second derivative is asked
            for that does not exist, and for third derivatives; the message says why.

    Source: the effective number of degrees of freedom of ridge regression with penalty `atol^2`.
    """
    op = as_operator(op, spread=True)
    if isinstance(op, Spread):
        return op.answer(soft_ess, positions, atol=atol, backend=backend)
    refuse_gradient("atol", atol)
    absolute, _, listed = tolerance_lists(atol, 0.0)
    for number in absolute:
        if not 0 < number < math.inf:
            raise ValueError(f"atol: expected positive finite values, got {number}")
    found = _smooth_ops.soft_ess(op, absolute, position_list(positions, op.length), backend)
    return found if listed else found[0]


def nuclear_norm(op: Operator | Tensor, positions: Positions | None = None, backend: str = "auto") -> Tensor:
    """The nuclear norm of `H_i`, the sum of its singular values: what compressors of state-space models regularise.

    Differentiable as `entropy_ess` is; singular values below 1e-10 of the largest one count as zero in the gradient.
    Within 1e-4 of the definition, typically 1e-6.

    Args:
        op, positions, backend: as in `tolerance_ess`.

    Returns:
        float64 `[*batch, P]`, in the units of `T`; NaN at every position of a (batch, head) that holds NaN or infinity,
        and where all of `H_i` may be 1e300 times smaller than the head's largest number.

    Raises:
        TypeError, ValueError, RuntimeError: as in `soft_ess`.
    """
    op = as_operator(op, spread=True)
    if isinstance(op, Spread):
        return op.answer(nuclear_norm, positions, backend=backend)
    return _smooth_ops.nuclear_norm(op, position_list(positions, op.length), backend)


def singular_values(op: Operator | Tensor, positions: Positions, k: int | None = None, backend: str = "auto") -> Tensor:
    """Singular values of `H_i` at chosen positions, exact to a few ulp of the largest.

    A recurrence is compressed to its state size first, `O(n^3)` a position; any other operator costs a dense
    decomposition.

    Args:
        op, positions, backend: as in `tolerance_ess`.
        k: how many, the largest ones; `None`: as many as the largest `min(state_size, i, L - i)` of the positions.

    Returns:
        float64 `[*batch, P, k]`, descending, zero padded; NaN where a (batch, head) holds NaN or infinity, and where
        all of `H_i` may be 1e300 times smaller than the head's largest number.

    Raises:
        TypeError, ValueError, RuntimeError: as in `tolerance_ess`; `k` must be a non-negative integer.
    """
    op = as_operator(op, spread=True)
    if isinstance(op, Spread):
        return op.answer(singular_values, positions, k=k, backend=backend)
    wanted = position_list(positions, op.length)
    if k is not None and (isinstance(k, bool) or not isinstance(k, int)):
        raise TypeError(f"k: expected an integer or None, got {type(k).__name__}")
    if k is not None and not 0 <= k <= LARGEST_INTEGER:
        raise ValueError(f"k: expected a non-negative integer of 64 bits, got {k}")
    return _ops.singular_values(op, wanted, k, backend)


class SmallSpectra(NamedTuple):
    """What `small_spectra` found.

    Attributes:
        values: singular values `[..., min(m, n)]`, descending, in the input's dtype.
        counts: int64, how many exceed `atol` (leading axis `M` where it is a list), or None.
        entropy: `exp(-sum p log p)` `[...]`, or None.
    """

    values: Tensor
    counts: Tensor | None
    entropy: Tensor | None


def small_spectra(
    A: Tensor,
    *,
    right: Tensor | None = None,
    atol: Tolerance | None = None,
    entropy: bool = False,
    backend: str = "auto",
) -> SmallSpectra:
    """Singular values of many small matrices, and what is counted from them.

    Args:
        A: `[..., m, n]`, float32 or float64 (computed in its own precision), `min(m, n) <= 256`.
        right: `[..., k, n]`, same dtype and leading dimensions; the matrices are then `A right^T`, never squared.
        atol: absolute tolerance or a list of them: also count the values above it.
        entropy: also return the entropy-ESS of every matrix.
        backend: as in `tolerance_ess`.

    Returns:
        `SmallSpectra(values, counts, entropy)`. A matrix that holds NaN or infinity gives NaN and -1; the others are
        not touched.

    Raises:
        TypeError, ValueError, RuntimeError: as in `tolerance_ess`.
    """
    for name, x in (("A", A), ("right", right)):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected float32 or float64, got {x.dtype}")
        check_plain(name, x)
        if x.dim() < 2:
            raise ValueError(f"{name}: expected at least two dimensions [..., m, n], got shape {tuple(x.shape)}")
        if min(x.shape[-2:]) > MAX_SMALL:
            raise ValueError(f"{name}: expected min(m, n) <= {MAX_SMALL}, got shape {tuple(x.shape)}")
    if right is not None and (
        right.dtype != A.dtype or right.shape[:-2] != A.shape[:-2] or right.shape[-1] != A.shape[-1]
    ):
        raise ValueError(
            f"right: expected shape {(*A.shape[:-2], 'k', A.shape[-1])} and dtype {A.dtype} to go with A, "
            f"got {tuple(right.shape)} and {right.dtype}"
        )
    absolute, listed = None, False
    if atol is not None:
        absolute, _, listed = tolerance_lists(atol, None)
    values, ess, counts = _ops.small_spectra(A, right, absolute, entropy, backend)
    if atol is None:
        return SmallSpectra(values, None, ess if entropy else None)
    return SmallSpectra(values, counts if listed else counts[0], ess if entropy else None)
