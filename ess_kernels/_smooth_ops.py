"""Smooth functions of singular values: the soft count, the nuclear norm, and the gradients of these and of entropy-ESS.

As in `_ops`, what is computed without a gradient is a custom op where a graph is being compiled. Gradients run outside
of graphs, as plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import backends
from ._calls import asked, call, distinct_positions, how_many
from ._ops import TAGS, entropy_ess
from ._readable import refuse_tangents, without_numbers
from .backends.base import Task, wants_gradient
from .by_sequence import answer_by_sequence
from .gradients import NuclearNorm, SoftCount, SpectralFunction, spectral_values
from .memory import out_of_memory_as_memory_error
from .operators.packing import unpack
from .operators.separate import SeparateSequences
from .operators.structure import Operator
from .processes import on_one_thread_if_forked


def soft_ess(op: Operator, atol: list[float], positions: list[int] | None, backend: str) -> Tensor:
    """float64 `[M, *batch, P]`."""
    return _differentiable_or(
        op,
        lambda: _with_gradient(op, SoftCount(atol), positions, "soft_ess", backend),
        lambda: call(_soft_op, _soft_ess, op, atol, positions, backend),
        "soft_ess",
    )


def nuclear_norm(op: Operator, positions: list[int] | None, backend: str) -> Tensor:
    """float64 `[*batch, P]`."""
    return _differentiable_or(
        op,
        lambda: _with_gradient(op, NuclearNorm(), positions, "nuclear_norm", backend)[0],
        lambda: _total(op, positions, backend),
        "nuclear_norm",
    )


def _differentiable_or(
    op: Operator, differentiable: Callable[[], Tensor], plain: Callable[[], Tensor], task: Task
) -> Tensor:
    refuse_tangents("op", op.inputs)
    if wants_gradient(task, op):
        if torch.compiler.is_compiling():
            from ._uncompiled import differentiable as outside

            return outside(differentiable)
        if not without_numbers("op", op.inputs, gradients=True):
            return differentiable()
    return plain()


@torch.no_grad()
def _total(op: Operator, positions: list[int] | None, backend: str) -> Tensor:
    return entropy_ess(op, positions, backend)[2]


@out_of_memory_as_memory_error
@on_one_thread_if_forked
def _with_gradient(
    op: Operator, function: SpectralFunction, positions: Sequence[int] | None, task: Task, backend: str
) -> Tensor:
    """The functions `[M, *batch, P]`, differentiable."""
    if isinstance(op, SeparateSequences):
        return answer_by_sequence(
            op,
            positions,
            lambda one, its: [_with_gradient(one, function, its, task, backend)],
            [torch.float64],
            several=function.number,
        )[0]
    backends.choose(backend, task, op.inner)
    wanted, back = distinct_positions(op, positions)
    if op.num_heads and len(wanted):
        found = spectral_values(op.inner, op.inner_positions(wanted).tolist(), function)
    else:
        found = torch.zeros(op.num_heads, function.number, len(wanted), dtype=torch.float64, device=op.device)
    return asked(found, back).movedim(1, 0).reshape(function.number, *op.batch_shape, how_many(op, positions))


@out_of_memory_as_memory_error
@on_one_thread_if_forked
def _soft_ess(op: Operator, atol: Sequence[float], positions: Sequence[int] | None, backend: str) -> Tensor:
    if isinstance(op, SeparateSequences):
        backends.choose(backend, "soft_ess", op.empty_sequence())
        return answer_by_sequence(
            op, positions, lambda one, its: [_soft_ess(one, atol, its, backend)], [torch.float64], several=len(atol)
        )[0]
    chosen = backends.choose(backend, "soft_ess", op.inner)
    wanted, back = distinct_positions(op, positions)
    absolute = torch.tensor(atol, dtype=torch.float64, device=op.device)
    if op.num_heads and len(wanted) and len(absolute):
        found = chosen.soft_ess(op.inner, op.inner_positions(wanted), absolute)
    else:
        found = torch.zeros(op.num_heads, len(absolute), len(wanted), dtype=torch.float64, device=op.device)
    shape = (len(absolute), *op.batch_shape, how_many(op, positions))
    return asked(found, back).movedim(1, 0).reshape(shape).contiguous()


@torch.library.custom_op("ess_kernels::soft_ess", mutates_args=(), tags=TAGS)
def _soft_op(
    tensors: Sequence[Tensor | None],
    description: str,
    length: int,
    atol: Sequence[float],
    positions: Sequence[int] | None,
    backend: str,
) -> Tensor:
    return _soft_ess(unpack(tensors, description, length), atol, positions, backend)


@_soft_op.register_fake
def _(tensors, description, length, atol, positions, backend):
    op = unpack(tensors, description, length)
    shape = (len(atol), *op.batch_shape, how_many(op, positions))
    return torch.empty(shape, dtype=torch.float64, device=op.device)
