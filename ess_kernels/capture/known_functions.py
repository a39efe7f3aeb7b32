"""Functions of transformers, mamba_ssm and flash-linear-attention that mix over time, and their closed forms.

Constructors of operators have the names and layouts of the functions that they mirror. So most entries say only which
constructor it is; arguments go to it by name, and one that it does not know makes the closed form unknown.
"""

from __future__ import annotations

from .. import operators
from .fla_functions import FLA
from .known_function import KnownFunction
from .layouts import CHANNELS_FIRST, CHANNELS_LAST

__all__ = ["BY_NAME", "KnownFunction"]

TRANSFORMERS = {"query": "q", "key": "k"}
MAMBA = {"dt": "delta"}

BY_NAME: dict[str, KnownFunction] = {
    # transformers, 5.15 and newer
    "mamba_selective_scan": KnownFunction(
        "mamba",
        operators.selective_scan,
        "hidden_states",
        CHANNELS_FIRST,
        MAMBA,
        skip="D",
        gate="z",
        any_width=False,
    ),
    "mamba2_chunk_scan": KnownFunction("mamba2", operators.ssd, "hidden_states", skip="D", gate="z"),
    "torch_chunk_gated_delta_rule": KnownFunction(
        "gated_delta_rule", operators.gated_delta_rule, "value", renamed=TRANSFORMERS
    ),
    "chunk_kimi_delta_attention": KnownFunction("kda", operators.kda, "value", renamed=TRANSFORMERS),
    "rwkv_linear_attention": KnownFunction(
        "rwkv4",
        operators.rwkv4,
        "value",
        CHANNELS_LAST,
        {"time_decay": "w", "time_first": "u", "key": "k"},
        states=("state",),
        any_width=False,
    ),
    # mamba_ssm
    "selective_scan_fn": KnownFunction(
        "mamba", operators.selective_scan, "u", CHANNELS_FIRST, skip="D", gate="z", any_width=False
    ),
    "selective_scan_ref": KnownFunction(
        "mamba", operators.selective_scan, "u", CHANNELS_FIRST, skip="D", gate="z", any_width=False
    ),
    "mamba_chunk_scan_combined": KnownFunction(  # its cu_seqlens only say which states to return
        "mamba2", operators.ssd, "x", idle=frozenset({"cu_seqlens"}), skip="D", gate="z"
    ),
    "mamba3_siso_combined": KnownFunction(
        "mamba3", operators.mamba3, "V", skip="D", gate="Z", states=("Input_States",)
    ),
    **FLA,
}
