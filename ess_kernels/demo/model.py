"""A byte-level language model with four different sequence mixers, small enough to read and to ship.

Embedding, four residual blocks (RMSNorm, mixer, RMSNorm, gated MLP), tied output. Every mixer computes its mixing
matrix `T` outright, in float32, and mixes by `y = T v`: slow for long sequences, but `T` is the very thing whose
effective state-size is measured, and `Mixer.operator` hands the same tensors to `ess_kernels.operators`.

Shapes: `x [B, L, width]`, heads as `[B, L, H, K]` (flash-linear-attention's layout), `T [B, H, L, L]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from ess_kernels.operators.structure import Operator


@dataclass(frozen=True)
class Config:
    """Sizes of the shipped model; `layers` names one mixer of `MIXERS` per block."""

    width: int = 96
    heads: int = 3
    state: int = 32
    hidden: int = 192
    layers: tuple[str, ...] = ("mamba2", "gla", "linear_attention", "attention")


class RMSNorm(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Mixer(nn.Module):
    """A causal mixer: `matrix` is `T`, `values` is what it mixes, and what follows the mixing is not part of `T`."""

    title: str
    kind: str  # its name in `MIXERS` and in results

    def __init__(self, config: Config):
        super().__init__()
        self.heads = config.heads
        self.state = config.state
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.norm = RMSNorm(config.width // config.heads)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """`[B, L, H * K]` to `[B, L, H, K]`."""
        return x.unflatten(-1, (self.heads, -1))

    def values(self, x: Tensor) -> Tensor:
        """What is mixed: `[B, H, L, V]`."""
        return self.split(self.value(x)).transpose(1, 2)

    def matrix(self, x: Tensor) -> Tensor:
        """The mixing matrix `T`: `[B, H, L, L]`, zero above the diagonal."""
        raise NotImplementedError

    def operator(self, x: Tensor) -> Operator:
        """The same map for `ess_kernels`, from the raw tensors."""
        raise NotImplementedError

    def mix(self, x: Tensor) -> Tensor:
        """`T v`: `[B, H, L, V]`."""
        return self.matrix(x) @ self.values(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.mix(x).transpose(1, 2)).flatten(2))


def rotary(x: Tensor) -> Tensor:
    """Rotary position embedding of `[B, L, H, K]`: pair `(m, m + K/2)` turns by `i / 10000^(2m/K)` at position i."""
    length, size = x.shape[1], x.shape[-1]
    speed = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), speed)
    cos = angle.cos().to(x)[:, None]
    sin = angle.sin().to(x)[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Attention(Mixer):
    """Softmax attention with rotary positions and normalised queries and keys."""

    title = "softmax attention"
    kind = "attention"

    def __init__(self, config: Config):
        super().__init__(config)
        self.query = nn.Linear(config.width, config.heads * config.state, bias=False)
        self.key = nn.Linear(config.width, config.heads * config.state, bias=False)
        self.query_norm = RMSNorm(config.state)
        self.key_norm = RMSNorm(config.state)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k in PyTorch's layout `[B, H, L, E]`."""
        q = rotary(self.query_norm(self.split(self.query(x))))
        k = rotary(self.key_norm(self.split(self.key(x))))
        return q.transpose(1, 2), k.transpose(1, 2)

    def matrix(self, x: Tensor) -> Tensor:
        q, k = self.inputs(x)
        future = torch.full((x.shape[1], x.shape[1]), -math.inf, device=x.device).triu(1)
        return (q * self.state**-0.5 @ k.transpose(-1, -2) + future).softmax(-1)

    def operator(self, x: Tensor) -> Operator:
        from ess_kernels import operators

        return operators.attention(*self.inputs(x))


class GLA(Mixer):
    """Gated linear attention: a low-rank gate per channel, `logsigmoid(.) / 16` as in the paper's own layers."""

    title = "gated linear attention"
    kind = "gla"
    rank = 16
    block = 32

    def __init__(self, config: Config):
        super().__init__(config)
        size = config.heads * config.state
        self.query = nn.Linear(config.width, size, bias=False)
        self.key = nn.Linear(config.width, size, bias=False)
        self.gate_down = nn.Linear(config.width, self.rank, bias=False)
        self.gate_up = nn.Linear(self.rank, size)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and the natural-log gates g, `[B, L, H, K]`."""
        gate = F.logsigmoid(self.gate_up(self.gate_down(x))) / 16
        return self.split(self.query(x)), self.split(self.key(x)), self.split(gate)

    def matrix(self, x: Tensor) -> Tensor:
        q, k, g = (t.transpose(1, 2) for t in self.inputs(x))
        q = q * self.state**-0.5
        length = x.shape[1]
        decay = g.double().cumsum(-2)
        rows = []
        # Decays are taken relative to a block's first row: only inside the block does one exceed 1, and it stays small.
        for start in range(0, length, self.block):
            stop = min(start + self.block, length)
            first = decay[..., start : start + 1, :]
            left = q[..., start:stop, :] * (decay[..., start:stop, :] - first).to(q).exp()
            right = k[..., :stop, :] * (first - decay[..., :stop, :]).to(k).exp()
            band = (left @ right.transpose(-1, -2)).tril(start)
            rows.append(F.pad(band, (0, length - stop)))
        return torch.cat(rows, -2)

    def operator(self, x: Tensor) -> Operator:
        from ess_kernels import operators

        return operators.gla(*self.inputs(x))


class LinearAttention(Mixer):
    """Linear attention with the positive feature map `elu(.) + 1`; each row of `T` is divided by its sum."""

    title = "linear attention"
    kind = "linear_attention"

    def __init__(self, config: Config):
        super().__init__(config)
        self.query = nn.Linear(config.width, config.heads * config.state, bias=False)
        self.key = nn.Linear(config.width, config.heads * config.state, bias=False)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k after the feature map, `[B, L, H, K]`."""
        return F.elu(self.split(self.query(x))) + 1, F.elu(self.split(self.key(x))) + 1

    def matrix(self, x: Tensor) -> Tensor:
        q, k = (t.transpose(1, 2) for t in self.inputs(x))
        total = (q * k.cumsum(-2)).sum(-1, keepdim=True)  # the sum of row i, before T exists
        return (q / total @ k.transpose(-1, -2)).tril()

    def operator(self, x: Tensor) -> Operator:
        from ess_kernels import operators

        return operators.linear_attention(*self.inputs(x), normalize=True)


class Mamba2(Mixer):
    """Mamba-2 (state-space duality): short convolution, then `B`, `C`, `dt` with one group shared by all heads.

    The convolution and the output gate lie outside `T`, as in the upstream kernel.
    """

    title = "Mamba-2"
    kind = "mamba2"
    taps = 4

    def __init__(self, config: Config):
        super().__init__(config)
        size = config.width + 2 * config.state
        self.value = nn.Linear(config.width, size, bias=False)  # values, B and C together: the convolution sees all
        self.conv = nn.Conv1d(size, size, self.taps, groups=size)
        self.gate = nn.Linear(config.width, config.width, bias=False)
        self.step = nn.Linear(config.width, config.heads, bias=False)
        step = torch.logspace(-3, -1, config.heads)  # the time steps that training starts from
        self.step_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.log_rate = nn.Parameter(torch.linspace(1, 16, config.heads).log())

    def convolved(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """values `[B, L, width]`, `B` and `C` `[B, L, 1, n]`."""
        wide = F.pad(self.value(x).transpose(1, 2), (self.taps - 1, 0))
        mixed = F.silu(self.conv(wide)).transpose(1, 2)
        values, write, read = mixed.split([mixed.shape[-1] - 2 * self.state, self.state, self.state], -1)
        return values, write[:, :, None], read[:, :, None]

    def values(self, x: Tensor) -> Tensor:
        return self.split(self.convolved(x)[0]).transpose(1, 2)

    def matrix(self, x: Tensor) -> Tensor:
        _, write, read = self.convolved(x)
        step = F.softplus(self.step(x) + self.step_bias).transpose(1, 2)  # [B, H, L]
        decay = (-self.log_rate.exp()[:, None] * step).double().cumsum(-1)
        future = torch.full((x.shape[1], x.shape[1]), -math.inf, device=x.device).triu(1)
        lag = (decay[..., :, None] - decay[..., None, :]).to(x) + future
        write = write.transpose(1, 2) * step[..., None]  # [B, H, L, n]
        return read.transpose(1, 2) @ write.transpose(-1, -2) * lag.exp()

    def operator(self, x: Tensor) -> Operator:
        from ess_kernels import operators

        _, write, read = self.convolved(x)
        return operators.ssd(self.step(x), -self.log_rate.exp(), write, read, dt_bias=self.step_bias, dt_softplus=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.mix(x).transpose(1, 2)).flatten(2) * F.silu(self.gate(x)))


MIXERS: dict[str, type[Mixer]] = {mixer.kind: mixer for mixer in (Attention, GLA, LinearAttention, Mamba2)}


class Block(nn.Module):
    def __init__(self, config: Config, mixer: str):
        super().__init__()
        self.mixer_norm = RMSNorm(config.width)
        self.mixer: Mixer = MIXERS[mixer](config)
        self.mlp_norm = RMSNorm(config.width)
        self.up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x))
        gate, value = self.up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class ByteLM(nn.Module):
    """Logits of the next byte at every position: `input_ids [B, L]` (int64, 0..255: bytes) to `[B, L, 256]`."""

    def __init__(self, config: Config | None = None):
        super().__init__()
        self.config = config or Config()
        self.embedding = nn.Embedding(256, self.config.width)
        self.blocks = nn.ModuleList(Block(self.config, mixer) for mixer in self.config.layers)
        self.norm = RMSNorm(self.config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    def loss(self, text: Tensor) -> Tensor:
        """Mean cross-entropy, in bits per byte, of each byte given those before it (the first is not scored)."""
        return self.losses(text).mean()

    def losses(self, text: Tensor) -> Tensor:
        """The same byte by byte: `[B, L - 1]`."""
        return F.cross_entropy(self(text[:, :-1]).transpose(1, 2), text[:, 1:], reduction="none") / math.log(2)

    def operators(self, text: Tensor) -> list[tuple[Mixer, Operator]]:
        """What every layer's mixer does to this text."""
        x = self.embedding(text)
        found = []
        for block in self.blocks:
            assert isinstance(block, Block)
            found.append((block.mixer, block.mixer.operator(block.mixer_norm(x))))
            x = block(x)
        return found
