"""Roots of Gramians, for functions of the Gramian alone: the R of a QR whose backward is `Q grad_R`.

If `f(A) = h(A^T A)` then `df/dA = A S` with a symmetric `S`, and with `A = Q R` also `df/dR = R S`: so `df/dA` is
`Q df/dR`. Nothing is inverted, and `A` may be rank deficient, where the backward of a QR itself divides by R.

This holds for first derivatives. What a backward computes from R is no function of the Gramian alone, so a second
derivative needs the backward of the QR itself. A root is therefore a pair: the same numbers twice, `first` for the
functions and `again` for their backward. Gradients reach `again` in second derivatives only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.boundary import carry

# a diagonal entry of R below this share of the largest one means that A has no full column rank
SINGULAR = 1e-10


class Root(NamedTuple):
    """A root `[N, m, n]`, `m <= n`, of a Gramian, twice: see the module."""

    first: Tensor
    again: Tensor


def root_step(root: Root, Phi: Tensor, rows: Tensor) -> Root:
    """A root of the Gramian of what was there, carried through a block, and of new rows.

    Args:
        root: `[N, r, n]` of what was there; r may be 0.
        Phi: transitions of the block, `[N, n]` if diagonal, else `[N, n, n]`.
        rows: `[N, c, n]`.
    """
    if root.first.shape[-2] + rows.shape[-2] <= rows.shape[-1]:
        # no more rows than states: they are a root themselves, and so were all before them
        stacked = torch.cat([carry(root.first, Phi), rows], -2)
        return Root(stacked, stacked)
    return Root(*_RootStep.apply(root.first, root.again, Phi, rows)[:2])


class _RootStep(torch.autograd.Function):
    """Returns R twice, and the QR as LAPACK packs it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(root: Tensor, again: Tensor, Phi: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        packed, tau = torch.geqrf(torch.cat([carry(root, Phi), rows], -2))
        R = packed[..., : rows.shape[-1], :].triu()
        return R, R.view_as(R), packed, tau

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:], *output[2:])
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        root, Phi, rows, packed, tau = ctx.saved_tensors
        of_first = of_again = of_Phi = of_rows = None
        if first is not None:
            if torch.is_grad_enabled():
                stacked = _QTimes.apply(first, _stack(root, Phi, rows), packed, tau)
            else:
                stacked = _q_times(first, packed, tau)
            of_first, of_Phi, of_rows = _unstack(stacked, root, Phi)
        if second is not None:
            of_again, more_Phi, more_rows = _unstack(_backward_of_R(_stack(root, Phi, rows), second), root, Phi)
            of_Phi = more_Phi if of_Phi is None else of_Phi + more_Phi
            of_rows = more_rows if of_rows is None else of_rows + more_rows
        return of_first, of_again, of_Phi, of_rows


def _stack(root: Tensor, Phi: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([carry(root, Phi), rows], -2)


def _unstack(gradient: Tensor, root: Tensor, Phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to root, Phi and rows from that of their `_stack`."""
    carried, of_rows = gradient.tensor_split([root.shape[-2]], -2)
    if Phi.dim() < root.dim():
        return carried * Phi[..., None, :], (carried * root).sum(-2), of_rows
    return carried @ Phi, carried.mT @ root, of_rows


def _q_times(x: Tensor, packed: Tensor, tau: Tensor) -> Tensor:
    """`Q x`, `[N, m, n]`, of `x` `[N, n, n]`."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, packed.shape[-2] - x.shape[-2]))
    return torch.ormqr(packed, tau, padded)


class _QTimes(torch.autograd.Function):
    """`Q x` of `A = Q R`, as a function of `x` and `A`; its backward is only asked for in second derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, A: Tensor, packed: Tensor, tau: Tensor) -> Tensor:
        return _q_times(x, packed, tau)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, A = ctx.saved_tensors
        Q, R = _full_rank_qr(A, x)
        of_Q = grad @ x.mT
        return Q.mT @ grad, _of_qr(Q, R, of_Q, -(of_Q.mT @ Q)), None, None


def _backward_of_R(A: Tensor, grad: Tensor) -> Tensor:
    """The gradient with respect to `A` of a function of the R of its QR, whatever the function."""
    Q, R = _full_rank_qr(A, grad)
    return _of_qr(Q, R, torch.zeros_like(Q), R @ grad.mT)


def _of_qr(Q: Tensor, R: Tensor, of_Q: Tensor, M: Tensor) -> Tensor:
    """The backward of a QR, from `M = R of_R^T - of_Q^T Q`: `(of_Q + Q (M, its lower triangle mirrored)) R^-T`."""
    mirrored = M.tril() + M.tril(-1).mT
    return torch.linalg.solve_triangular(R, (of_Q + Q @ mirrored).mT, upper=True).mT


def _full_rank_qr(A: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """A QR that can be differentiated wherever `weights` are not zero, or an error."""
    Q, R = torch.linalg.qr(A)
    sizes = R.diagonal(dim1=-2, dim2=-1).abs()
    singular = (sizes <= SINGULAR * sizes.amax(-1, keepdim=True)).any(-1)
    if bool((singular & (weights != 0).flatten(-2).any(-1)).any()):
        raise RuntimeError(
            "a second derivative was asked for where the states of a recurrence are linearly dependent: the roots of "
            "their Gramians have none. First derivatives exist there, and second ones of soft_ess of the same operator "
            "as a matrix, dense(op.dense())"
        )
    return Q, R
