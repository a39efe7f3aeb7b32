"""The metrics as custom ops: what `torch.compile` keeps of them in a graph.

Whatever looks at numbers (checks of the data, redone positions, the backend's choice) happens inside an op, so that a
function that builds an operator and calls a metric compiles in one piece. Where nothing is being compiled the same
code is called directly: it costs nothing, and profilers and counters see what it does.

Every result comes in its final shape, float before integer and bool, and shares no memory with an input. Gradients do
not pass through the ops: entropy-ESS with a gradient runs outside of graphs, as plain PyTorch. `_smooth_ops` has the
other smooth functions of singular values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends
from ._calls import asked, call, caps, distinct_positions, how_many, largest_rank
from ._readable import must_be_dispatched, refuse_tangents, without_numbers
from .backends.base import wants_gradient
from .by_sequence import answer_by_sequence
from .engine.certainty import Counts, Entropies, entropy_of_values
from .gradients import Entropy, need_of_gradient, spectral_values
from .memory import Need, make_sure, out_of_memory_as_memory_error
from .operators.packing import pack, unpack
from .operators.separate import SeparateSequences
from .operators.structure import Operator
from .processes import on_one_thread_if_forked

# the ops read numbers on the CPU while they run, so CUDA graphs cannot capture them
TAGS = (torch.Tag.cudagraph_unsafe,)

COUNTS = (torch.float64, torch.int64, torch.bool, torch.bool)
ENTROPIES = (torch.float64, torch.float64, torch.float64, torch.bool)

# --- tolerance-ESS ----------------------------------------------------------------------------------------------------


def tolerance_ess(
    op: Operator, atol: list[float], rtol: list[float], positions: list[int] | None, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width, count, redone, unresolved of `M` pairs of tolerances: float64, int64, bool, bool `[M, *batch, P]`."""
    return call(_tolerance_op, _tolerance_ess, op, atol, rtol, positions, backend)


@out_of_memory_as_memory_error
@on_one_thread_if_forked
def _tolerance_ess(
    op: Operator, atol: Sequence[float], rtol: Sequence[float], positions: Sequence[int] | None, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if isinstance(op, SeparateSequences):
        backends.choose(backend, "tolerance_ess", op.empty_sequence())
        width, counts, redone, unresolved = answer_by_sequence(
            op,
            positions,
            lambda one, its: _tolerance_ess(one, atol, rtol, its, backend),
            COUNTS,
            several=len(atol),
            together=backend != "reference",
        )
        return width, torch.minimum(counts, caps(op, positions)), redone, unresolved
    chosen = backends.choose(backend, "tolerance_ess", op.inner)
    distinct, back = distinct_positions(op, positions)
    absolute, relative = (torch.tensor(x, dtype=torch.float64, device=op.device) for x in (atol, rtol))
    if op.num_heads and len(distinct) and len(absolute):
        found = chosen.tolerance_ess(op.inner, op.inner_positions(distinct), absolute, relative)
        if op.inner is not op:
            # rounding errors of the inner operator may have a higher rank
            torch.minimum(found.counts, op.rank_cap(distinct), out=found.counts)
    else:
        found = Counts.empty((op.num_heads, len(absolute), len(distinct)), op.device)
    counts, width, redone, unresolved = (
        asked(x, back).movedim(1, 0).reshape(len(absolute), *op.batch_shape, how_many(op, positions)).contiguous()
        for x in found
    )
    return width, counts, redone, unresolved


@torch.library.custom_op("ess_kernels::tolerance_ess", mutates_args=(), tags=TAGS)
def _tolerance_op(
    tensors: Sequence[Tensor | None],
    description: str,
    length: int,
    atol: Sequence[float],
    rtol: Sequence[float],
    positions: Sequence[int] | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _tolerance_ess(unpack(tensors, description, length), atol, rtol, positions, backend)


@_tolerance_op.register_fake
def _(tensors, description, length, atol, rtol, positions, backend):
    op = unpack(tensors, description, length)
    shape = (len(atol), *op.batch_shape, how_many(op, positions))
    return tuple(torch.empty(shape, dtype=dtype, device=op.device) for dtype in COUNTS)


# --- entropy-ESS ------------------------------------------------------------------------------------------------------


def entropy_ess(op: Operator, positions: list[int] | None, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropy, its error, sum of singular values, unresolved: float64 (three of them) and bool `[*batch, P]`."""
    refuse_tangents("op", op.inputs)
    if wants_gradient("entropy_ess", op):
        if torch.compiler.is_compiling():
            from ._uncompiled import differentiable

            return differentiable(_entropy_ess, op, positions, backend)
        if not without_numbers("op", op.inputs, gradients=True):
            return _entropy_ess(op, positions, backend)
    return call(_entropy_op, _entropy_ess, op, positions, backend)


@out_of_memory_as_memory_error
@on_one_thread_if_forked
def _entropy_ess(op: Operator, positions: Sequence[int] | None, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if isinstance(op, SeparateSequences):
        backends.choose(backend, "entropy_ess", op.empty_sequence())
        ess, error, total, unresolved = answer_by_sequence(
            op, positions, lambda one, its: _entropy_ess(one, its, backend), ENTROPIES
        )
        return ess, error, total, unresolved
    chosen = backends.choose(backend, "entropy_ess", op.inner)
    distinct, back = distinct_positions(op, positions)
    if op.num_heads and len(distinct):
        found = _entropies(chosen, backend, op.inner, op.inner_positions(distinct))
    else:
        found = Entropies.empty((op.num_heads, len(distinct)), op.device)
    shape = (*op.batch_shape, how_many(op, positions))
    ess, error, total, unresolved = (asked(x, back).reshape(shape).contiguous() for x in found)
    return ess, error, total, unresolved


def _entropies(chosen: backends.Backend, backend: str, op: Operator, positions: Tensor) -> Entropies:
    """With a differentiable entropy where one is wanted; what is certified is then found by an engine without one."""
    if not wants_gradient("entropy_ess", op):
        return chosen.entropy_ess(op, positions)
    # before the engine takes its own workspace, of which threads keep some for their next call
    kept = 8 * (2 * op.length**2 if op.state_size is None else op.length * 12 * op.state_size)
    make_sure(need_of_gradient(op, positions.tolist(), Entropy(), kept), op.device)
    with torch.no_grad():
        if any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in op.inputs):
            # inside of torch.func.grad only the inside of an op has ordinary tensors
            pieces = pack(op)
            if pieces is None:
                family = type(op).__name__
                raise NotImplementedError(f"op: torch.func cannot take the gradient of a {family}, torch.autograd can")
            results = _entropy_op(*pieces, positions.tolist(), backend)
            found = Entropies(*(x.reshape(op.num_heads, len(positions)) for x in results))
        else:
            # without a gradient a faster backend may take it
            engine = backends.choose(backend, "entropy_ess", op) if backend == "auto" else chosen
            found = engine.entropy_ess(op, positions)
    values = spectral_values(op, positions.tolist(), Entropy())[:, 0]
    # what is zero to within rounding has no entropy, and a head with bad data none either
    return found._replace(ess=torch.where(found.ess > 0, values, found.ess))


@torch.library.custom_op("ess_kernels::entropy_ess", mutates_args=(), tags=TAGS)
def _entropy_op(
    tensors: Sequence[Tensor | None], description: str, length: int, positions: Sequence[int] | None, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _entropy_ess(unpack(tensors, description, length), positions, backend)


@_entropy_op.register_fake
def _(tensors, description, length, positions, backend):
    op = unpack(tensors, description, length)
    shape = (*op.batch_shape, how_many(op, positions))
    return tuple(torch.empty(shape, dtype=dtype, device=op.device) for dtype in ENTROPIES)


# --- singular values --------------------------------------------------------------------------------------------------


def singular_values(op: Operator, positions: list[int] | None, k: int | None, backend: str) -> Tensor:
    """float64 `[*batch, P, k]`."""
    refuse_tangents("op", op.inputs)
    return call(_values_op, _singular_values, op, positions, k, backend)


@out_of_memory_as_memory_error
@on_one_thread_if_forked
def _singular_values(op: Operator, positions: Sequence[int] | None, k: int | None, backend: str) -> Tensor:
    k = largest_rank(op, positions) if k is None else k
    if isinstance(op, SeparateSequences):
        backends.choose(backend, "singular_values", op.empty_sequence())
        return answer_by_sequence(
            op, positions, lambda one, its: [_singular_values(one, its, k, backend)], [torch.float64], values=k
        )[0]
    chosen = backends.choose(backend, "singular_values", op.inner)
    distinct, back = distinct_positions(op, positions)
    if op.num_heads and len(distinct):
        found = chosen.singular_values(op.inner, op.inner_positions(distinct), k)
        if op.inner is not op:
            beyond = torch.arange(k, device=op.device) >= op.rank_cap(distinct)[:, None]
            found = found.masked_fill(beyond & ~found.isnan(), 0.0)
    else:
        found = torch.zeros(op.num_heads, len(distinct), k, dtype=torch.float64, device=op.device)
    return asked(found, back, -2).reshape(*op.batch_shape, how_many(op, positions), k).contiguous()


@torch.library.custom_op("ess_kernels::singular_values", mutates_args=(), tags=TAGS)
def _values_op(
    tensors: Sequence[Tensor | None],
    description: str,
    length: int,
    positions: Sequence[int] | None,
    k: int | None,
    backend: str,
) -> Tensor:
    return _singular_values(unpack(tensors, description, length), positions, k, backend)


@_values_op.register_fake
def _(tensors, description, length, positions, k, backend):
    op = unpack(tensors, description, length)
    k = largest_rank(op, positions) if k is None else k
    return torch.empty(*op.batch_shape, how_many(op, positions), k, dtype=torch.float64, device=op.device)


# --- small spectra ----------------------------------------------------------------------------------------------------


def small_spectra(
    A: Tensor, right: Tensor | None, atol: list[float] | None, entropy: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Values `[*batch, S]`, entropy `[*batch]` and counts `[M, *batch]`; what is not asked for is empty `[0]`."""
    given = [A] if right is None else [A, right]
    refuse_tangents("A, right", given)
    call = _spectra_op if must_be_dispatched("A, right", given) else _small_spectra
    return call(A.detach(), None if right is None else right.detach(), atol, entropy, backend)


@out_of_memory_as_memory_error
@on_one_thread_if_forked
def _small_spectra(
    A: Tensor, right: Tensor | None, atol: Sequence[float] | None, entropy: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    chosen = backends.choose(backend, "small_spectra", A)
    batch = A.shape[:-2]
    # a copy without bad matrices, a scaled one, and where there is a right factor the product
    size = 2 * sum(x.numel() * x.element_size() for x in (A, right) if x is not None)
    if right is not None:
        size += 2 * batch.numel() * A.shape[-2] * right.shape[-2] * A.element_size()
    make_sure(Need(f"{batch.numel()} matrices", size, size, "fewer matrices at a time"), A.device)
    matrices, other = _one_batch(A), None if right is None else _one_batch(right)
    finite = None
    if not chosen.takes_bad_matrices:
        matrices, finite = _without_bad(matrices)
        if other is not None:
            other, other_finite = _without_bad(other)
            finite = finite & other_finite
    values = chosen.small_spectra(matrices, other)
    if finite is not None:
        values = values.masked_fill(~finite[:, None], torch.nan)
    counts = torch.empty(0, dtype=torch.int64, device=A.device)
    if atol is not None:
        counted = values.isfinite().all(-1)
        if finite is not None:
            counted &= finite
        absolute = torch.tensor(atol, dtype=torch.float64, device=A.device).to(values.dtype)
        counts = (values > absolute[:, None, None]).sum(-1).masked_fill(~counted, -1).reshape(len(atol), *batch)
    ess = entropy_of_values(values).reshape(batch) if entropy else values.new_empty(0)
    return values.reshape(*batch, values.shape[-1]).contiguous(), ess, counts


def _one_batch(x: Tensor) -> Tensor:
    """`[N, m, n]`."""
    return x.reshape(x.shape[:-2].numel(), *x.shape[-2:])


def _without_bad(x: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices `[N, m, n]`, zero where one is not finite, and bool `[N]` whether it is."""
    finite = x.isfinite().flatten(1).all(1)
    return torch.where(finite[:, None, None], x, 0.0), finite


@torch.library.custom_op("ess_kernels::small_spectra", mutates_args=(), tags=TAGS)
def _spectra_op(
    A: Tensor, right: Tensor | None, atol: Sequence[float] | None, entropy: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _small_spectra(A, right, atol, entropy, backend)


@_spectra_op.register_fake
def _(A, right, atol, entropy, backend):
    batch = A.shape[:-2]
    columns = A.shape[-1] if right is None else right.shape[-2]
    return (
        A.new_empty(*batch, torch.sym_min(A.shape[-2], columns)),
        A.new_empty(batch if entropy else 0),
        A.new_empty(0 if atol is None else (len(atol), *batch), dtype=torch.int64),
    )
