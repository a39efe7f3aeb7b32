"""The whole algorithm on one page, for readers; nothing imports it.

A causal mixer is y = T u with T lower triangular. Position i splits the past from the future: H_i = T[i:, :i]. Wanted,
for every i: how many singular values s of H_i exceed tau (tolerance-ESS), and exp(-sum p log p), p = s / sum s
(entropy-ESS).

1. The eigenvalues of [[-tau I, H], [H^T, -tau I]] are s - tau, -s - tau and -tau: as many are positive as H has values
   above tau. Sylvester: their signs are those of the pivots of an elimination, in any order, block by block.
2. Staircase. All positions of a block a <= i < e contain the rows >= e and the columns < a. Eliminate those once.
   Halve what is left: the left half of the positions shares the later rows, the right half the earlier columns; go on.
3. A recurrence x <- A_t x + k_t u_t, y_t = q_t . x needs no T: a block sees the past through the n numbers x at its
   left edge, the future sees it through those at its right edge. The outside takes n pivots instead of L.
4. With +tau I in the upper corner no pivot is near zero, and |det| is tau^(rows + columns) det(I + H H^T / tau^2).
   A weighted sum of the logarithms for 16 tau is nearly sum s, and with other weights sum s log s.

Left out: near-singular pivots (watched, and the position done again), batches, gradients, memory, speed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .engine.quadrature import STANDARD


def eliminate(E: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Pivots of E, and the Schur update V^T E^-1 V, of [[E, V], [V^T, ...]] by elimination without exchanges."""
    h = len(E)
    M, pivots, update = torch.cat([E, V], 1), [], V.new_zeros(V.shape[1], V.shape[1])
    for k in range(h):
        row, scaled = M[k, k:].clone(), M[k, k:] / M[k, k]
        pivots.append(row[0])
        M[k + 1 :, k:] -= scaled[1 : h - k, None] * row
        update += scaled[h - k :, None] * row[h - k :]
    return torch.stack(pivots) if h else E.new_zeros(0), update


def staircase(R: Tensor, K: Tensor, C: Tensor, worth: Callable[[Tensor], Tensor], so_far: Tensor) -> list[Tensor]:
    """`so_far` plus the worth of all pivots, for every position of a block whose own matrix is [[R, K], [K^T, C]].

    Position s has the rows s.. and the columns ..s-1 of the block, on top of what has been eliminated before.
    """
    m = len(R)
    if m == 1:
        return [so_far + worth(R[0])]
    h = m // 2
    left, right = slice(0, h), slice(h, m)
    answers = []
    for half, E, to_rows, to_columns in (
        # the left half eliminates the later rows, and does not need the later columns
        (left, R[right, right], R[right, left], K[right, left]),
        # the right half eliminates the earlier columns, and does not need the earlier rows
        (right, C[left, left], K[right, left].T, C[left, right]),
    ):
        pivots, u = eliminate(E, torch.cat([to_rows, to_columns], 1))
        w = to_rows.shape[1]
        child = R[half, half] - u[:w, :w], K[half, half] - u[:w, w:], C[half, half] - u[w:, w:]
        answers += staircase(*child, worth, so_far + worth(pivots))
    return answers


def _positive(pivots: Tensor) -> Tensor:
    return (pivots > 0).sum()


def _log(pivots: Tensor) -> Tensor:
    return pivots.abs().log().sum()


def dense_counts(T: Tensor, tau: float) -> Tensor:
    """Tolerance-ESS of a float64 T [L, L] at the positions 1..L-1."""
    one = torch.eye(len(T), dtype=T.dtype, device=T.device)
    return torch.stack(staircase(-one, T.tril(-1) / tau, -one, _positive, torch.tensor(0, device=T.device)))[1:]


def dense_entropy(T: Tensor) -> Tensor:
    """Entropy-ESS of a float64 T [L, L] at the positions 1..L-1, none of whose H_i is zero."""
    T, one = T.tril(-1), torch.eye(len(T), dtype=T.dtype, device=T.device)
    nodes, *weights = torch.tensor(STANDARD.table, dtype=T.dtype, device=T.device).T
    scale = 1.05 * torch.linalg.matrix_norm(T, 2) ** 2  # every H_i is a part of T, so no s^2 is larger
    shifts = (nodes * scale).sqrt().tolist()
    logdets = torch.stack([torch.stack(staircase(one, T / s, -one, _log, T.new_zeros(())))[1:] for s in shifts])
    total, mixed = (w @ logdets for w in weights)  # sum s and sum s log s, in units of sqrt(scale)
    return torch.exp(total.log() - mixed / total)


def gated_counts(q: Tensor, k: Tensor, g: Tensor, tau: float, c: int = 16) -> Tensor:
    """Tolerance-ESS at 1..L-1 of T_ij = sum_n q_in k_jn exp(g_{j+1,n} + ... + g_{i,n}); q, k, g float64 [L, n]."""
    L, n = q.shape
    a = g.exp()
    blocks = []
    for start in range(0, L, c):
        A, Q, W = a[start : start + c], q[start : start + c], k[start : start + c]
        m = len(A)
        X = Q * A.cumprod(0)  # rows of the block, as functions of the state at its left edge
        Z = torch.stack([W[j] * A[j + 1 :].prod(0) for j in range(m)])  # what each token leaves at the right edge
        Y = Q.new_zeros(m, m)  # the block's own T
        for i in range(m):
            for j in range(i):
                Y[i, j] = (Q[i] * W[j] * A[j + 1 : i + 1].prod(0)).sum()
        blocks.append((X, Y, Z, A.prod(0)))
    G = [q.new_zeros(n, n)]  # G^T G: the observability Gramian at right edges, from the last block to the first
    for X, _, _, Phi in reversed(blocks[1:]):
        G.append(torch.linalg.qr(torch.cat([G[-1] * Phi, X])).R)
    F = q.new_zeros(n, n)  # F^T F: the reachability Gramian at left edges, from QR: squaring would lose small values
    counts = []
    for (X, Y, Z, Phi), outlook in zip(blocks, reversed(G), strict=True):
        m = len(X)
        one, eye = (torch.eye(size, dtype=q.dtype, device=q.device) for size in (m, n))
        # up to rotations n columns stand for the past and n rows for the future: T[e:, :a] = S, T[a:e, :a] = P,
        # T[e:, a:e] = N, in units of tau
        S, P, N = outlook * Phi @ F.T / tau, X @ F.T / tau, outlook @ Z.T / tau
        # the future goes first (its pivots are -I, none positive), then the past
        pivots, u = eliminate(S.T @ S - eye, torch.cat([P.T, S.T @ N], 1))
        R, K, C = -one - u[:m, :m], Y / tau - u[:m, m:], N.T @ N - one - u[m:, m:]
        counts += staircase(R, K, C, _positive, _positive(pivots))
        F = torch.linalg.qr(torch.cat([F * Phi, Z])).R
    return torch.stack(counts)[1:]
