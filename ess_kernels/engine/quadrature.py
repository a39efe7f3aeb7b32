"""Sums of singular values from log-determinants.

With `x = sigma^2 / scale` in [0, 1], `sqrt(x)` and `sqrt(x) log sqrt(x)` are, to 3.5e-7 uniformly, sums
`sum_k w_k log(1 + x / t_k)` over 16 fixed nodes. Summed over the singular values of `H` these are log-determinants
`log det(I + H H^T / (t_k scale))`, so `N = sum sigma` and `E = sum sigma log sigma` (in units of `sqrt(scale)`), and
entropy-ESS `= exp(log N - E / N)` (paper, equation 3).

Nodes and weights were optimised together for the largest error of both functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

# t, weight of sqrt(x), weight of sqrt(x) log sqrt(x)
_TABLE = [
    (3.683970996819e-15, 7.636206537202e-08, -1.205360523345e-06),
    (1.306185789488e-12, 8.294014494804e-07, -1.048241254781e-05),
    (6.586079004571e-11, 4.435202817663e-06, -4.764112962580e-05),
    (1.494772922106e-09, 1.756818878565e-05, -1.607376021726e-04),
    (2.113215082998e-08, 5.715572627702e-05, -4.482838679922e-04),
    (2.189633946841e-07, 1.654035851709e-04, -1.101952269994e-03),
    (1.830650153842e-06, 4.381669964349e-04, -2.457768914700e-03),
    (1.302200854269e-05, 1.087863738660e-03, -5.027619977575e-03),
    (8.142096765903e-05, 2.550923200187e-03, -9.464308129629e-03),
    (4.591471605401e-04, 5.750920786187e-03, -1.634023261442e-02),
    (2.378096056053e-03, 1.245052559708e-02, -2.517774486501e-02),
    (1.142951855264e-02, 2.619464511113e-02, -3.233144760079e-02),
    (5.206861746101e-02, 5.442039618098e-02, -2.610219434020e-02),
    (2.351457222392e-01, 1.192648741297e-01, 3.347683020237e-02),
    (1.296434625631e00, 3.607639151712e-01, 4.004170024214e-01),
    (2.303614561705e01, 3.514888397868e00, 9.986734777834e00),
]
NODES = torch.tensor([row[0] for row in _TABLE], dtype=torch.float64)
NODE_ERROR = 3.6e-7


def entropy_of(logdets: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy-ESS and a bound of its relative error from log-determinants at `NODES * scale`.

    Args:
        logdets: `[..., 16, P]`, `log det(I + H H^T / (t_k scale))` per position.
        cap: broadcastable to `[..., P]`, the largest possible number of non-zero singular values.

    Returns:
        `ess` `[..., P]` (0 where all log-determinants are 0: H is zero), within `[1, cap]`, and `bound` `[..., P]`: the
        first-order effect of the node error, summed over the singular values that the smallest node can see.
    """
    weights = torch.tensor([row[1:] for row in _TABLE], dtype=torch.float64, device=logdets.device)
    total, mixed = (weights.T @ logdets).unbind(-2)
    zero = logdets[..., 0, :] <= 0
    total = torch.where(zero, 1.0, total.clamp_min(1e-300))
    ess = torch.exp(total.log() - mixed / total)
    # a value far above the two smallest nodes adds log(t_2 / t_1) = 5.9 to the difference, one at t_1 adds log 2
    visible = torch.minimum((logdets[..., 0, :] - logdets[..., 1, :]) / 2, cap)
    bound = visible * NODE_ERROR / total * (1 + (1 + mixed / total).abs())
    return torch.where(zero, 0.0, torch.minimum(ess.clamp_min(1.0), cap)), torch.where(zero, 0.0, bound)
