"""The delta rule with momentum, whose state is a memory and its velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_same_device, check_shape
from .layout import LAYOUT, check_alike, scale_of
from .separate import takes_sequences
from .structure import Operator, StateSpace, Tokens


class MomentumStateSpace(StateSpace):
    """`M_t = mu_t M_{t-1} - eta_t k_t (u_t - p_t . S_{t-1})`, `S_t = alpha_t S_{t-1} - beta_t M_t`, `y_t = q_t . S_t`.

    The state is `(S, M)`; transitions are matrices `[2K, 2K]`. See `momentum_delta_rule` for the attributes.
    """

    TENSORS = ("q", "k", "p", "log_alpha", "log_mu", "beta", "eta")
    NUMBERS = ("scale",)

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        p: Tensor,
        log_alpha: Tensor,
        log_mu: Tensor,
        beta: Tensor,
        eta: Tensor,
        *,
        scale: float = 1.0,
    ):
        batch, length, heads, size = q.shape
        inputs = (q, k, p, log_alpha, log_mu, beta, eta)
        super().__init__(length, (batch, heads), 2 * size, inputs, diagonal=False)
        self.q, self.k, self.p = q, k, p
        self.log_alpha, self.log_mu, self.beta, self.eta = log_alpha, log_mu, beta, eta
        self.scale = scale

    def tokens(self, heads: Tensor) -> Tokens:
        batch, head = self.unravel(heads)
        q, k, p, log_alpha, log_mu, beta, eta = (x[batch, :, head].double() for x in self.inputs)
        one = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        step = eta[..., None] * k
        alpha, mu = (x.exp()[..., None, None] * one for x in (log_alpha, log_mu))
        # what the memory holds under p drives the velocity, and the velocity the memory
        driven = step[..., :, None] * p[..., None, :]
        pull = beta[..., None, None]
        memory = torch.cat([alpha - pull * driven, -pull * mu], -1)
        velocity = torch.cat([driven, mu], -1)
        write = torch.cat([beta[..., None] * step, -step], -1)
        read = torch.cat([self.scale * q, torch.zeros_like(q)], -1)
        return Tokens(read, write, torch.cat([memory, velocity], -2), self.reads_before)


@takes_sequences(
    q=LAYOUT, k=LAYOUT, log_alpha="[B, T, H]", log_mu="[B, T, H]", p=LAYOUT, beta="[B, T, H]", eta="[B, T, H]"
)
def momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    *,
    log_alpha: Tensor,
    log_mu: Tensor,
    p: Tensor,
    beta: Tensor,
    eta: Tensor,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """The delta rule with momentum (MomentumDeltaNet), a state of `2 K` numbers for every channel of the values.

    `M_t = exp(log_mu_t) M_{t-1} - eta_t k_t (u_t - p_t . S_{t-1})`, `S_t = exp(log_alpha_t) S_{t-1} - beta_t M_t`,
    `y_t = scale q_t . S_t`, as upstream's reference has it. Its kernel by default multiplies `p` by the decay of the
    memory and normalises `q` and `k` before: do so first.

    Args:
        q, k, p: `[B, T, H, K]`, float16, bfloat16, float32 or float64.
        log_alpha, log_mu: `[B, T, H]`, natural logarithms of the decays of memory and velocity.
        beta, eta: `[B, T, H]`, step sizes of the memory and of the velocity.
        scale: `None` means `K ** -0.5`.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape or device is wrong; the message names it.

    Source: `fla.ops.momentum_delta_rule`.
    """
    size = check_alike(q=q, k=k, p=p)
    gates = {"log_alpha": log_alpha, "log_mu": log_mu, "beta": beta, "eta": eta}
    for name, x in gates.items():
        check_shape(name, x, q.shape[:3], "[B, T, H]")
    check_same_device(q=q, **gates)
    return MomentumStateSpace(q, k, p, log_alpha, log_mu, beta, eta, scale=scale_of(scale, size))
