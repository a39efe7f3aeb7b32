"""S4D: constant complex diagonal state spaces, one for each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_layout, check_positive_size, check_same_device, check_shape, integer
from .complex_states import ComplexRecurrence, Pair
from .finiteness import finite_or_nan
from .separate import takes_sequences
from .structure import Operator


@takes_sequences()
def s4d(
    log_dt: Tensor,
    log_A_real: Tensor,
    A_imag: Tensor,
    C: Tensor,
    length: int,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Operator:
    """S4D's kernel with zero-order hold: `T_ij = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{dt A_n (i - j)}`.

    Here `A = -exp(log_A_real) + i A_imag` and `dt = exp(log_dt)`; B is 1. Only one of each conjugate pair is there,
    which the factor 2 makes up for: the state has `2 N` real numbers. The skip `D` is no part of `T`.

    Args:
        log_dt: `[H]`, float16, bfloat16, float32 or float64.
        log_A_real, A_imag: `[H, N]`.
        C: `[H, N]`, complex64 or complex128. Upstream's parameter is `torch.view_as_real` of it.
        length: L.
        cu_seqlens, attention_mask: of packed or padded batches, see `ess_kernels.operators`.

    Raises:
        TypeError, ValueError: an argument's type, dtype, shape, device or value is wrong; the message names it.

    Source: `S4DKernel` of `models/s4/s4d.py` (state-spaces/s4); S4D (arXiv 2206.11893).
    """
    (channels,) = check_layout("log_dt", log_dt, "[H]")
    states = check_layout("log_A_real", log_A_real, "[H, N]")[1]
    check_shape("log_A_real", log_A_real, (channels, states), "[H, N]")
    check_positive_size("log_A_real", "N", states)
    check_shape("A_imag", A_imag, (channels, states), "[H, N]")
    check_shape("C", C, (channels, states), "[H, N]", or_complex=True)
    if not C.is_complex():
        raise TypeError(f"C: expected complex64 or complex128, got {C.dtype}")
    check_same_device(log_dt=log_dt, log_A_real=log_A_real, A_imag=A_imag, C=C)
    length = integer("length", length, minimum=0)
    # an infinite logarithm would pass for a step of zero, or for no decay
    dt = finite_or_nan(log_dt.double()).exp()[:, None]
    rates = torch.complex(dt * -finite_or_nan(log_A_real.double()).exp(), dt * A_imag.double())
    nonzero = torch.where(rates == 0, 1.0, rates)
    hold = torch.where(rates == 0, 1.0, torch.expm1(nonzero) / nonzero)  # in steps
    read = Pair.of(C).times(Pair.of(hold).each(lambda x: 2 * dt * x)).complex()
    return ComplexRecurrence(
        rates.exp(),
        torch.ones_like(read),
        read,
        length=length,
        constant=True,
        reads_before=False,
        inputs=(log_dt, log_A_real, A_imag, C),
    )
