"""How much each token does to all later outputs: norms of the columns of `T`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._readable import check_readable, refuse_tangents
from ..engine.blocks import block_parts, cut
from ..engine.boundary import observe_roots
from ..engine.scaling import keep_heads
from ..engine.state_space import block_length, bytes_per_head
from ..memory import Need, granted
from ..operators.blocked import Blocked
from ..operators.dense import as_operator
from ..operators.separate import SeparateSequences
from ..operators.structure import Operator, StateSpace, Tiled, Tokens
from ..processes import on_one_thread_if_forked

# copies of a band of rows that exist while it is made and looked at
BAND_COPIES = 4


@torch.no_grad()
@on_one_thread_if_forked
def token_influence(op: Operator | Tensor) -> Tensor:
    """The norm of column j of `T` below the diagonal: how much token j does to all later outputs together.

    It is a part of `T` itself, so it does not depend on the basis of a state, and every operator has it. Where a token
    has several rows and columns of `T`, the norm is that of all its columns in the rows of later tokens. A finite state
    never forms `T`; any other operator is read by bands of rows.

    Args:
        op: an operator, or a dense `T` `[..., L, L]` of which only the strictly lower part is read.

    Returns:
        float64 `[*batch, L]`, in the units of `T`; 0 at the last token of each sequence and at padding, NaN at all
        tokens of a head that holds NaN or infinity. No gradient.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.
    """
    op = as_operator(op)
    refuse_tangents("op", op.inputs)
    check_readable("op", op.inputs)
    found = _by_sequence(op) if isinstance(op, SeparateSequences) else _of_heads(op)
    return found.reshape(*op.batch_shape, op.length)


def _by_sequence(op: SeparateSequences) -> Tensor:
    size = (op.sequences.rows, op.heads_in_row, op.length)
    found = torch.zeros(size, dtype=torch.float64, device=op.device)
    for group in op.groups(op.sequences.every()):
        for (row, start, stop), mine in zip(group.sequences, group.by_sequence(_of_heads(group.op))):
            found[row, :, start:stop] = mine
    return found


def _of_heads(op: Operator) -> Tensor:
    """`[num_heads, L]`, as many heads at a time as fit."""
    found = torch.zeros(op.num_heads, op.length, dtype=torch.float64, device=op.device)
    inner = op.inner
    sub_tokens = op.sub_tokens if isinstance(op, Blocked) else 1
    if not found.numel():
        return found
    each = 8 * inner.length
    if isinstance(inner, StateSpace):
        c = max(block_length(inner.state_size, entropy=True), _power_of_two_from(sub_tokens))
        each = 2 * bytes_per_head(inner, c)

    def need(budget: int) -> Need:
        # the workspace of a head's recurrence; or bands of rows, each in the copies that its making takes
        heads = max(1, min(op.num_heads, budget // 4 // each))
        least, most = (some * each * (1 if isinstance(inner, StateSpace) else BAND_COPIES) for some in (1, heads))
        if not isinstance(inner, StateSpace):
            most = max(most, min(BAND_COPIES * (budget // 4), heads * BAND_COPIES * each * inner.length))
        results = 8 * op.num_heads * op.length
        return Need(f"one head of {op.length} tokens", least + results, most + results, "shorter sequences")

    budget = granted(need, op.device) // 4
    for heads in op.all_heads().split(max(1, budget // each)):
        if isinstance(inner, StateSpace):
            found[heads] = _of_states(inner.tokens(heads), sub_tokens, c)
            continue
        assert isinstance(inner, Tiled)
        found[heads] = torch.nan
        finite = heads[inner.finite(heads)]
        if len(finite):
            found[finite] = _of_rows(inner, finite, sub_tokens, max(1, budget // (each * len(finite))))
    return found


def _of_states(tokens: Tokens, sub_tokens: int, c: int) -> Tensor:
    """`[N, L]` of a recurrence, in blocks of `c` tokens, NaN for heads that are not finite.

    A column of a block has rows in the block itself, `Y`, and rows behind it, which see what the column's write has
    become at the block's right edge: `G Z^T`, where `G` has the singular values and vectors of all that they read.
    """
    finite = tokens.finite()
    tokens = keep_heads(tokens, finite)
    N, length = tokens.read.shape[0], tokens.read.shape[1] // sub_tokens
    size = _power_of_two_from(sub_tokens)
    if size > sub_tokens:
        # a token must not lie on both sides of a block's edge
        by_token = cut(tokens.map(lambda x: x.unflatten(1, (length, sub_tokens)).flatten(0, 1)), size)
        tokens = by_token.map(lambda x: x.reshape(N, length * size, *x.shape[3:]))
    blocks = block_parts(cut(tokens, c))
    number = torch.arange(c, device=tokens.read.device) // size
    inside = torch.where(number[:, None] > number, blocks.Y, 0.0)
    behind = observe_roots(blocks) @ blocks.Z.mT
    columns = torch.hypot(_norm(inside, -2), _norm(behind, -2)).flatten(1)[:, : length * size]
    return _norm(columns.unflatten(1, (length, size)), -1).masked_fill(~finite[:, None], torch.nan)


def _of_rows(op: Tiled, heads: Tensor, sub_tokens: int, band: int) -> Tensor:
    """`[N, L]` of any other operator, `band` rows of `T` at a time."""
    columns = torch.zeros(len(heads), op.length, dtype=torch.float64, device=heads.device)
    token = torch.arange(op.length, device=heads.device) // sub_tokens
    for start in range(0, op.length, band):
        stop = min(start + band, op.length)
        rows = torch.where(token[start:stop, None] > token[:stop], op.rows(heads, start, stop), 0.0)
        columns[:, :stop] = torch.hypot(columns[:, :stop], _norm(rows, -2))
    return _norm(columns.unflatten(1, (-1, sub_tokens)), -1)


def _norm(x: Tensor, dim: int) -> Tensor:
    """The 2-norm along `dim`, whose squares neither overflow nor vanish."""
    largest = x.abs().amax(dim, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    return torch.linalg.vector_norm(x / unit, dim=dim) * largest.squeeze(dim)


def _power_of_two_from(number: int) -> int:
    return 1 << (number - 1).bit_length()
