"""Calls of flash-linear-attention's functions: which they are, with which arguments, and what they compute."""

import fla_references as reference
import torch
from torch.nn.functional import logsigmoid, normalize

B, T, H, K, V = 2, 9, 2, 4, 3


def x(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def rows(*last):
    return x(B, T, *last)


def gate(*last):
    return logsigmoid(rows(*last))


def qkv(heads=H, **others):
    return {"q": rows(heads, K), "k": rows(H, K), "v": rows(H, V), **others}


def gated(**others):
    return qkv(g=gate(H), beta=rows(H).sigmoid(), **others)


def raw(g, **others):
    """What projections make, with all that a kernel does to it."""
    flags = {"use_qk_l2norm_in_kernel": True, "use_gate_in_kernel": True, "A_log": x(H), "dt_bias": x(g[0, 0].numel())}
    return qkv(g=g, **flags, **others)


def preconditioned(g):
    steps = {name: rows(H).sigmoid() for name in ("beta", "beta_atk")}
    return qkv(g=g, g_atk=gate(H), **steps)


def rwkv7_arguments(**others):
    r, k, kk = rows(H, K), rows(H, K), normalize(rows(H, K), dim=-1)
    return {"r": r, "w": gate(H, K), "k": k, "v": rows(H, V), "kk": kk, "a": rows(H, K).sigmoid(), **others}


def rwkv7_of_pairs(**others):
    given = rwkv7_arguments()
    kk, a = given.pop("kk"), given.pop("a")
    return given | {"a": -kk, "b": kk * a} | others


def with_gates_of(names):
    return {"q": rows(H, K), "k": rows(H, K), "v": rows(H, V), **{name: rows(H, K) / 2 for name in names}}


def slots(**others):
    return qkv(4, s=rows(H, 5), **others)


def cyfa_arguments():
    norms = {"q_norm_weight": x(K), "k_norm_weight": x(K), "q_norm_eps": 1e-5, "k_norm_eps": 1e-5}
    return gated(delta=rows(H), readout=x(H, 5, 5), **norms)


def nsa_arguments():
    return {
        **qkv(16 * H, g_slc=rows(16 * H).sigmoid()),
        "block_indices": torch.stack([torch.zeros(B, T, H), torch.arange(T)[:, None].expand(B, T, H) // 2], -1).long(),
        "block_size": 2,
    }


def gentle(**others):
    """Positive features, so that row sums are far from zero."""
    given = qkv(**others)
    return given | {"q": given["q"].exp(), "k": given["k"].exp()}


def product_arguments(num_householder, **others):
    steps = {"k": x(B, T * num_householder, H, K), "v": x(B, T * num_householder, H, V)}
    beta = x(B, T * num_householder, H).sigmoid()
    return {"q": rows(H, K), **steps, "beta": beta, "num_householder": num_householder, **others}


def gated_momentum(**others):
    steps = {"beta": rows(H).sigmoid(), "eta": rows(H).sigmoid()}
    return qkv(log_alpha=gate(H), log_mu=gate(H), **steps, **others)


# by name: fla's module, fla's reference, the arguments of a call
CASES = {
    "chunk_linear_attn": ("linear_attn", reference.linear_attention, lambda: qkv(normalize=False)),
    "fused_chunk_linear_attn": ("linear_attn", reference.linear_attention, lambda: gentle(scale=1)),
    "fused_recurrent_linear_attn": ("linear_attn", reference.linear_attention, lambda: gentle(normalize=True)),
    "parallel_based": ("based", reference.based, lambda: gentle(scale=0.5)),
    "fused_chunk_based": ("based", reference.based, lambda: gentle()),
    "parallel_rebased": ("rebased", reference.rebased, lambda: gentle(eps=1e-6)),
    "chunk_gla": ("gla", reference.gla, lambda: qkv(g=gate(H, K), state_v_first=True)),
    "fused_recurrent_gla": ("gla", reference.gla, lambda: qkv(gk=gate(H, K), output_final_state=True)),
    "chunk_simple_gla": ("simple_gla", reference.simple_gla, lambda: qkv(g=gate(H), scale=0.3)),
    "fused_chunk_simple_gla": ("simple_gla", reference.simple_gla, lambda: qkv(g_gamma=logsigmoid(x(H)))),
    "fused_recurrent_simple_gla": ("simple_gla", reference.simple_gla, lambda: qkv(g=gate(H))),
    "parallel_simple_gla": ("simple_gla", reference.simple_gla, lambda: qkv(g=gate(H))),
    "chunk_retention": ("retention", reference.retention, qkv),
    "fused_chunk_retention": ("retention", reference.retention, qkv),
    "fused_recurrent_retention": ("retention", reference.retention, lambda: qkv(state_v_first=True)),
    "parallel_retention": ("retention", reference.retention, qkv),
    "chunk_lightning_attn": ("lightning_attn", reference.lightning, lambda: qkv(layer_idx=2, num_layers=5)),
    "fused_recurrent_lightning_attn": ("lightning_attn", reference.lightning, lambda: qkv(layer_idx=0, num_layers=1)),
    "chunk_log_linear_attn": (
        "log_linear_attn.chunk",
        reference.log_linear,
        lambda: {**qkv(), "q": rows(1, K), "k": rows(1, K), "g": gate(H), "level_scales": rows(H, 5).sigmoid()},
    ),
    "chunk_lightnet": ("lightnet", reference.lightnet, qkv),
    "fused_recurrent_lightnet": ("lightnet", reference.lightnet, lambda: qkv(scale=0.7)),
    "chunk_abc": ("abc.chunk", reference.abc, lambda: qkv(s=rows(H, 5))),
    "chunk_gsa": ("gsa", reference.gsa, lambda: slots(g=gate(H, 5), scale=0.5)),
    "fused_recurrent_gsa": ("gsa", reference.gsa, lambda: slots(g=gate(H, 5))),
    "chunk_cyfa": ("cyfa.chunk", reference.cyfa, cyfa_arguments),
    "fused_recurrent_cyfa": ("cyfa.fused_recurrent", reference.cyfa, cyfa_arguments),
    "chunk_hgrn": ("hgrn", reference.hgrn, lambda: {"x": rows(K), "g": gate(K)}),
    "fused_recurrent_hgrn": ("hgrn", reference.hgrn, lambda: {"x": rows(K), "g": gate(K)}),
    "chunk_rwkv6": (
        "rwkv6",
        reference.rwkv6,
        lambda: {"r": rows(H, K), "k": rows(H, K), "v": rows(H, V), "w": gate(H, K), "u": x(H, K), "scale": 1.0},
    ),
    "fused_recurrent_rwkv6": (
        "rwkv6",
        reference.rwkv6,
        lambda: {"r": rows(H, K), "k": rows(H, K), "v": rows(H, V), "w": gate(H, K), "u": x(H, K)},
    ),
    "chunk_delta_rule": (
        "delta_rule",
        reference.delta_rule,
        lambda: qkv(beta=rows(H).sigmoid(), use_qk_l2norm_in_kernel=True),
    ),
    "fused_recurrent_delta_rule": ("delta_rule", reference.delta_rule, lambda: qkv(use_qk_l2norm_in_kernel=True)),
    "chunk_gated_delta_rule": (
        "gated_delta_rule",
        reference.gated_delta_rule,
        lambda: raw(rows(H), beta=rows(H), use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, state_v_first=True),
    ),
    "fused_recurrent_gated_delta_rule": (
        "gated_delta_rule",
        reference.gated_delta_rule,
        lambda: gated(use_qk_l2norm_in_kernel=True) | {"v": rows(2 * H, V), "g": gate(2 * H), "beta": rows(2 * H)},
    ),
    "chunk_gated_delta_product": (
        "gated_delta_product",
        reference.gated_delta_product,
        lambda: product_arguments(g=gate(H), num_householder=3, use_qk_l2norm_in_kernel=True),
    ),
    "chunk_kda": (
        "kda",
        reference.kda,
        lambda: raw(rows(H, K), beta=rows(H).sigmoid(), safe_gate=True, lower_bound=-3.0),
    ),
    "fused_recurrent_kda": (
        "kda",
        reference.kda,
        lambda: raw(rows(H, K), beta=rows(H), use_beta_sigmoid_in_kernel=True),
    ),
    "chunk_comba": ("comba", reference.comba, lambda: gated(p=rows(H, K), use_qk_l2norm_in_kernel=True)),
    "fused_recurrent_comba": (
        "comba",
        reference.comba,
        lambda: qkv(g=gate(H), p=rows(H, K), use_qk_l2norm_in_kernel=True),
    ),
    "chunk_gdn2": ("gdn2", reference.gdn2, lambda: raw(rows(H, K), b=rows(H, K).sigmoid(), w=rows(H, V))),
    "fused_recurrent_gdn2": (
        "gdn2",
        reference.gdn2,
        lambda: raw(rows(H, K), b=rows(H, K).sigmoid(), w=rows(H, V), lower_bound=-2.0),
    ),
    "chunk_precond_gated_delta_rule": (
        "precond_gated_delta_rule",
        reference.precond_gated_delta_rule,
        lambda: preconditioned(gate(H)),
    ),
    "fused_recurrent_precond_gated_delta_rule": (
        "precond_gated_delta_rule",
        reference.precond_gated_delta_rule,
        lambda: preconditioned(gate(H)) | {"x": 2.0, "log_atk_scale": x(H)},
    ),
    "naive_recurrent_precond_gated_delta_rule": (
        "precond_gated_delta_rule",
        reference.precond_gated_delta_rule,
        lambda: preconditioned(gate(H)),
    ),
    "chunk_precond_kda": (
        "precond_kda",
        reference.precond_kda,
        lambda: preconditioned(rows(H, K)) | {"use_gate_in_kernel": True, "A_log": x(H), "dt_bias": x(H * K)},
    ),
    "fused_recurrent_precond_kda": (
        "precond_kda",
        reference.precond_kda,
        lambda: preconditioned(gate(H, K)) | {"use_qk_l2norm_in_kernel": True},
    ),
    "chunk_momentum_delta_rule": (
        "momentum_delta_rule",
        reference.momentum,
        lambda: gated_momentum(p=rows(H, K)),
    ),
    "fused_recurrent_momentum_delta_rule": (
        "momentum_delta_rule",
        reference.momentum,
        lambda: gated_momentum(use_p_times_alpha=False),
    ),
    "chunk_dplr_delta_rule": (
        "generalized_delta_rule",
        reference.dplr,
        lambda: with_gates_of("ab") | {"gk": gate(H, K), "safe_gate": True, "lower_bound": -5.0, "scale": 0.8},
    ),
    "fused_recurrent_dplr_delta_rule": (
        "generalized_delta_rule",
        reference.dplr,
        lambda: with_gates_of("ab") | {"gk": gate(H, K)},
    ),
    "chunk_iplr_delta_rule": ("generalized_delta_rule", reference.iplr, lambda: with_gates_of("ab")),
    "fused_recurrent_iplr_delta_rule": ("generalized_delta_rule", reference.iplr, lambda: with_gates_of("ab")),
    "chunk_rwkv7": ("rwkv7", reference.rwkv7, lambda: rwkv7_of_pairs(safe_gate=True, lower_bound=-0.6)),
    "fused_recurrent_rwkv7": ("rwkv7", reference.rwkv7, rwkv7_of_pairs),
    "fused_mul_recurrent_rwkv7": ("rwkv7", reference.rwkv7_of_kk, rwkv7_arguments),
    "chunk_mesa_net": (
        "mesa_net",
        reference.mesa_net,
        lambda: gated(lamb=x(H, K).exp(), use_qk_l2norm_in_kernel=True) | {"v": rows(H, K)},
    ),
    "parallel_attn": ("attn.parallel", reference.attention, lambda: qkv(4, window_size=4, sink_bias=x(4))),
    "parallel_forgetting_attn": ("forgetting_attn.parallel", reference.forgetting_attention, lambda: qkv(4, g=gate(4))),
    "parallel_wall_attn": (
        "wall_attn",
        reference.wall_attention,
        lambda: qkv(4, g=gate(4, K), g_scalar=gate(4), sink_bias=x(4)),
    ),
    "parallel_path_attn": (
        "path_attn.parallel",
        reference.path_attention,
        lambda: qkv(4, w=normalize(rows(H, K), dim=-1), beta=rows(H).sigmoid(), g=gate(4)),
    ),
    "parallel_stickbreaking_attn": (
        "stickbreaking_attn",
        reference.stickbreaking,
        lambda: qkv(4, attend_current=True),
    ),
    "parallel_parallax": (
        "parallax",
        reference.parallax,
        lambda: qkv(4, r=rows(4, K), window_size=5) | {"v": rows(H, K)},
    ),
    "deltaformer_attn": ("deltaformer", reference.deltaformer, lambda: qkv(beta=rows(H).sigmoid()) | {"v": rows(H, K)}),
    "parallel_nsa": ("nsa.parallel", reference.nsa, nsa_arguments),
}
# functions that only say that they are no more, but were other functions' equals
RETIRED = {"fused_chunk_gla": "gla", "fused_chunk_delta_rule": "delta_rule"}
# arguments that no closed form knows: where they are given, T is read off
NOT_IN_CLOSED_FORMS = {"reverse", "gv", "gk", "cp_context", "return_both"}
