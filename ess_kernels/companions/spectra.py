"""The public call for the singular values of `Gamma_i`, `O_i` and the content of the state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import position_list
from .._readable import check_readable, refuse_tangents
from ..by_sequence import answer_by_sequence
from ..engine.scaling import keep_heads
from ..engine.state_space import block_length, bytes_per_head
from ..memory import Need, granted
from ..metrics import Positions
from ..operators.dense import as_operator
from ..operators.separate import SeparateSequences
from ..operators.structure import Operator
from ..processes import on_one_thread_if_forked
from .finite_state import checked_values, finite_state, of_sub_tokens
from .packed import OperatorWithValues, SequencesWithValues
from .states import WORKSPACE, Which, bytes_of_walk, spectra_of_states


@torch.no_grad()
@on_one_thread_if_forked
def state_spectra(
    op: Operator | Tensor,
    which: Which = "causal",
    positions: Positions | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Singular values of what the state at position i can hold, can show, or does hold.

    The state before token i has n numbers, and `H_i = O_i Gamma_i` goes through it. With transitions `A`, writes `B`
    and reads `C`, for past tokens j < i and later ones t >= i:

    - `"causal"`: `Gamma_i` `[n, i]`, with columns `A_{i-1} ... A_{j+1} B_j`: the states that past inputs can reach.
    - `"observable"`: `O_i` `[L - i, n]`, with rows `C_t A_t ... A_i` (`C_t A_{t-1} ... A_i` where a token reads before
      its transition): how the future sees the state.
    - `"content"`: `S_i = sum_j A_{i-1} ... A_{j+1} B_j v_j^T` `[n, V]`: the state that these values have left.

    These values depend on the basis in which the caller's tensors write the state, and those of `H_i` do not: compare
    them with the largest of the same position, never with an absolute tolerance. A complex state of n numbers is a
    real one of `2 n`. Every position costs the singular values of a matrix of n rows or columns, much more than an
    entropy-ESS, so ask for the positions that you need.

    Args:
        op: an operator with a finite state.
        which: see above.
        positions: as in `tolerance_ess`; None: all of them.
        values: for `"content"` alone, floating point: `[B, T, H, V]` where the operator's batch shape is `(B, H)`,
            else `[*batch, T, V]`. Where a token has m columns of `T`, m T in place of T.

    Returns:
        float64 `[*batch, P, k]`, descending, zero padded; k is the largest rank that is possible at any of the
        positions. NaN where a head (or its values) holds NaN or infinity, and where its products overflow; 0 at the
        positions of a packed batch that are in no sequence. No gradient.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected; the operator has no finite state.

    Source: the factorisation of `H_i` by a recurrence in the paper (arXiv 2504.19561), whose causal ESS is the rank of
    `Gamma_i`. The rank of `S_i` is what is reported where the heads of linear attention are pruned.
    """
    op = as_operator(op)
    finite_state(op)
    if which not in ("causal", "observable", "content"):
        raise ValueError(f"which: expected 'causal', 'observable' or 'content', got {which!r}")
    if which != "content" and values is not None:
        raise ValueError(f"values: expected None beside which={which!r}, got a {type(values).__name__}")
    given = checked_values(values, op) if which == "content" else None
    inputs = op.inputs if given is None else (*op.inputs, given)
    refuse_tangents("op", inputs)
    check_readable("op", inputs)
    wanted = position_list(positions, op.length)
    asked = list(range(1, op.length)) if wanted is None else wanted
    k = int(_cap(op, which, torch.tensor(asked, dtype=torch.int64, device="cpu"), given).amax()) if asked else 0
    if isinstance(op, SeparateSequences):
        batch = op if given is None else SequencesWithValues(op, given)
        return answer_by_sequence(
            batch, wanted, lambda one, its: [_of_one(one, which, its, k)], [torch.float64], values=k
        )[0]
    return _of_one(op if given is None else OperatorWithValues(op, given), which, asked, k)


def _cap(op: Operator, which: Which, positions: Tensor, values: Tensor | None) -> Tensor:
    """The largest rank that there can be at each of the positions, `[P]`."""
    rows, columns = op.block
    assert op.state_size is not None
    cap = rows * (op.length - positions) if which == "observable" else columns * positions
    return cap.clamp_max(op.state_size if values is None else min(op.state_size, values.shape[-1]))


def _of_one(op: Operator, which: Which, positions: Sequence[int], k: int) -> Tensor:
    """`[*batch, P, k]` of an operator, each row of whose batch is one sequence."""
    values = None
    if isinstance(op, OperatorWithValues):
        values = op.values.reshape(op.num_heads, -1, op.values.shape[-1])
        op = op.op
    distinct, back = torch.tensor(positions, dtype=torch.int64, device=op.device).unique(return_inverse=True)
    state = finite_state(op)
    c = block_length(state.state_size, entropy=True)
    bytes_each = bytes_per_head(state, c) + 8 * k * len(distinct)
    if values is not None:
        bytes_each += 8 * values.shape[-1] * (state.length * (1 + state.state_size // c) + state.state_size)
    results = 3 * 8 * op.num_heads * len(positions) * k  # as they are found, masked, and in the order asked for

    def need(budget: int) -> Need:
        # rows of states are walked through as many blocks at a time as fit their own workspace
        heads = max(1, min(op.num_heads, budget // (4 * bytes_each)))
        walk = bytes_of_walk(state, len(distinct))
        least, most = (some * bytes_each + min(some * walk, WORKSPACE) + results for some in (1, heads))
        return Need(f"one head of {op.length} tokens", least, most, "fewer positions, or shorter sequences")

    budget = granted(need, op.device)
    found = torch.full((op.num_heads, len(distinct), k), torch.nan, dtype=torch.float64, device=op.device)
    for heads in op.all_heads().split(max(1, budget // (4 * bytes_each))):
        tokens = state.tokens(heads)
        finite = tokens.finite()
        written = None
        if values is not None:
            written = of_sub_tokens(op, values[heads].double())
            finite = finite & written.isfinite().flatten(1).all(1)
            written = torch.where(finite[:, None, None], written, 0.0)
        s = spectra_of_states(keep_heads(tokens, finite), which, op.inner_positions(distinct), k, c, written)
        found[heads] = s.masked_fill(~finite[:, None, None], torch.nan)
    # beyond the cap there are rounding errors only
    beyond = torch.arange(k, device=op.device) >= _cap(op, which, distinct, values)[:, None]
    found = found.masked_fill(beyond & ~found.isnan(), 0.0)
    return found[:, back].reshape(*op.batch_shape, len(back), k)
