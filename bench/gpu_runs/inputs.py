"""The operators that `gpu.py` measures: those of `inputs.py`, in float32 and drawn on the device itself.

`keep` leaves only the first heads of an operator, drawn with the rest: what is checked is part of what is timed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from ess_kernels import operators
from ess_kernels.operators import Operator

from .cases import Row, Sizes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_device(toy: bool) -> None:
    """Ends the program where there is nothing to measure on."""
    if DEVICE.type != "cuda" and not toy:
        raise SystemExit("there is no CUDA device; `gpu.py --toy` runs everything at toy sizes in Triton's interpreter")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE, generator=_generator(seed))


def uniform(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, dtype=dtype, device=DEVICE, generator=_generator(seed))


def _steps(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    """Log-uniform in [1e-3, 1e-1]."""
    return torch.exp(math.log(1e-3) + math.log(100) * uniform(seed, *shape, dtype=dtype))


def gla(
    length: int, n: int, heads: int, keep: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Operator:
    """`q = randn / sqrt(n)`, `k = randn`, `g = logsigmoid(randn) / 16`."""
    q, k, g = (normal(seed + s, 1, length, heads, n, dtype=dtype)[:, :, :keep] for s in range(3))
    return operators.gla(q / math.sqrt(n), k, logsigmoid(g) / 16, scale=1.0)


def _delta_inputs(
    length: int, n: int, heads: int, keep: int | None, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors `q` and `k`, and steps `beta = sigmoid(randn)`."""
    q, k = (normalize(normal(seed + s, 1, length, heads, n, dtype=dtype), dim=-1)[:, :, :keep] for s in range(2))
    return q, k, torch.sigmoid(normal(seed + 2, 1, length, heads, dtype=dtype))[:, :, :keep]


def gated_delta_rule(
    length: int, n: int, heads: int, keep: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Operator:
    """Unit vectors `q` and `k`, `beta = sigmoid(randn)`, a gate a token, `g = logsigmoid(randn) / 16`."""
    q, k, beta = _delta_inputs(length, n, heads, keep, seed, dtype)
    g = logsigmoid(normal(seed + 3, 1, length, heads, dtype=dtype))[:, :, :keep] / 16
    return operators.gated_delta_rule(q, k, g=g, beta=beta, scale=1.0)


def kda(
    length: int, n: int, heads: int, keep: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Operator:
    """The same with a gate a coordinate."""
    q, k, beta = _delta_inputs(length, n, heads, keep, seed, dtype)
    g = logsigmoid(normal(seed + 3, 1, length, heads, n, dtype=dtype))[:, :, :keep] / 16
    return operators.kda(q, k, g=g, beta=beta, scale=1.0)


def rwkv7(
    length: int, n: int, heads: int, keep: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Operator:
    """Updates of their own: `k` as written is randn, what is looked up and taken away is a unit vector."""
    r, key, rate = _delta_inputs(length, n, heads, keep, seed, dtype)
    w, k = (normal(seed + s, 1, length, heads, n, dtype=dtype)[:, :, :keep] for s in (3, 4))
    return operators.rwkv7(r, -0.6 * torch.sigmoid(w), k, -key, key * rate[..., None])


def ssd(
    length: int, n: int, heads: int, keep: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Operator:
    """Mamba-2 at initialisation: `A` uniform in [-16, -1], steps log-uniform, one group of `B` and `C / sqrt(n)`."""
    dt = _steps(seed, 1, length, heads, dtype=dtype)[:, :, :keep]
    A = -1 - 15 * uniform(seed + 1, heads, dtype=dtype)[:keep]
    B, C = (normal(seed + s, 1, length, 1, n, dtype=dtype) for s in (2, 3))
    return operators.ssd(dt, A, B, C / math.sqrt(n))


def mamba(
    length: int, n: int, heads: int, keep: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Operator:
    """Mamba at initialisation: `A = -[1..n]`, log-uniform steps, B and C shared by the channels."""
    delta = _steps(seed, 1, heads, length, dtype=dtype)[:, :keep]
    A = -torch.arange(1, n + 1, device=DEVICE).to(dtype).repeat(delta.shape[1], 1)
    B, C = (normal(seed + s, 1, n, length, dtype=dtype) for s in (1, 2))
    return operators.selective_scan(delta, A, B, C)


def attention(
    length: int, n: int, heads: int, keep: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Operator:
    """Softmax of `2 randn . randn / sqrt(n)`."""
    q, k = (normal(seed + s, 1, heads, length, n, dtype=dtype)[:, :keep] for s in range(2))
    return operators.attention(2 * q, k, scale=1 / math.sqrt(n))


FAMILIES = {
    "gla": gla,
    "gated_delta_rule": gated_delta_rule,
    "kda": kda,
    "ssd": ssd,
    "mamba": mamba,
    "attention": attention,
}


def operator(row: Row, sizes: Sizes, keep: int | None = None) -> Operator:
    return FAMILIES[row.family](sizes["length"], sizes["n"], sizes["heads"], keep)


def matrices(sizes: Sizes) -> Tensor:
    dtype = torch.float32 if sizes["bits"] == 32 else torch.float64
    return normal(0, sizes["batch"], sizes["n"], sizes["n"], dtype=dtype)
