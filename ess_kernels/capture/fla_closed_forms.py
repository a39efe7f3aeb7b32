"""Closed forms of flash-linear-attention's functions, from the arguments that these take.

Each calls the constructor of an operator, after what the kernel does and the constructor does not, or with the names
and the layout that it has.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import operators
from ..operators.delta_inputs import log_decays, normalized
from ..operators.polynomial import EPS
from ..operators.structure import Operator
from .call import Refused

Constructor = TypeVar("Constructor", bound=Callable[..., Operator])


def passing_to(constructor: Callable[..., Operator], *made_here: str) -> Callable[[Constructor], Constructor]:
    """Shows which `**options` a function takes: the constructor's arguments, but for those that it makes itself."""

    def decorate(function: Constructor) -> Constructor:
        own = [x for x in inspect.signature(function).parameters.values() if x.kind is not x.VAR_KEYWORD]
        known = {*made_here, *(x.name for x in own)}
        options = [
            x.replace(kind=x.KEYWORD_ONLY)
            for x in inspect.signature(constructor).parameters.values()
            if x.name not in known
        ]
        function.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return function

    return decorate


def gated_if_asked(constructor: Callable[..., Operator]) -> Callable[..., Operator]:
    """The constructor, without the parameters of a gate that the kernel is not asked to make and so does not read."""

    @functools.wraps(constructor)
    def made(**arguments: Any) -> Operator:
        if not arguments.get("use_gate_in_kernel"):
            arguments = {name: x for name, x in arguments.items() if name not in ("A_log", "dt_bias", "lower_bound")}
        return constructor(**arguments)

    return made


def with_steps(constructor: Callable[..., Operator]) -> Callable[..., Operator]:
    """The constructor, with ones for step sizes `beta` that are None."""

    @functools.wraps(constructor)
    def made(**arguments: Any) -> Operator:
        if arguments.get("beta") is None:
            gates = arguments.get("g")
            arguments["beta"] = _ones(arguments["q"]) if gates is None else torch.ones_like(gates)
        return constructor(**arguments)

    return made


def _ones(x: Tensor) -> Tensor:
    """`[B, T, H]` of ones for `x` `[B, T, H, K]`."""
    return x.new_ones(x.shape[:3])


@passing_to(operators.attention, "is_causal", "attn_mask", "softcap", "alibi_slopes")
def attention(q: Tensor, k: Tensor, *, g: Tensor | None = None, **options: Any) -> Operator:
    """Attention whose tensors have the time before the heads."""
    g = None if g is None else g.transpose(1, 2)
    return operators.attention(q.transpose(1, 2), k.transpose(1, 2), g=g, **options)


@passing_to(operators.based, "cu_seqlens")
def based(q: Tensor, k: Tensor, *, use_norm: bool, **options: Any) -> Operator:
    if not use_norm:
        raise Refused("use_norm=False: based always divides by the row sums")
    return operators.based(q, k, **options)


@passing_to(operators.rebased, "scale", "cu_seqlens")
def rebased(q: Tensor, k: Tensor, *, eps: float, use_scale: bool, use_normalize: bool, **options: Any) -> Operator:
    if not use_normalize or eps != EPS:
        raise Refused(f"use_normalize={use_normalize}, eps={eps}: rebased divides by the row sums + {EPS}")
    return operators.rebased(q, k, scale=None if use_scale else 1.0, **options)


@passing_to(operators.simple_gla)
def simple_gla(
    q: Tensor, k: Tensor, *, g: Tensor | None = None, g_gamma: Tensor | None = None, **options: Any
) -> Operator:
    """Without gates it is linear attention."""
    if g is None and g_gamma is None:
        return operators.linear_attention(q, k, **options)
    return operators.simple_gla(q, k, g=g, g_gamma=g_gamma, **options)


@passing_to(operators.gated_delta_rule)
def gated_delta_rule(q: Tensor, k: Tensor, *, g: Tensor | None, beta: Tensor | None = None, **options: Any) -> Operator:
    """Without gates it is the delta rule, which has its own constructor where nothing else is asked for."""
    if beta is None:
        beta = _ones(q) if g is None else torch.ones_like(g)
    g = torch.zeros_like(beta) if g is None else g
    return gated_if_asked(operators.gated_delta_rule)(q=q, k=k, g=g, beta=beta, **options)


@passing_to(operators.gated_delta_product)
def gated_delta_product(q: Tensor, k: Tensor, *, use_qk_l2norm_in_kernel: bool = False, **options: Any) -> Operator:
    q, k = (normalized(x, use_qk_l2norm_in_kernel) for x in (q, k))
    return operators.gated_delta_product(q, k, **options)


def _takes_gate(constructor: Callable[..., Operator]) -> Callable[..., Operator]:
    """A constructor that takes normal queries, keys and gates, as one that may be given raw ones."""

    def made(
        q: Tensor,
        k: Tensor,
        *,
        g: Tensor,
        use_qk_l2norm_in_kernel: bool = True,
        use_gate_in_kernel: bool = False,
        A_log: Tensor | None = None,
        dt_bias: Tensor | None = None,
        lower_bound: float | None = None,
        **options: Any,
    ) -> Operator:
        q, k = (normalized(x, use_qk_l2norm_in_kernel) for x in (q, k))
        if use_gate_in_kernel:
            g = log_decays(g, True, A_log, dt_bias, lower_bound)
        return constructor(q, k, g=g, **options)

    made.__name__ = constructor.__name__
    return passing_to(constructor)(made)


gdn2 = _takes_gate(operators.gdn2)
precond_kda = _takes_gate(operators.precond_kda)


@passing_to(operators.momentum_delta_rule)
def momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    *,
    log_alpha: Tensor,
    p: Tensor | None = None,
    beta: Tensor | None = None,
    eta: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool,
    use_p_times_alpha: bool,
    **options: Any,
) -> Operator:
    """The kernel normalises `q`, `k` and `p`, and multiplies `p` by the memory's decay."""
    q, k, p = (normalized(x, use_qk_l2norm_in_kernel) for x in (q, k, k if p is None else p))
    if use_p_times_alpha:
        p = p * log_alpha.exp()[..., None]
    beta, eta = (_ones(q) if x is None else x for x in (beta, eta))
    return operators.momentum_delta_rule(q, k, p=p, log_alpha=log_alpha, beta=beta, eta=eta, **options)


@passing_to(operators.rwkv7, "b")
def rwkv7_of_kk(r: Tensor, w: Tensor, k: Tensor, kk: Tensor, a: Tensor, **options: Any) -> Operator:
    """RWKV-7 whose rank-one term is given by the normalised key and its learning rate."""
    return operators.rwkv7(r, w, k, -kk, kk * a, **options)


@passing_to(operators.nsa)
def nsa(q: Tensor, k: Tensor, *, block_indices: Tensor | None, block_counts: int | Tensor, **options: Any) -> Operator:
    """Native sparse attention to blocks that the caller has chosen."""
    if block_indices is None:
        raise Refused("block_indices is None: the kernel chooses the blocks itself")
    number = torch.arange(block_indices.shape[-1], device=block_indices.device)
    counts = block_counts[..., None] if isinstance(block_counts, Tensor) else block_counts
    return operators.nsa(q, k, block_indices=block_indices.masked_fill(number >= counts, -1), **options)
