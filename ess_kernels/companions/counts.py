"""How many directions of the state the past can reach, and how many the future can see."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import tolerance_lists
from ..metrics import Positions, Tolerance
from ..operators.structure import Operator
from .spectra import state_spectra
from .states import Which


def causal_ess(op: Operator | Tensor, rtol: Tolerance = 1e-6, positions: Positions | None = None) -> Tensor:
    """Causal ESS: the rank of `Gamma_i`, how many directions of the state the inputs before position i can reach.

    It depends on writes and gates (keys and decays), never on reads. `ESS <= causal_ess`, where both count all that is
    not zero: a bound, and no equality, because the future need not read what the past has written.

    Args:
        op: an operator with a finite state.
        rtol: relative to the largest singular value of each `Gamma_i`; values equal to it do not count. A number, or a
            1-D list or tensor of M of them. There is no absolute tolerance, because `Gamma_i` depends on the basis of
            the state. Below some 1e-13 rounding errors count as well.
        positions: as in `tolerance_ess`.

    Returns:
        int64 `[*batch, P]`, with a leading axis M where `rtol` is a list; -1 where `state_spectra` has NaN.

    Raises:
        TypeError, ValueError: as in `state_spectra`.

    Source: causal ESS in the paper (arXiv 2504.19561), the rank of the causal factor of `H_i`.
    """
    return _count(op, "causal", rtol, positions)


def observable_ess(op: Operator | Tensor, rtol: Tolerance = 1e-6, positions: Positions | None = None) -> Tensor:
    """Observable ESS: the rank of `O_i`, how many directions of the state the outputs from position i on can see.

    It depends on reads and gates (queries and decays), never on writes. `ESS <= observable_ess`, as for `causal_ess`,
    which has the arguments, the result and the errors.
    """
    return _count(op, "observable", rtol, positions)


def _count(op: Operator | Tensor, which: Which, rtol: Tolerance, positions: Positions | None) -> Tensor:
    if rtol is None:
        raise TypeError("rtol: expected a number or a 1-D list of numbers, got None")
    _, relative, listed = tolerance_lists(0.0, rtol)
    values = state_spectra(op, which, positions)
    if not values.shape[-1]:
        counts = torch.zeros(len(relative), *values.shape[:-1], dtype=torch.int64, device=values.device)
    else:
        tolerance = torch.tensor(relative, dtype=torch.float64, device=values.device)
        above = values > tolerance.view(-1, *[1] * values.dim()) * values[..., :1]
        counts = above.sum(-1).masked_fill(values.isnan().any(-1), -1)
    return counts if listed else counts[0]
