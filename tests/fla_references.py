"""What flash-linear-attention's kernels compute, by its own reference functions in PyTorch, in float64.

For every name: the Python module that has the function, and a function of the same keyword arguments.
"""

import torch
from torch.nn.functional import normalize

from ess_kernels.testing import upstream_function


def naive(module, name):
    return upstream_function(f"fla.ops.{module}.naive", name)


def turned(*tensors):
    """Heads before the time, or back."""
    return [x.transpose(1, 2) for x in tensors]


def l2(x, wanted=True):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() if wanted else x


def repeated(x, heads):
    return x.repeat_interleave(heads // x.shape[2], 2)


def steps_of(beta, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, **_):
    if not use_beta_sigmoid_in_kernel:
        return beta
    return beta.sigmoid() * (2 if allow_neg_eigval else 1)


def gates_of(g, use_gate_in_kernel=False, A_log=None, dt_bias=None, lower_bound=None, **_):
    """fla's own gates."""
    if not use_gate_in_kernel:
        return g
    if g.dim() == 3:
        gate = upstream_function("fla.ops.gated_delta_rule.gate", "naive_gdn_gate")
        return gate(g, A_log, dt_bias, torch.float64)
    if lower_bound is None:
        return upstream_function("fla.ops.kda.gate", "naive_kda_gate")(g, A_log, dt_bias, torch.float64)
    gate = upstream_function("fla.ops.kda.gate", "naive_kda_lowerbound_gate")
    return gate(g, A_log, dt_bias, lower_bound, torch.float64)


def linear_attention(q, k, v, scale=None, normalize=False, **_):
    return naive("linear_attn", "naive_recurrent_linear_attn")(q, k, v, scale=scale, normalize=normalize)


def gla(q, k, v, g=None, gk=None, **_):
    return naive("gla", "naive_recurrent_gla")(q, k, v, g if gk is None else gk)


def simple_gla(q, k, v, g=None, g_gamma=None, scale=None, **_):
    gates = g_gamma.expand(q.shape[:3]) if g is None else g
    return naive("simple_gla", "naive_recurrent_simple_gla")(q, k, v, gates, scale=scale)


def retention(q, k, v, **_):
    return naive("retention", "naive_retention")(*turned(q, k, v)).transpose(1, 2)


def lightning(q, k, v, layer_idx, num_layers, scale=None, **_):
    heads = q.shape[2]
    slopes = -8 / heads * (1 - layer_idx / num_layers) * torch.arange(heads, dtype=torch.float64)
    return simple_gla(q, k, v, g_gamma=slopes, scale=scale)


def based(q, k, v, scale=None, use_norm=True):
    return naive("based", "naive_parallel_based")(*turned(q, k, v), scale, use_norm).transpose(1, 2)


def rebased(q, k, v, eps, use_scale, use_normalize, return_both):
    """As the kernel has it: another number than the reference's stands beside the row sums."""
    scale = q.shape[-1] ** -0.5 if use_scale else 1.0
    T = torch.einsum("bihn,bjhn->bhij", scale * q, k).square().tril()
    return torch.einsum("bhij,bjhv->bihv", T / (T.sum(-1, keepdim=True) + eps if use_normalize else 1), v)


def log_linear(q, k, v, g, level_scales, scale=1.0, **_):
    return naive("log_linear_attn", "naive_log_linear_attn")(q, k, v, g, level_scales, scale)


def lightnet(q, k, v, scale=None, **_):
    largest = k.logcumsumexp(1)
    decay = (largest.roll(1, 1) - largest).index_fill(1, torch.tensor([0]), 0.0)
    return gla(q * (1.0 if scale is None else scale * q.shape[-1] ** 0.5), (k - largest).exp(), v, decay)


def gsa(q, k, v, s, g=None, scale=None, **_):
    return naive("gsa", "naive_recurrent_gsa")(q, k, v, s, g, scale=scale)


def abc(q, k, v, s, **_):
    return naive("abc", "naive_cumsum_abc")(*turned(q, k, v, s))[0].transpose(1, 2)


def cyfa(**arguments):
    unknown = ("cu_seqlens_cpu", "checkpoint_level")
    return naive("cyfa", "naive_recurrent_cyfa")(**{n: x for n, x in arguments.items() if n not in unknown})


def hgrn(x, g, **_):
    return naive("hgrn", "naive_recurrent_hgrn")(x, g)


def rwkv6(r, k, v, w, u, scale=None, **_):
    """Token by token; upstream has a reference for the CPU only beside its kernels."""
    scale = r.shape[-1] ** -0.5 if scale is None else scale
    state = r.new_zeros(*r.shape[:1], *r.shape[2:], v.shape[-1])
    rows = []
    for t in range(r.shape[1]):
        written = k[:, t, ..., None] * v[:, t, ..., None, :]
        rows.append((scale * r[:, t, ..., None] * (state + u[..., None] * written)).sum(-2))
        state = w[:, t, ..., None].exp() * state + written
    return torch.stack(rows, 1)


def delta_rule(q, k, v, beta=None, use_qk_l2norm_in_kernel=False, **_):
    q, k = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k))
    beta = torch.ones_like(q[..., 0]) if beta is None else beta
    return naive("delta_rule", "delta_rule_recurrence")(*turned(q, k, v, beta))[0].transpose(1, 2)


def gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=False, scale=None, **flags):
    q, k = (repeated(l2(x, use_qk_l2norm_in_kernel), v.shape[2]) for x in (q, k))
    g = torch.zeros_like(beta) if g is None else gates_of(g, **flags)
    rule = naive("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    return rule(q, k, v, steps_of(beta, **flags), g, scale=scale)


def gated_delta_product(q, k, v, g, beta, num_householder, use_qk_l2norm_in_kernel=False, scale=None, **_):
    q, k = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k))
    rule = naive("gated_delta_product", "naive_recurrent_gated_delta_product")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return rule(q, k, v, g, beta, scale, num_householder=num_householder)


def kda(q, k, v, g, beta, use_qk_l2norm_in_kernel=False, scale=None, **flags):
    q, k = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k))
    return naive("kda", "naive_recurrent_kda")(q, k, v, gates_of(g, **flags), steps_of(beta, **flags), scale)


def comba(q, k, v, p, g, beta=None, use_qk_l2norm_in_kernel=False, scale=None, **_):
    q, k, p = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k, p))
    beta = torch.ones_like(g) if beta is None else beta
    return naive("comba", "naive_recurrent_comba")(q, k, v, p, beta, g, scale)


def gdn2(q, k, v, g, b, w, use_qk_l2norm_in_kernel=False, scale=None, **flags):
    q, k = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k))
    return naive("gdn2", "naive_recurrent_gdn2")(q, k, v, gates_of(g, **flags), b, w, scale)


PRECONDITIONER = ("x", "eps", "log_atk_scale", "scale")


def precond_gated_delta_rule(q, k, v, g_atk, g, beta_atk, beta, use_qk_l2norm_in_kernel=True, **options):
    """The reference normalises by another formula, which leaves normal vectors as they are."""
    given = {name: options[name] for name in PRECONDITIONER}
    q, k = l2(q, use_qk_l2norm_in_kernel), l2(k, use_qk_l2norm_in_kernel)
    assert torch.allclose(q, normalize(q, dim=-1), rtol=1e-4)
    rule = naive("precond_gated_delta_rule", "naive_recurrent_precond_gated_delta_rule")
    return rule(q, k, v, g_atk, g, beta_atk, beta, **given)


def precond_kda(q, k, v, g, g_atk, beta_atk, beta, use_qk_l2norm_in_kernel=True, **options):
    q, k = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k))
    given = {name: options.pop(name) for name in PRECONDITIONER}
    rule = naive("precond_kda", "naive_recurrent_precond_kda")
    return rule(q, k, v, gates_of(g, **options), g_atk, beta_atk, beta, **given)


def momentum(q, k, v, log_alpha, log_mu, p, beta, eta, scale, use_qk_l2norm_in_kernel, use_p_times_alpha, **_):
    q, k, p = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k, k if p is None else p))
    p = p * log_alpha.exp()[..., None] if use_p_times_alpha else p
    rule = naive("momentum_delta_rule", "recurrent_momentum_delta_rule_ref")
    return rule(q, k, v, log_alpha, log_mu, p, beta, eta, scale)[0]


def dplr(q, k, v, a, b, gk, scale=None, **_):
    q = q if scale is None else q * scale * q.shape[-1] ** 0.5
    rule = naive("generalized_delta_rule.dplr", "dplr_recurrence")
    return rule(*turned(q, k, v, a, b, gk))[0].transpose(1, 2)


def iplr(q, k, v, a, b, **_):
    return naive("generalized_delta_rule.iplr", "iplr_recurrence")(*turned(q, k, v, a, b))[0].transpose(1, 2)


def rwkv7(r, w, k, v, a, b, scale, **_):
    return dplr(r, k, v, a, b, w, scale)


def rwkv7_of_kk(r, w, k, v, kk, a, scale, **_):
    return dplr(r, k, v, -kk, kk * a, w, scale)


def mesa_net(q, k, v, g, beta, lamb, use_qk_l2norm_in_kernel=False, **_):
    q, k = (l2(x, use_qk_l2norm_in_kernel) for x in (q, k))
    return naive("mesa_net", "naive_mesa_net_exact")(q, k, v, g, lamb, beta)


def attention(q, k, v, g=None, scale=None, window_size=None, sink_bias=None, **_):
    return naive("attn", "naive_parallel_attn")(q, k, v, scale, window_size, g=g, sink_bias=sink_bias)


def forgetting_attention(q, k, v, g, scale=None, window_size=None, **_):
    return naive("forgetting_attn", "naive_forgetting_attn")(q, k, v, g, scale, window_size)


def wall_attention(q, k, v, g, g_scalar=None, sink_bias=None, scale=None, window_size=None, **_):
    """As fla's reference, which calls a kernel for its sums over time."""
    k, v = (repeated(x, q.shape[2]) for x in (k, v))
    between = lambda x: x.cumsum(1)[:, :, None] - x.cumsum(1)[:, None]  # noqa: E731
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * (q[:, :, None] * k[:, None] * between(g).exp()).sum(-1)
    logits = logits if g_scalar is None else logits + between(g_scalar)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    hidden = (distance < 0) | (distance >= (q.shape[1] if window_size is None else window_size))
    weights = logits.masked_fill(hidden[..., None], -torch.inf).exp()
    total = weights.sum(2, keepdim=True) + (0 if sink_bias is None else sink_bias.exp())
    return torch.einsum("bijh,bjhv->bihv", weights / total, v)


def path_attention(q, k, v, w, beta, g=None, scale=None, **_):
    k, v, w = (repeated(x, q.shape[2]) for x in (k, v, w))
    beta = beta.repeat_interleave(q.shape[2] // beta.shape[2], 2)
    g = q.new_zeros(q.shape[:3]) if g is None else g
    rule = naive("path_attn", "naive_path_attn")
    return rule(q, k, v, w, beta, g, q.shape[-1] ** -0.5 if scale is None else scale, q.shape[1])


def stickbreaking(q, k, v, scale=None, attend_current=False, **_):
    k, v = (repeated(x, q.shape[2]) for x in (k, v))
    return naive("stickbreaking_attn", "naive_stickbreaking_attn")(q, k, v, scale, attend_current)


def parallax(q, r, k, v, scale=None, window_size=None, **_):
    k, v = (repeated(x, q.shape[2]) for x in (k, v))
    return naive("parallax", "naive_parallax")(q, r, k, v, scale=scale, window_size=window_size)


def deltaformer(q, k, v, beta=None, **_):
    return naive("deltaformer", "naive_deltaformer_attn")(q, k, v, beta)


def nsa(q, k, v, g_slc=None, block_indices=None, block_size=64, scale=None, **_):
    """The blocks that are chosen; the compressed ones need a kernel."""
    chosen = naive("nsa", "naive_nsa_selection")(q, k, v, block_indices, block_size, scale)
    return chosen if g_slc is None else chosen * g_slc[..., None]
