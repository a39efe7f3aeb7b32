"""What attention's kin in fla's layout share: queries `[B, T, HQ, K]` against keys `[B, T, H, K]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_groups, check_layout, check_positive_size, check_shape
from .finiteness import BAND, all_finite, finite_or_minus_inf, largest
from .sparsity import Sparsity
from .structure import Tiled

QUERIES, KEYS = "[B, T, HQ, K]", "[B, T, H, K]"


class AttentionKin(Tiled):
    """Weights from scores `scale q_i . k_j`: query head h reads head `h // (HQ // H)` of what has only H heads.

    Attributes:
        LOG_GATES: the tensors in which -inf is a valid number.
    """

    LOG_GATES: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        scale: float,
        inputs: Sequence[Tensor | None],
        *,
        heads: int | None = None,
        state_size: int | None = None,
    ):
        heads = q.shape[2] if heads is None else heads  # more than q has where q is shared as well
        super().__init__(q.shape[1], (q.shape[0], heads), state_size, [x for x in inputs if x is not None])
        self.q, self.k, self.scale = q, k, scale

    def of_heads(self, x: Tensor, heads: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Tokens `start..stop-1` of some heads of `x` `[B, T, H or HQ, ...]`, `[N, rows, ...]` float64."""
        batch, head = self.unravel(heads)
        group = head // max(self.batch_shape[1] // max(x.shape[2], 1), 1)
        return x[batch, start:stop, group].double()

    def at_tokens(self, x: Tensor, heads: Tensor, tokens: Tensor) -> Tensor:
        """Tokens `[N, m]` of some heads of `x` `[B, T, H or HQ, ...]`, as it came: `[1, m, N, ...]`."""
        batch, head = self.unravel(heads)
        group = head // max(self.batch_shape[1] // max(x.shape[2], 1), 1)
        return x[batch[:, None], tokens, group[:, None]].transpose(0, 1)[None]

    def of_window(self, heads: Tensor, window_size: int | None) -> Sparsity | None:
        """What is known of heads whose rows see `window_size` columns."""
        return None if window_size is None else Sparsity.of_width(torch.full_like(heads, min(window_size, self.length)))

    def scores(self, heads: Tensor, start: int, stop: int, first: int = 0) -> Tensor:
        """`scale q_i . k_j` for rows `start..stop-1` and columns `first..stop-1`."""
        queries = self.of_heads(self.q, heads, start, stop) * self.scale
        return queries @ self.of_heads(self.k, heads, first, stop).mT

    @torch.no_grad()
    def finite(self, heads: Tensor) -> Tensor:
        """Looks at the raw tensors, for a window would hide a bad key, and softmax a score that overflows."""
        finite = torch.ones(len(heads), dtype=torch.bool, device=heads.device)
        for name in self.TENSORS:
            x = getattr(self, name)
            if x is None or not x.is_floating_point():
                continue
            mine = self.of_heads(x, heads) if x.dim() > 1 else x[self.unravel(heads)[1], None]
            finite = finite & (finite_or_minus_inf(mine) if name in self.LOG_GATES else all_finite(mine))
        if bool((finite & ~self._cannot_overflow(heads)).any()):
            for start in range(0, self.length, BAND):
                sums = self._hidden_sums(heads, start, min(start + BAND, self.length))
                finite = finite & all_finite(sums.tril(start))
        return finite

    def _cannot_overflow(self, heads: Tensor) -> Tensor:
        """bool `[N]`: whether the largest numbers of the tensors bound every sum that is made of them."""
        return self._largest_score(heads).isfinite()

    def _largest_score(self, heads: Tensor) -> Tensor:
        """An upper bound of every score's magnitude, `[N]`."""
        q, k = (largest(self.of_heads(x, heads)) for x in (self.q, self.k))
        return q * abs(self.scale) * k * self.q.shape[-1]

    def _hidden_sums(self, heads: Tensor, start: int, stop: int) -> Tensor:
        """What the weights are made from, whose overflow they could hide, `[N, rows, stop]`, up to the diagonal."""
        return self.scores(heads, start, stop)


def check_queries_and_keys(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    """`(B, T, HQ, K)`, once `q` and `k` are known to fit: `[B, T, HQ, K]`, `[B, T, H, K]`, and H divides HQ."""
    batch, length, heads, size = check_layout("q", q, QUERIES)
    check_positive_size("q", "K", size)
    groups = check_layout("k", k, KEYS)[2]
    check_shape("k", k, (batch, length, groups, size), KEYS)
    check_groups("k", groups, "H", heads)
    return batch, length, heads, size
