"""Sequence mixers as operators: one function a family, each with its upstream's argument names and layout.

A batch may hold several sequences in a row of tokens, or padding beside one. Families with an axis for the time take
one of these arguments, on the device of the others:

- `cu_seqlens` `[N + 1]`, int32 or int64, from 0 to T, not decreasing: sequence s is the tokens
  `cu_seqlens[s] .. cu_seqlens[s + 1] - 1`, of which there may be none. B is 1; dimensions `*batch` share the sequences.
- `seq_idx` `[B, T]`, int32 or int64 (`ssd`, `selective_scan`, short convolutions): every run of equal numbers is a
  sequence.
- `attention_mask` `[B, T]`, bool or integers 0 and 1: the ones of a row, one run of them, are its sequence. The rest is
  padding, which is never looked at and may hold NaN.

`T` is then block diagonal. Results keep their shape: at position i stands what the position's own sequence has there,
and 0 where a sequence starts and in padding, which `op.valid` tells apart from zeros that were found. Bad data mark the
positions of their own sequence only. A convolution's kernel, indexed by lag, starts anew with each sequence, and where
no tensor has a batch B is 1.
"""

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
