"""Sequence mixers as operators: one function a family, each with its upstream's argument names and layout."""

from .attention import attention
from .convolution import convolution, gated_convolution, short_convolution
from .delta_rules import comba, delta_rule, gated_delta_rule, gdn2, kda
from .dense import as_operator, dense
from .linear_attention import gla, gla_s6, linear_attention, retention, simple_gla, wla
from .low_rank import dplr_delta_rule, iplr_delta_rule, rwkv7
from .momentum import momentum_delta_rule
from .preconditioned import precond_gated_delta_rule, precond_kda
from .recurrence import recurrence
from .selective_scan import selective_scan, ssd
from .structure import Operator, StateSpace, Tiled

__all__ = [
    "Operator",
    "StateSpace",
    "Tiled",
    "as_operator",
    "attention",
    "comba",
    "convolution",
    "delta_rule",
    "dense",
    "dplr_delta_rule",
    "gated_convolution",
    "gated_delta_rule",
    "gdn2",
    "gla",
    "gla_s6",
    "iplr_delta_rule",
    "kda",
    "linear_attention",
    "momentum_delta_rule",
    "precond_gated_delta_rule",
    "precond_kda",
    "recurrence",
    "retention",
    "rwkv7",
    "selective_scan",
    "short_convolution",
    "simple_gla",
    "ssd",
    "wla",
]
