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

DTensors make operators of which every process has a share: see `ess_kernels.distributed`.
"""

from .attention import attention
from .block_recurrence import block_recurrence
from .blocked import Blocked
from .convolution import convolution, gated_convolution, short_convolution
from .cyfa import cyfa
from .delta_product import gated_delta_product
from .delta_rules import comba, delta_rule, gated_delta_rule, gdn2, kda
from .deltaformer import deltaformer
from .dense import as_operator, dense
from .hgrn import hgrn, hgrn2, rg_lru
from .linear_attention import gla, gla_s6, lightning_attention, linear_attention, retention, simple_gla, wla
from .log_linear import log_linear_attention
from .low_rank import dplr_delta_rule, iplr_delta_rule, rwkv7
from .lti import lti
from .mamba3 import mamba3
from .mesa import mesa_net
from .mlstm import mlstm
from .momentum import momentum_delta_rule
from .nsa import nsa
from .parallax import parallax
from .path import path_attention
from .polynomial import based, rebased
from .preconditioned import precond_gated_delta_rule, precond_kda
from .recurrence import recurrence
from .refused import gated_oja_rule, mom, titans, ttt
from .rwkv import rwkv4, rwkv6
from .s4d import s4d
from .selective_scan import selective_scan, ssd
from .shift_register import dynamic_short_convolution, lfm2_conv
from .slots import gsa, lightnet
from .stickbreaking import stickbreaking_attention
from .structure import Operator, StateSpace, Tiled
from .sum_of import sum_of
from .tiles import tiles
from .wall import wall_attention

__all__ = [
    "Blocked",
    "Operator",
    "StateSpace",
    "Tiled",
    "as_operator",
    "attention",
    "based",
    "block_recurrence",
    "comba",
    "convolution",
    "cyfa",
    "delta_rule",
    "deltaformer",
    "dense",
    "dplr_delta_rule",
    "dynamic_short_convolution",
    "gated_convolution",
    "gated_delta_product",
    "gated_delta_rule",
    "gated_oja_rule",
    "gdn2",
    "gla",
    "gla_s6",
    "gsa",
    "hgrn",
    "hgrn2",
    "iplr_delta_rule",
    "kda",
    "lfm2_conv",
    "lightnet",
    "lightning_attention",
    "linear_attention",
    "log_linear_attention",
    "lti",
    "mamba3",
    "mesa_net",
    "mlstm",
    "mom",
    "momentum_delta_rule",
    "nsa",
    "parallax",
    "path_attention",
    "precond_gated_delta_rule",
    "precond_kda",
    "rebased",
    "recurrence",
    "retention",
    "rg_lru",
    "rwkv4",
    "rwkv6",
    "rwkv7",
    "s4d",
    "selective_scan",
    "short_convolution",
    "simple_gla",
    "ssd",
    "stickbreaking_attention",
    "sum_of",
    "tiles",
    "titans",
    "ttt",
    "wall_attention",
    "wla",
]
