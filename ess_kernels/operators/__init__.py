"""Sequence mixers as operators: one function a family, each with its upstream's argument names and layout."""

from .attention import attention
from .convolution import convolution, gated_convolution, short_convolution
from .dense import as_operator, dense
from .linear_attention import gla, gla_s6, linear_attention, retention, simple_gla, wla
from .recurrence import recurrence
from .selective_scan import selective_scan, ssd
from .structure import Operator, StateSpace, Tiled

__all__ = [
    "Operator",
    "StateSpace",
    "Tiled",
    "as_operator",
    "attention",
    "convolution",
    "dense",
    "gated_convolution",
    "gla",
    "gla_s6",
    "linear_attention",
    "recurrence",
    "retention",
    "selective_scan",
    "short_convolution",
    "simple_gla",
    "ssd",
    "wla",
]
