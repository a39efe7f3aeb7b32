"""Differentiable entropy-ESS: the same log-determinants out of place, for autograd.

Log-determinants are smooth where singular values coincide or vanish, where the backward of a singular value
decomposition is not. Scales are constants for the gradient: the result depends on them only through the error of the
quadrature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..operators.structure import Operator, StateSpace, Tiled, Tokens
from .certainty import ENTROPY_BOUND, EPS, entropy_of_values
from .quadrature import STANDARD
from .scaling import largest, power_of_two

# positions of a recurrence whose n x n log-determinants are in work at once
POSITIONS = 256


def entropy_ess(op: Operator, positions: Tensor) -> Tensor:
    """Entropy-ESS `[N, P]` at distinct positions, with a gradient with respect to the operator's inputs."""
    return torch.stack([_one_head(op, head, positions) for head in op.all_heads().split(1)])


def _one_head(op: Operator, head: Tensor, positions: Tensor) -> Tensor:
    cap = op.rank_cap(positions).to(torch.float64)
    if not bool(op.finite(head)):
        return torch.full_like(cap, torch.nan)
    if isinstance(op, StateSpace):
        logdets, rounding = _recurrence_logdets(op.tokens(head), positions)
    else:
        assert isinstance(op, Tiled)
        logdets = _matrix_logdets(op.rows(head, 0, op.length).tril(-1))[:, positions]
        # the scale is that of all of T, and so are rounding errors
        rounding = torch.full_like(cap, EPS)
    found = STANDARD.estimate(logdets, cap, rounding)
    doubtful = ~(found.bound <= ENTROPY_BOUND)
    if not bool(doubtful.any()):
        return found.ess
    # No gradient may pass through log-determinants that are not used: zero times their infinite ones is not zero.
    ess = STANDARD.estimate(torch.where(doubtful, 0.0, logdets), cap, rounding).ess
    T = op.dense_heads(head)[0]
    exact = [
        _exact(T[i:, :i]) if bad else x for i, bad, x in zip(positions.tolist(), doubtful.tolist(), ess, strict=True)
    ]
    return torch.stack(exact)


def _exact(H: Tensor) -> Tensor:
    """Entropy-ESS from singular values, for positions that the log-determinants cannot resolve."""
    if not bool(H.isfinite().all()):
        return H.new_tensor(torch.nan)
    s = torch.linalg.svdvals(H)
    # the entropy has no derivative at a value of zero, and values of the size of rounding errors mean nothing
    return entropy_of_values(s[s > EPS * len(s) * s[0]])


def _recurrence_logdets(tokens: Tokens, positions: Tensor) -> tuple[Tensor, Tensor]:
    """`[16, P]` from the two Gramians at each position, `log det(I + P_i Q_i / t)`; and how wrong squared singular
    values are by rounding in `P_i Q_i`, in units of the scale, `[P]`."""
    # powers of two change no ESS, and keep squares within range
    read, write = (power_of_two(x, largest(x.detach()))[0][0] for x in (tokens.read, tokens.write))
    length = len(read)

    def forward(x: Tensor, t: int) -> Tensor:
        return tokens.move(t, x[None])[0]

    def backward(x: Tensor, t: int) -> Tensor:
        return tokens.move(t, x[None], transposed=True)[0]

    P, early = _accumulate(write, range(length), forward, moves_first=True)
    Q, late = _accumulate(read, reversed(range(length)), backward, moves_first=tokens.reads_before)
    Q.reverse()
    logdets: dict[int, Tensor] = {}
    rounding = torch.zeros_like(positions, dtype=torch.float64)
    full = []

    def take_one(place: int, factor: Tensor, gramian: Tensor) -> None:
        """A position from the factor on one side of it and the Gramian on the other."""
        product = (factor.mT @ gramian @ factor)[None]
        logdets[place] = _logdets(product)[:, 0]
        rounding[place] = _rounding(product, _norm(factor).square() * _norm(gramian))[0]

    for place, i in enumerate(positions.tolist()):
        # near the ends, with fewer tokens than states, a Gramian is singular and its zero eigenvalues rounding noise
        if i < len(early) and i <= length - i:
            take_one(place, early[i], Q[i])
        elif length - i < len(late):
            take_one(place, late[length - i], P[i])
        else:
            full.append((place, i))
    for first in range(0, len(full), POSITIONS):
        places, some = zip(*full[first : first + POSITIONS], strict=True)
        before, after = (torch.stack([x[i] for i in some]) for x in (P, Q))
        columns = checkpoint(lambda p, q: _logdets(p @ q), before, after, use_reentrant=False)
        logdets.update(zip(places, columns.unbind(-1), strict=True))
        rounding[list(places)] = _rounding(before.detach() @ after.detach(), _norm(before) * _norm(after))
    return torch.stack([logdets[place] for place in range(len(positions))], -1), rounding


def _accumulate(
    vectors: Tensor, times: Iterable[int], move: Callable[[Tensor, int], Tensor], moves_first: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Gramians `[n, n]` of what has been gathered before each step and after the last, and the first factors `[n, <n]`.

    `vectors` `[L, n]` join one by one; what was there moves before that (`moves_first`), or all of it after.
    """
    n = vectors.shape[-1]
    gramians, factors = [vectors.new_zeros(n, n)], [vectors.new_zeros(n, 0)]
    for t in times:
        new = vectors[t, :, None]
        gramian, factor = gramians[-1], factors[-1]
        if moves_first:
            gramians.append(move(move(gramian, t).mT, t) + new * new.mT)
        else:
            gramians.append(move(move(gramian + new * new.mT, t).mT, t))
        if len(factors) < n:
            factors.append(
                torch.cat([move(factor, t), new], -1) if moves_first else move(torch.cat([factor, new], -1), t)
            )
    return gramians, factors


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x.detach())


def _scale(product: Tensor) -> Tensor:
    """`sqrt(sum sigma^4)` `[P]` of `product` `[P, m, m]`: a bound of the largest `sigma^2`, and near it."""
    product = product.detach()
    return (product @ product).diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0).sqrt()


def _rounding(product: Tensor, size: Tensor) -> Tensor:
    """How wrong the eigenvalues of a product are, in units of its scale, if its factors' norms multiply to `size`.

    States may cancel, and then the product is much smaller than its factors.
    """
    return torch.where(size > 0, EPS * size / _scale(product), 0.0)


def _logdets(product: Tensor) -> Tensor:
    """`log det(I + product / (t_k scale))` `[16, P]` of `product` `[P, m, m]` with eigenvalues `sigma^2`."""
    scale = _scale(product)
    t = STANDARD.nodes(product.device)[:, None] * torch.where(scale > 0, scale, 1.0)
    one = torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
    matrices = one + product / t[..., None, None]
    logdets = torch.linalg.slogdet(matrices).logabsdet
    singular = ~logdets.isfinite()
    if bool(singular.any()):
        # rounding has left no determinant, and no gradient that is a number: NaN, of a constant
        matrices = torch.where(singular[..., None, None], one, matrices)
        logdets = torch.linalg.slogdet(matrices).logabsdet.masked_fill(singular, torch.nan)
    return logdets


def _matrix_logdets(T: Tensor) -> Tensor:
    """`[16, L]` for a strictly lower triangular `T` `[1, L, L]`; the value at position 0, an empty `H`, is 0."""
    T = power_of_two(T, largest(T.detach()))[0][0]
    with torch.no_grad():
        scale = torch.linalg.matrix_norm(T, 2).square() * 1.05 if T.shape[0] else T.new_ones(())
        t = STANDARD.nodes(T.device) * torch.where(scale > 0, scale, 1.0)
    return torch.stack([checkpoint(_staircase_logdets, T / s, use_reentrant=False) for s in t.sqrt()])


def _staircase_logdets(K: Tensor) -> Tensor:
    """`log det(I + H_i H_i^T)` `[L]` of one strictly lower triangular matrix: `staircase.py` out of place."""
    length = K.shape[0]
    K = K[None]
    R = torch.eye(length, dtype=K.dtype, device=K.device)[None]
    C = -R
    value = K.new_zeros(1)
    start = torch.zeros(1, dtype=torch.int64, device=K.device)
    stop = start + length

    def pair(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([left, right], 1).flatten(0, 1)

    m = length
    while m > 1:
        if m % 2:
            R, K, C = (torch.nn.functional.pad(x, (0, 1, 0, 1)) for x in (R, K, C))
            corner = torch.zeros_like(R)
            corner[:, -1, -1] = 1.0
            R, C = R + corner, C - corner
            m += 1
        h = m // 2
        # left: later rows are eliminated; right: earlier columns, whose pivots are negative
        later = torch.linalg.cholesky(R[:, h:, h:])
        earlier = torch.linalg.cholesky(-C[:, :h, :h])
        Wr, Wc = (torch.linalg.solve_triangular(later, x, upper=False) for x in (R[:, h:, :h], K[:, h:, :h]))
        Vr, Vc = (torch.linalg.solve_triangular(earlier, x, upper=False) for x in (K[:, h:, :h].mT, C[:, :h, h:]))
        R = pair(R[:, :h, :h] - Wr.mT @ Wr, R[:, h:, h:] + Vr.mT @ Vr)
        K = pair(K[:, :h, :h] - Wr.mT @ Wc, K[:, h:, h:] + Vr.mT @ Vc)
        C = pair(C[:, :h, :h] - Wc.mT @ Wc, C[:, h:, h:] + Vc.mT @ Vc)
        logs = [2 * x.diagonal(dim1=-2, dim2=-1).log().sum(-1) for x in (later, earlier)]
        value = pair(value + logs[0], value + logs[1])
        middle = torch.minimum(start + h, stop)
        start, stop = pair(start, middle), pair(middle, stop)
        m = h
    value = value + R[:, 0, 0].log()
    return value[start < stop]
