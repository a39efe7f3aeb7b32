"""Functions of flash-linear-attention that mix over time, and their closed forms.

Its layers call one of several functions of the same mathematics, `chunk_gla` or `fused_recurrent_gla`, whichever is
faster, so that all of them are here. Where constructors of operators lack what a kernel does to its arguments, a
function of `fla_closed_forms` does it first; what is not exactly the constructor's mathematics is refused, and `T` is
read off by one-hot values.

Not here: `fused_recurrent_rwkv4`, which always starts from a state; `parallel_moba`, `chunk_gated_oja_rule` and its
kin, whose `T` no constructor has; the mixers of TTT and Titans, which are not linear in their values.
"""

from __future__ import annotations

from .. import operators
from . import fla_closed_forms as closed_forms
from .known_function import KnownFunction
from .layouts import CHANNELS_LAST

# arguments that only say how a kernel may compute; `lower_bound` is one where gates are not made by the kernel
HINTS = frozenset({"safe_gate", "checkpoint_level", "use_graph", "max_num_seqs", "solve_tril_precision", "C"})
RANGES = HINTS | {"lower_bound"}
PRECONDITIONED_STATES = ("initial_state", "initial_A_state")


def _modes(names: str, known: KnownFunction) -> dict[str, KnownFunction]:
    """An entry for each function of the same mathematics."""
    return dict.fromkeys(names.split(), known)


LINEAR_ATTENTION = {
    **_modes(
        "chunk_linear_attn fused_chunk_linear_attn fused_recurrent_linear_attn",
        KnownFunction("linear_attention", operators.linear_attention, value_heads="num_v_heads"),
    ),
    **_modes("parallel_based fused_chunk_based", KnownFunction("based", closed_forms.based)),
    **_modes("parallel_rebased", KnownFunction("rebased", closed_forms.rebased)),
    **_modes("chunk_gla fused_chunk_gla fused_recurrent_gla", KnownFunction("gla", operators.gla, renamed={"gk": "g"})),
    **_modes(
        "chunk_simple_gla fused_chunk_simple_gla fused_recurrent_simple_gla parallel_simple_gla",
        KnownFunction("simple_gla", closed_forms.simple_gla),
    ),
    **_modes(
        "chunk_retention fused_chunk_retention fused_recurrent_retention parallel_retention",
        KnownFunction("retention", operators.retention, value_heads="num_v_heads"),
    ),
    **_modes(
        "chunk_lightning_attn fused_recurrent_lightning_attn",
        KnownFunction("lightning_attention", operators.lightning_attention),
    ),
    **_modes("chunk_log_linear_attn", KnownFunction("log_linear_attention", operators.log_linear_attention)),
    **_modes("chunk_lightnet fused_recurrent_lightnet", KnownFunction("lightnet", operators.lightnet)),
    **_modes("chunk_abc chunk_gsa fused_recurrent_gsa", KnownFunction("gsa", operators.gsa, idle=HINTS)),
    **_modes(
        "chunk_cyfa fused_recurrent_cyfa",
        KnownFunction("cyfa", operators.cyfa, idle=HINTS),
    ),
    **_modes(
        "chunk_hgrn fused_recurrent_hgrn",
        KnownFunction("hgrn", operators.hgrn, "x", CHANNELS_LAST, any_width=False),
    ),
    **_modes("chunk_rwkv6 fused_recurrent_rwkv6", KnownFunction("rwkv6", operators.rwkv6)),
}

DELTA_RULES = {
    **_modes(
        "chunk_delta_rule fused_chunk_delta_rule fused_recurrent_delta_rule",
        KnownFunction("delta_rule", closed_forms.with_steps(operators.delta_rule)),
    ),
    **_modes(
        "chunk_gated_delta_rule fused_recurrent_gated_delta_rule",
        KnownFunction("gated_delta_rule", closed_forms.gated_delta_rule),
    ),
    **_modes(
        "chunk_gated_delta_product",
        KnownFunction("gated_delta_product", closed_forms.gated_delta_product, values_of_a_token="num_householder"),
    ),
    **_modes(
        "chunk_kda fused_recurrent_kda",
        KnownFunction("kda", closed_forms.gated_if_asked(operators.kda), idle=HINTS),
    ),
    **_modes("chunk_comba fused_recurrent_comba", KnownFunction("comba", closed_forms.with_steps(operators.comba))),
    **_modes("chunk_gdn2 fused_recurrent_gdn2", KnownFunction("gdn2", closed_forms.gdn2, value_gate="w", idle=HINTS)),
    **_modes(
        "chunk_precond_gated_delta_rule fused_recurrent_precond_gated_delta_rule "
        "naive_recurrent_precond_gated_delta_rule",
        KnownFunction("precond_gated_delta_rule", operators.precond_gated_delta_rule, states=PRECONDITIONED_STATES),
    ),
    **_modes(
        "chunk_precond_kda fused_recurrent_precond_kda",
        KnownFunction("precond_kda", closed_forms.precond_kda, idle=HINTS, states=PRECONDITIONED_STATES),
    ),
    **_modes(
        "chunk_momentum_delta_rule fused_recurrent_momentum_delta_rule",
        KnownFunction("momentum_delta_rule", closed_forms.momentum_delta_rule),
    ),
    **_modes(
        "chunk_dplr_delta_rule fused_recurrent_dplr_delta_rule",
        KnownFunction("dplr_delta_rule", operators.dplr_delta_rule, idle=RANGES),
    ),
    **_modes(
        "chunk_iplr_delta_rule fused_recurrent_iplr_delta_rule",
        KnownFunction("iplr_delta_rule", operators.iplr_delta_rule),
    ),
    **_modes("chunk_rwkv7 fused_recurrent_rwkv7", KnownFunction("rwkv7", operators.rwkv7, idle=RANGES)),
    **_modes("fused_mul_recurrent_rwkv7", KnownFunction("rwkv7", closed_forms.rwkv7_of_kk)),
    # the kernel solves its systems by so many steps of conjugate gradients, the closed form exactly
    **_modes(
        "chunk_mesa_net",
        KnownFunction(
            "mesa_net",
            operators.mesa_net,
            idle=frozenset({"max_CG_iteration"}),
            states=("h_kk_init", "h_kv_init"),
            any_width=False,
        ),
    ),
}

ATTENTION = {
    **_modes(
        "parallel_attn parallel_forgetting_attn",
        KnownFunction("attention", closed_forms.attention, renamed={"sink_bias": "sinks"}),
    ),
    **_modes(
        "parallel_wall_attn", KnownFunction("wall_attention", operators.wall_attention, renamed={"sink_bias": "sinks"})
    ),
    **_modes("parallel_path_attn", KnownFunction("path_attention", operators.path_attention)),
    **_modes("parallel_stickbreaking_attn", KnownFunction("stickbreaking", operators.stickbreaking_attention)),
    **_modes("parallel_parallax", KnownFunction("parallax", operators.parallax, any_width=False)),
    **_modes("deltaformer_attn", KnownFunction("deltaformer", operators.deltaformer, idle=HINTS, any_width=False)),
    **_modes("parallel_nsa", KnownFunction("nsa", closed_forms.nsa)),
}

FLA: dict[str, KnownFunction] = LINEAR_ATTENTION | DELTA_RULES | ATTENTION
