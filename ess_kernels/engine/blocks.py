"""A recurrence cut into blocks of `c` tokens: what each block shows to the outside.

For a block `[a, e)` of a recurrence with transitions `A_t`:
`X` row r: `read_r A_r ... A_a` (observability seen from a); `Z` row j: `A_{e-1} ... A_{j+1} write_j` (reachability
carried to e); `Phi = A_{e-1} ... A_a`; `Y`: the block's own strictly lower `T`. Where reads come before the transition,
X and Y lose the factor `A_r`. Everything is a running product of factors: never a difference of cumulative logarithms,
which overflows, and turns a gate of exactly zero into NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..operators.structure import Tokens  # which operators import this module


@dataclass
class Blocks:
    """Block parts, float64: `X`, `Z` `[..., c, n]`, `Y` `[..., c, c]`, `Phi` `[..., n]` (diagonal) or `[..., n, n]`."""

    X: Tensor
    Y: Tensor
    Z: Tensor
    Phi: Tensor

    def __getitem__(self, index) -> Blocks:
        index = self.at(index)
        return Blocks(*(getattr(self, f.name)[index] for f in fields(Blocks)))

    @property
    def number(self) -> int:
        """How many blocks there are, if these parts are `[N, B, ...]`."""
        return self.X.shape[1]

    def at(self, index):
        """Where the parts of blocks lie that `index` is meant for, heads and numbers of blocks."""
        return index

    def every(self, x: Tensor) -> Tensor:
        """`x` of each of the parts that are held, `[N, held, ...]`, as `[N, B, ...]`."""
        return x


def cut(tokens: Tokens, c: int) -> Tokens:
    """Pads with zero tokens (identity transitions) to a multiple of `c`: every tensor becomes `[N, B, c, ...]`."""
    padding = -tokens.read.shape[1] % c
    if padding:
        # zero, but for the transitions: with zeros all of them, A_t would empty the state
        zeros = tokens.map(lambda x: x.new_zeros(x.shape[0], padding, *x.shape[2:]))
        zeros = replace(zeros, transition=identity_like(zeros.transition, zeros.read))
        tokens = tokens.cat(zeros, dim=1)
    return tokens.map(lambda x: x.unflatten(1, (-1, c)))


def identity_like(transition: Tensor, read: Tensor) -> Tensor:
    """Transitions that change nothing, of the same kind: ones as in `read` `[..., n]`, or identity matrices."""
    if transition.dim() == read.dim():
        return torch.ones_like(transition)
    return torch.eye(transition.shape[-1], dtype=transition.dtype, device=transition.device).expand_as(transition)


def block_parts(cut_tokens: Tokens) -> Blocks:
    """The parts of every block; tensors of `cut_tokens` are `[..., c, n]` with `c` a power of two."""
    read, write, transition = cut_tokens.read, cut_tokens.write, cut_tokens.transition
    if cut_tokens.rank_one:
        return rank_one_parts(cut_tokens)
    if cut_tokens.diagonal:
        return diagonal_parts(read, write, transition, cut_tokens.reads_before)
    return _dense_parts(read, write, transition, cut_tokens.reads_before)


def products_upto(a: Tensor, inclusive: bool) -> Tensor:
    """Products of the factors up to each token, with or without its own, along dim -2."""
    if inclusive:
        return a.cumprod(-2)
    return torch.cat([torch.ones_like(a[..., :1, :]), a[..., :-1, :]], -2).cumprod(-2)


def products_after(a: Tensor) -> Tensor:
    """Products of the factors after each token, along dim -2."""
    return products_upto(a.flip(-2), inclusive=False).flip(-2)


def diagonal_parts(read: Tensor, write: Tensor, a: Tensor, reads_before: bool) -> Blocks:
    """The parts of blocks with transitions `diag(a)`, `[..., c, n]`."""
    running = products_upto(a, inclusive=True)
    X = read * (products_upto(a, inclusive=False) if reads_before else running)
    return Blocks(X, local_operator(read, write, a, reads_before), write * products_after(a), running[..., -1, :])


def local_operator(read: Tensor, write: Tensor, a: Tensor, reads_before: bool) -> Tensor:
    """`Y` of transitions `diag(a)`, by halves: products only, nothing is divided out."""
    c = read.shape[-2]
    Y = read.new_zeros(*read.shape[:-1], c)
    h = 1
    while h < c:
        # right half of each segment of 2h tokens against its left half, through the state between them
        segments = (c // (2 * h), 2, h)
        right, left = (x.unflatten(-2, segments)[..., half, :, :] for x, half in ((read, 1), (write, 0)))
        gates = a.unflatten(-2, segments)
        right = right * products_upto(gates[..., 1, :, :], inclusive=not reads_before)
        left = left * products_after(gates[..., 0, :, :])
        tiles = right @ left.mT
        pieces = Y.unflatten(-1, segments).unflatten(-4, segments)
        for s in range(segments[0]):
            pieces[..., s, 1, :, s, 0, :] = tiles[..., s, :, :]
        h *= 2
    return Y


def rank_one_parts(tokens: Tokens) -> Blocks:
    """The parts of blocks with transitions `diag(d_t) + b_t a_t^T`, without a loop over tokens.

    Where the state is `s`, token t looks up `z_t = a_t . s_{t-1}` and writes `b_t z_t + w_t u_t`. With `P(t, r)` for
    `d_t ... d_{r+1}`, all lookups of a block solve a unit lower triangular system, `(I - N) z = A s_in + M u`, with
    `N_tr = a_t P(t-1, r) b_r` and `M_tr = a_t P(t-1, r) w_r` for r < t and `A_t = a_t P(t-1, -1)`. One substitution
    from the right gives what later tokens and the state make of every lookup. N and M are the `Y` of recurrences with
    diagonal transitions, and the other factors their `X`, `Z` and `Phi`.

    The triangle is never inverted: where keys repeat, the powers of N that an inverse adds up cancel to many digits.

    Source: the WY form of products of Householder matrices (Bischof and Van Loan), as chunked delta rules use it.
    """
    a, b, d, before = tokens.lookup, tokens.updates, tokens.transition, tokens.reads_before
    read, write = tokens.read, tokens.write
    assert a is not None
    c, n = read.shape[-2:]
    seen = products_upto(d, inclusive=not before)  # P as row t reads it
    A, X = a * products_upto(d, inclusive=False), read * seen
    carried = b * products_after(d)
    N = local_operator(a, b, d, True)
    # what row t reads of the update of each earlier token, and of its own where it reads after its transition
    own = local_operator(read, b, d, before)
    if not before:
        own = own + torch.diag_embed((read * b).sum(-1))
    one = torch.eye(c, dtype=read.dtype, device=read.device)
    answered = substitute(one - N, torch.cat([carried.mT, own], -2))
    state, rows = answered.split([n, c], -2)
    Phi = torch.diag_embed(d.prod(-2)) + state @ A
    if tokens.update is None:
        # a token writes what it takes away: (I - N)^-1 (I - M) = 1, and reads of writes are the solution itself
        return Blocks(X + rows @ A, -rows.tril(-1), -state.mT, Phi)
    M = local_operator(a, write, d, True)
    Y = local_operator(read, write, d, before) + (rows @ M).tril(-1)
    return Blocks(X + rows @ A, Y, write * products_after(d) + (state @ M).mT, Phi)


def substitute(triangle: Tensor, rows: Tensor) -> Tensor:
    """`rows triangle^-1` for unit lower triangular `[..., c, c]`, by substitution from the last column."""
    return torch.linalg.solve_triangular(triangle, rows, upper=False, left=False, unitriangular=True)


def _dense_parts(read: Tensor, write: Tensor, A: Tensor, reads_before: bool) -> Blocks:
    c, n = read.shape[-2:]
    # Columns of `state`, after the tokens so far: first what each unit vector at the block's start has become, then
    # what each token's write alone has become.
    state = torch.eye(n, dtype=read.dtype, device=read.device).expand(*read.shape[:-2], n, n)
    X, Y = [], []
    for t in range(c):
        if not reads_before:
            state = A[..., t, :, :] @ state
        row = (read[..., t, None, :] @ state)[..., 0, :]
        X.append(row[..., :n])
        Y.append(torch.nn.functional.pad(row[..., n:], (0, c - t)))
        if reads_before:
            state = A[..., t, :, :] @ state
        state = torch.cat([state, write[..., t, :, None]], -1)
    return Blocks(torch.stack(X, -2), torch.stack(Y, -2), state[..., n:].mT, state[..., :n])
