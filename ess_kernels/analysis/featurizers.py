"""The paper's sequence mixers (its "featurizers") as small torch modules, each of which shows its operator.

A featurizer maps `x [B, L, width]` to `[B, L, width]`. In between it mixes values over time by one matrix `T` a head,
`y = T v`; `featurizer.operator(x)` is that `T` for `ess_kernels`. The norm of each head and the output projection come
after the mixing and are no part of `T`. Source: appendix D.2 of the paper (arXiv 2504.19561).

Queries and keys are `[B, H, L, K]` here, after a transpose, as in PyTorch's attention.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import operators
from .._checks import finite_float, integer
from ..demo.model import rotary
from ..operators.structure import Operator
from .gated_matrix import gated_matrix

GATE_RANK = 16  # of the low-rank map from a token to its gates, as in the paper


class Featurizer(nn.Module):
    """What all featurizers share: values, heads, the norm after the mixing, and smeared keys.

    *Smeared keys* are made from a learnt blend of each token and the one before it, which is no part of the paper's
    layers. A single layer can then recall: the key of a pair is in the state together with its value.

    Args:
        width: features of a token.
        heads: number of heads H; it divides `width`.
        state: K, the size of a query and a key, which is the state size (TSS); None: `width // heads`.
        smeared: whether keys are smeared.

    Raises:
        ValueError: sizes that are not positive, or heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int, state: int | None = None, *, smeared: bool = False):
        super().__init__()
        self.width = integer("width", width, minimum=1)
        self.heads = integer("heads", heads, minimum=1)
        if width % heads:
            raise ValueError(f"heads: expected a number that divides width={width}, got {heads}")
        self.state = width // heads if state is None else integer("state", state, minimum=1)
        self.smear = nn.Parameter(torch.zeros(width)) if smeared else None
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """`[B, L, H * size]` to `[B, H, L, size]`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def key_input(self, x: Tensor) -> Tensor:
        """What keys are made from: the token, or its blend with the one before. `[B, L, width]`, as `x`."""
        if self.smear is None:
            return x
        before = F.pad(x, (0, 0, 1, -1))
        return x.lerp(before, self.smear.sigmoid())

    def operator(self, x: Tensor) -> Operator:
        """`T` of every sequence and head, for the input that `forward` would get. No values are needed."""
        raise NotImplementedError

    def mix(self, x: Tensor) -> Tensor:
        """`T v`, `[B, L, width]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x).unflatten(-1, (self.heads, -1))
        return self.out(F.rms_norm(mixed, mixed.shape[-1:]).flatten(2))


class QueriesAndKeys(Featurizer):
    """A featurizer whose `T` is made from queries and keys of H heads."""

    rotates = False  # whether queries and keys carry rotary position embeddings

    def __init__(self, width: int, heads: int, state: int | None = None, *, smeared: bool = False):
        super().__init__(width, heads, state, smeared=smeared)
        if self.rotates and self.state % 2:
            raise ValueError(f"state: expected an even size for rotary positions, got {self.state}")
        self.query = nn.Linear(width, heads * self.state, bias=False)
        self.key = nn.Linear(width, heads * self.state, bias=False)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, H, L, K]` each."""
        q, k = self.query(x), self.key(self.key_input(x))
        if self.rotates:
            q, k = (rotary(t.unflatten(-1, (self.heads, -1))).flatten(-2) for t in (q, k))
        return self.split(q), self.split(k)

    def matrix(self, x: Tensor) -> Tensor:
        """`T`, `[B, H, L, L]`, in the dtype of `x` and with gradients."""
        raise NotImplementedError

    def mix(self, x: Tensor) -> Tensor:
        return (self.matrix(x) @ self.split(self.value(x))).transpose(1, 2).flatten(2)


class SA(QueriesAndKeys):
    """Softmax attention with rotary positions."""

    rotates = True

    def matrix(self, x: Tensor) -> Tensor:
        q, k = self.queries_and_keys(x)
        future = torch.full((x.shape[1], x.shape[1]), -math.inf, device=x.device, dtype=x.dtype).triu(1)
        return (q * self.state**-0.5 @ k.mT + future).softmax(-1)

    def operator(self, x: Tensor) -> Operator:
        return operators.attention(*self.queries_and_keys(x))


class LA(QueriesAndKeys):
    """Linear attention with rotary positions: a transition that is the identity."""

    rotates = True

    def matrix(self, x: Tensor) -> Tensor:
        q, k = self.queries_and_keys(x)
        return (q * self.state**-0.5 @ k.mT).tril()

    def operator(self, x: Tensor) -> Operator:
        q, k = self.queries_and_keys(x)
        return operators.linear_attention(q.transpose(1, 2), k.transpose(1, 2))


class Gated(QueriesAndKeys):
    """A featurizer with a diagonal transition of one gate for each number of the state."""

    def log_gates(self, x: Tensor) -> Tensor:
        """Natural logarithms of the gates, `[B, H, L, K]`, at most 0."""
        raise NotImplementedError

    def matrix(self, x: Tensor) -> Tensor:
        q, k = self.queries_and_keys(x)
        return gated_matrix(q * self.state**-0.5, k, self.log_gates(x))

    def operator(self, x: Tensor) -> Operator:
        q, k = self.queries_and_keys(x)
        return operators.gla(*(t.transpose(1, 2) for t in (q, k, self.log_gates(x))))


class GLA(Gated):
    """Gated linear attention: gates `sigmoid(W_2 W_1 u)^(1 / beta)`; a small `beta` forgets fast."""

    def __init__(self, width: int, heads: int, state: int | None = None, *, smeared: bool = False, beta: float = 16.0):
        super().__init__(width, heads, state, smeared=smeared)
        self.beta = finite_float("beta", beta, positive=True)
        self.gate_down = nn.Linear(width, GATE_RANK, bias=False)
        self.gate_up = nn.Linear(GATE_RANK, heads * self.state)

    def log_gates(self, x: Tensor) -> Tensor:
        return self.split(F.logsigmoid(self.gate_up(self.gate_down(x))) / self.beta)


class WLA(Gated):
    """Linear attention with learnt gates that are the same for every token: `sigmoid(a)^(1 / beta)`, a = 0 at first."""

    def __init__(self, width: int, heads: int, state: int | None = None, *, smeared: bool = False, beta: float = 16.0):
        super().__init__(width, heads, state, smeared=smeared)
        self.beta = finite_float("beta", beta, positive=True)
        self.gate = nn.Parameter(torch.zeros(heads, self.state))

    def log_gates(self, x: Tensor) -> Tensor:
        gates = F.logsigmoid(self.gate) / self.beta
        return gates[:, None].expand(x.shape[0], -1, x.shape[1], -1)

    def operator(self, x: Tensor) -> Operator:
        q, k = self.queries_and_keys(x)
        return operators.wla(q.transpose(1, 2), k.transpose(1, 2), F.logsigmoid(self.gate) / self.beta)


class GLAS6(Gated):
    """GLA with the gates of S6: `exp(-(n / alpha) softplus(W_2 W_1 u))` for n = 1, 2, ..., K."""

    def __init__(
        self, width: int, heads: int, state: int | None = None, *, smeared: bool = False, alpha: float = 1000.0
    ):
        super().__init__(width, heads, state, smeared=smeared)
        self.alpha = finite_float("alpha", alpha, positive=True)
        self.gate_down = nn.Linear(width, GATE_RANK, bias=False)
        self.gate_up = nn.Linear(GATE_RANK, heads * self.state)

    def steps(self, x: Tensor) -> Tensor:
        """`softplus(W_2 W_1 u)`, `[B, H, L, K]`."""
        return self.split(F.softplus(self.gate_up(self.gate_down(x))))

    def log_gates(self, x: Tensor) -> Tensor:
        rate = torch.arange(1, self.state + 1, device=x.device, dtype=x.dtype) / self.alpha
        return -rate * self.steps(x)

    def operator(self, x: Tensor) -> Operator:
        q, k = self.queries_and_keys(x)
        q, k, steps = (t.transpose(1, 2) for t in (q, k, self.steps(x)))
        return operators.gla_s6(q, k, steps, self.alpha)


class S6(Featurizer):
    """Mamba's selective scan without its short convolution: one `T` for each of the `width` channels.

    The heads only group channels for the norm after the mixing. `operator` has the batch shape `[B, width]`.

    Args:
        state: n, the state size of a channel; `A` starts at `-1, -2, ..., -n`.
        step_bias: `"mamba"`, time steps that start log-uniformly in 0.001 .. 0.1 as in Mamba's code; `"zero"`, the
            formula as the paper prints it, with a bias of 0: time steps then start near 0.7.

    Raises:
        ValueError: another `step_bias`.
    """

    def __init__(
        self, width: int, heads: int, state: int | None = None, *, smeared: bool = False, step_bias: str = "mamba"
    ):
        super().__init__(width, heads, state, smeared=smeared)
        if step_bias not in ("mamba", "zero"):
            raise ValueError(f"step_bias: expected 'mamba' or 'zero', got {step_bias!r}")
        self.step = nn.Linear(width, width)
        bias = torch.zeros(width)
        if step_bias == "mamba":
            start = torch.exp(math.log(1e-3) + torch.rand(width) * math.log(100))
            bias = start + torch.log(-torch.expm1(-start))  # the inverse of softplus
        self.step.bias = nn.Parameter(bias)
        self.log_rate = nn.Parameter(torch.arange(1, self.state + 1).float().log().repeat(width, 1))
        self.write = nn.Linear(width, self.state, bias=False)
        self.read = nn.Linear(width, self.state, bias=False)

    def operator(self, x: Tensor, channels: int | None = None) -> Operator:
        """`T` of every channel, or of the first few of them."""
        steps = F.softplus(self.step(x))[..., :channels]
        write, read = self.write(self.key_input(x)), self.read(x)
        return operators.selective_scan(steps.mT, -self.log_rate[:channels].exp(), write.mT, read.mT)

    def mix(self, x: Tensor) -> Tensor:
        """Token by token: the state is `[B, width, n]`."""
        steps, values = F.softplus(self.step(x)), self.value(x)
        write, read = self.write(self.key_input(x)), self.read(x)
        decay = (steps[..., None] * -self.log_rate.exp()).exp()
        written = (steps * values)[..., None] * write[:, :, None]
        state, outputs = torch.zeros_like(written[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + written[:, t]
            outputs.append((state * read[:, t, None]).sum(-1))
        return torch.stack(outputs, 1)


FEATURIZERS: dict[str, type[Featurizer]] = {"LA": LA, "GLA": GLA, "WLA": WLA, "SA": SA, "S6": S6, "GLA-S6": GLAS6}
