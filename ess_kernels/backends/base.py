"""The seam between the metrics and whatever computes them: the same few entry points for every backend."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..engine.certainty import Counts, Entropies
from ..engine.thin_products import ThinProducts
from ..operators.structure import Operator

Task = Literal[
    "tolerance_ess",
    "entropy_ess",
    "soft_ess",
    "nuclear_norm",
    "singular_values",
    "small_spectra",
    "randomized_ess",
]
# what is differentiable
SMOOTH = ("entropy_ess", "soft_ess", "nuclear_norm")

NO_PRODUCTS = "it has no products with thin matrices"
NO_BACKWARD = "it has no backward; use backend='torch'"


def wants_gradient(task: Task, subject: Operator | Tensor) -> bool:
    """Whether the answer has to be differentiable."""
    return task in SMOOTH and subject.requires_grad and torch.is_grad_enabled()


class Backend:
    """One way to compute the metrics; it implements the tasks that it does not refuse.

    Heads are numbered along the operator's flattened batch shape, `N` of them. Positions come distinct, sorted and
    in range, int64 on the operator's device. Heads with bad data get -1 in counts and NaN elsewhere, at every position.
    """

    name: ClassVar[str]
    # whether `small_spectra` takes matrices that hold NaN or infinity, and answers NaN for them
    takes_bad_matrices: ClassVar[bool] = False

    def lacks(self, task: Task, subject: Operator | Tensor) -> str | None:
        """Why this backend cannot do this task on this subject on any machine, or None: asked before all else."""
        # randomized_ess needs `thin_products`, which most backends do not have
        return NO_PRODUCTS if task == "randomized_ess" else None

    def unavailable(self) -> str | None:
        """Why this backend cannot run here at all, or None."""
        return None

    def refuses(self, task: Task, subject: Operator | Tensor) -> str | None:
        """Why this backend does not take this task on this subject, or None."""
        return None

    def about(self) -> str:
        """What it is, in a few words, where it is available."""
        raise NotImplementedError

    def tolerance_ess(self, op: Operator, positions: Tensor, atol: Tensor, rtol: Tensor) -> Counts:
        """Counts above `max(atol, rtol s_1)` for float64 `atol`, `rtol` `[M]`: fields `[N, M, P]`."""
        raise NotImplementedError

    def entropy_ess(self, op: Operator, positions: Tensor) -> Entropies:
        """Fields `[N, P]`, without a gradient."""
        raise NotImplementedError

    def soft_ess(self, op: Operator, positions: Tensor, atol: Tensor) -> Tensor:
        """Soft counts for positive `atol` `[M]`, without a gradient: float64 `[N, M, P]`."""
        raise NotImplementedError

    def singular_values(self, op: Operator, positions: Tensor, k: int) -> Tensor:
        """The `k` largest, descending and zero padded: float64 `[N, P, k]`."""
        raise NotImplementedError

    def thin_products(self, op: Operator, heads: Tensor, budget: int) -> ThinProducts:
        """Products with some heads' `H_i` for `randomized_ess`, within about `budget` bytes beside what they return."""
        raise NotImplementedError

    def small_spectra(self, A: Tensor, right: Tensor | None) -> Tensor:
        """Singular values of finite `A` `[batch, m, n]` or `A right^T` (NaN where it overflows), in its precision."""
        raise NotImplementedError
