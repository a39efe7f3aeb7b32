"""A recurrence cut into blocks of `c` tokens: what each block shows to the outside.

For a block `[a, e)` of a recurrence with transitions `A_t`:
`X` row r: `read_r A_r ... A_a` (observability seen from a); `Z` row j: `A_{e-1} ... A_{j+1} write_j` (reachability
carried to e); `Phi = A_{e-1} ... A_a`; `Y`: the block's own strictly lower `T`. Where reads come before the transition,
X and Y lose the factor `A_r`. Everything is a running product of factors: never a difference of cumulative logarithms,
which overflows, and turns a gate of exactly zero into NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..operators.structure import Tokens


@dataclass
class Blocks:
    """Block parts, float64: `X`, `Z` `[..., c, n]`, `Y` `[..., c, c]`, `Phi` `[..., n]` (diagonal) or `[..., n, n]`."""

    X: Tensor
    Y: Tensor
    Z: Tensor
    Phi: Tensor

    def __getitem__(self, index) -> Blocks:
        return Blocks(*(getattr(self, f.name)[index] for f in fields(self)))


def cut(tokens: Tokens, c: int) -> Tokens:
    """Pads with zero tokens (identity transitions) to a multiple of `c`: every field becomes `[N, B, c, ...]`."""
    length = tokens.read.shape[1]
    padding = -length % c
    read, write, transition = tokens.read, tokens.write, tokens.transition
    if padding:
        zeros = read.new_zeros(read.shape[0], padding, read.shape[2])
        read, write = torch.cat([read, zeros], 1), torch.cat([write, zeros], 1)
        transition = torch.cat([transition, _identity(transition[:, :1]).expand(-1, padding, *transition.shape[2:])], 1)
    blocks = (-1, c)
    read, write, transition = (x.unflatten(1, blocks) for x in (read, write, transition))
    return Tokens(read, write, transition, tokens.reads_before)


def _identity(transition: Tensor) -> Tensor:
    """Identity transitions of the same kind: `[..., n]` ones (`[N, L, n]`) or `[..., n, n]` identities."""
    if transition.dim() == 3:
        return torch.ones_like(transition)
    return torch.eye(transition.shape[-1], dtype=transition.dtype, device=transition.device).expand_as(transition)


def block_parts(cut_tokens: Tokens) -> Blocks:
    """The parts of every block; fields of `cut_tokens` are `[..., c, n]` with `c` a power of two."""
    read, write, transition = cut_tokens.read, cut_tokens.write, cut_tokens.transition
    if transition.dim() == read.dim():
        return _diagonal_parts(read, write, transition, cut_tokens.reads_before)
    return _dense_parts(read, write, transition, cut_tokens.reads_before)


def products_upto(a: Tensor, inclusive: bool) -> Tensor:
    """Products of the factors up to each token, with or without its own, along dim -2."""
    if inclusive:
        return a.cumprod(-2)
    return torch.cat([torch.ones_like(a[..., :1, :]), a[..., :-1, :]], -2).cumprod(-2)


def products_after(a: Tensor) -> Tensor:
    """Products of the factors after each token, along dim -2."""
    return products_upto(a.flip(-2), inclusive=False).flip(-2)


def _diagonal_parts(read: Tensor, write: Tensor, a: Tensor, reads_before: bool) -> Blocks:
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
    running = products_upto(a, inclusive=True)
    X = read * (products_upto(a, inclusive=False) if reads_before else running)
    return Blocks(X, Y, write * products_after(a), running[..., -1, :])


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
