"""What the kernels are measured beside: forward passes of the layers, and other programs for small singular values.

Packages that are not installed raise ImportError, which the report says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention

from .cases import Sizes
from .inputs import DEVICE, normal, uniform

HALF = torch.bfloat16


def layer_forward(family: str, sizes: Sizes) -> tuple[str, Callable[[], Any]]:
    """The mixer's own forward pass as a model runs it: bfloat16, values as wide as keys (64 for Mamba-2's heads)."""
    length, n, heads = sizes["length"], sizes["n"], sizes["heads"]
    if family == "attention":
        q, k, v = (normal(seed, 1, heads, length, n, dtype=HALF) for seed in range(3))
        return "F.scaled_dot_product_attention", lambda: scaled_dot_product_attention(q, k, v, is_causal=True)
    if family == "gla":
        from fla.ops.gla import chunk_gla

        q, k, v, g = (normal(seed, 1, length, heads, n, dtype=HALF) for seed in range(4))
        g = logsigmoid(g.float()) / 16
        return "fla chunk_gla", lambda: chunk_gla(q, k, v, g)
    if family in ("gated_delta_rule", "kda"):
        return _delta_forward(family, sizes)
    if family == "ssd":
        from fla.ops.simple_gla import chunk_simple_gla

        q, k = (normal(seed, 1, length, heads, n, dtype=HALF) for seed in range(2))
        v = normal(2, 1, length, heads, 64, dtype=HALF)
        g = -uniform(3, 1, length, heads)
        return "fla chunk_simple_gla (Mamba-2's recurrence)", lambda: chunk_simple_gla(q, k, v, g)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta = normal(0, 1, heads, length), uniform(1, 1, heads, length)
    A = -torch.arange(1, n + 1, device=DEVICE).float().repeat(heads, 1)
    B, C = (normal(seed, 1, n, length) for seed in (2, 3))
    return "mamba_ssm selective_scan_fn (float32)", lambda: selective_scan_fn(u, delta, A, B, C)


def _delta_forward(family: str, sizes: Sizes) -> tuple[str, Callable[[], Any]]:
    length, n, heads = sizes["length"], sizes["n"], sizes["heads"]
    q, k, v = (normal(seed, 1, length, heads, n, dtype=HALF) for seed in range(3))
    q, k = normalize(q, dim=-1), normalize(k, dim=-1)
    beta = uniform(3, 1, length, heads, dtype=HALF)
    if family == "kda":
        from fla.ops.kda import chunk_kda

        g = logsigmoid(normal(4, 1, length, heads, n)) / 16
        return "fla chunk_kda", lambda: chunk_kda(q, k, v, g, beta)
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    gate = logsigmoid(normal(4, 1, length, heads)) / 16
    return "fla chunk_gated_delta_rule", lambda: chunk_gated_delta_rule(q, k, v, gate, beta)


def spectra_peers(few: Tensor, many: Tensor) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """Names, calls and numbers of matrices; what is slow gets few of them."""
    some = many[: max(1, len(many) // 200)]
    yield "torch.linalg.svdvals", lambda: torch.linalg.svdvals(few), len(few)
    # loses half of the digits: a speed to compare with, not an answer
    yield "torch.linalg.eigvalsh of the Gram matrix", lambda: torch.linalg.eigvalsh(some.mT @ some), len(some)
    if not few.is_cuda:
        return
    try:
        import cupy
    except ImportError:
        return
    theirs_few, theirs = cupy.from_dlpack(few.contiguous()), cupy.from_dlpack(some.contiguous())
    yield "cupy.linalg.svd", lambda: cupy.linalg.svd(theirs_few, compute_uv=False), len(few)
    name = "cupy.linalg.eigvalsh of the Gram matrix"
    yield name, lambda: cupy.linalg.eigvalsh(theirs.transpose(0, 2, 1) @ theirs), len(some)
