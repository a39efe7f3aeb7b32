"""Delta rules and their kin against loops over their recurrences, token by token with matrices."""

import pytest
import torch
from torch.nn.functional import normalize, softplus

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


def control(A, write, read):
    """`T [B, H, L, L]` with `T_ij = read_i . A_i ... A_{j+1} write_j`; vectors are `[B, L, H, n]`."""
    batch, length, heads, _ = read.shape
    T = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    for j in range(length):
        state = write[:, j]
        for i in range(j, length):
            if i > j:
                state = (A[:, i] @ state[..., None])[..., 0]
            T[:, :, i, j] = (read[:, i] * state).sum(-1)
    return T


def replacing(q, k, decay, beta, p=None):
    """`s <- D s + beta k (u - p . D s)` for `decay` `[B, L, HV, K]` and `beta` `[B, L, HV]`."""
    heads = decay.shape[2]
    q, k, p = (x.repeat_interleave(heads // x.shape[2], 2) for x in (q, k, k if p is None else p))
    one = torch.eye(q.shape[-1], dtype=torch.float64)
    taken = one - beta[..., None, None] * k[..., :, None] * p[..., None, :]
    return control(taken @ torch.diag_embed(decay), beta[..., None] * k, q * q.shape[-1] ** -0.5)


def as_kernels_norm(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def head_first(x):
    return x.transpose(1, 2)


def draw(*shape):
    return torch.randn(*shape).double()


def keys(length, *, heads=2, size=3, batch=2):
    return {"q": draw(batch, length, heads, size), "k": normalize(draw(batch, length, heads, size), dim=-1)}


def gates(*shape):
    return -torch.rand(*shape).double()


def steps(*shape):
    return 2 * torch.rand(*shape).double()


class TestDeltaRule(OperatorTestCase):
    constructor = staticmethod(operators.delta_rule)
    value_layout = "[B, H, T, V]"

    def make_inputs(self, length):
        return {**keys(length), "beta": steps(2, length, 2)}

    def dense(self, q, k, beta):
        return replacing(q, k, torch.ones_like(q), beta)

    def upstream(self, v, q, k, beta):
        naive = upstream_function("fla.ops.delta_rule.naive", "delta_rule_recurrence")
        return naive(head_first(q), head_first(k), v, head_first(beta))


class TestDeltaRuleOfRawKeys(TestDeltaRule):
    options = {"use_qk_l2norm_in_kernel": True}

    def make_inputs(self, length):
        return {"q": draw(2, length, 2, 3), "k": draw(2, length, 2, 3), "beta": steps(2, length, 2)}

    def dense(self, q, k, beta):
        return super().dense(as_kernels_norm(q), as_kernels_norm(k), beta)

    def upstream(self, v, q, k, beta):
        return super().upstream(v, as_kernels_norm(q), as_kernels_norm(k), beta)


class TestGatedDeltaRule(OperatorTestCase):
    """Four value heads, two of each key head."""

    constructor = staticmethod(operators.gated_delta_rule)
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        return {**keys(length), "g": gates(2, length, 4), "beta": steps(2, length, 4)}

    def dense(self, q, k, g, beta):
        return replacing(q, k, g.exp()[..., None].expand(*g.shape, q.shape[-1]), beta)

    def upstream(self, v, q, k, g, beta):
        q, k = (x.repeat_interleave(2, 2) for x in (q, k))
        return upstream_function("fla.ops.gated_delta_rule.naive", "naive_recurrent_gated_delta_rule")(q, k, v, beta, g)


class TestGatedDeltaRuleFromRawInputs(OperatorTestCase):
    constructor = staticmethod(operators.gated_delta_rule)
    options = {
        "use_qk_l2norm_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "allow_neg_eigval": True,
        "use_gate_in_kernel": True,
    }
    reads = {"A_log": (None, 0), "dt_bias": (None, 0)}

    def make_inputs(self, length):
        raw = {"q": draw(2, length, 2, 3), "k": draw(2, length, 2, 3)}
        return {**raw, "g": draw(2, length, 4), "beta": draw(2, length, 4), "A_log": draw(4), "dt_bias": draw(4)}

    def dense(self, q, k, g, beta, A_log, dt_bias):
        q, k = as_kernels_norm(q), as_kernels_norm(k)
        decay = torch.exp(-A_log.exp() * softplus(g + dt_bias))
        return replacing(q, k, decay[..., None].expand(*g.shape, q.shape[-1]), 2 * beta.sigmoid())

    def upstream(self, v, q, k, g, beta, A_log, dt_bias):
        """Qwen3-Next's own function, whose norm is upstream's, with fla's gate."""
        q, k = (x.repeat_interleave(2, 2) for x in (q, k))
        gate = upstream_function("fla.ops.gated_delta_rule.gate", "naive_gdn_gate")(g, A_log, dt_bias, torch.float64)
        rule = upstream_function(
            "transformers.models.qwen3_next.modeling_qwen3_next", "torch_recurrent_gated_delta_rule"
        )
        return rule(q, k, v, gate, 2 * beta.sigmoid(), None, False, use_qk_l2norm_in_kernel=True)


class TestKDA(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.kda)
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        return {**keys(length), "g": gates(2, length, 4, 3), "beta": steps(2, length, 4)}

    def dense(self, q, k, g, beta):
        return replacing(q, k, g.exp(), beta)

    def upstream(self, v, q, k, g, beta):
        return upstream_function("fla.ops.kda.naive", "naive_recurrent_kda")(q, k, v, g, beta)


class TestKDAFromRawInputs(OperatorTestCase):
    constructor = staticmethod(operators.kda)
    options = {"use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True}
    reads = {"A_log": (None, 0)}

    def make_inputs(self, length):
        raw = {"g": draw(2, length, 2, 3), "beta": draw(2, length, 2), "A_log": draw(2)}
        return {**keys(length), **raw}

    def dense(self, q, k, g, beta, A_log):
        return replacing(q, k, torch.exp(-A_log.exp()[:, None] * softplus(g)), beta.sigmoid())

    def upstream(self, v, q, k, g, beta, A_log):
        """Kimi Linear's own function with fla's gate."""
        gate = upstream_function("fla.ops.kda.gate", "naive_kda_gate")(g, A_log, output_dtype=torch.float64)
        module = "transformers.models.kimi_linear.modeling_kimi_linear"
        return upstream_function(module, "recurrent_kimi_delta_attention")(q, k, v, gate, beta.sigmoid(), None, False)


class TestKDAWithALowerBound(OperatorTestCase):
    constructor = staticmethod(operators.kda)
    options = {"use_gate_in_kernel": True, "lower_bound": -5.0}

    def make_inputs(self, length):
        return {**keys(length), "g": draw(2, length, 2, 3), "beta": steps(2, length, 2)}

    def dense(self, q, k, g, beta):
        return replacing(q, k, torch.exp(-5 * g.sigmoid()), beta)

    def upstream(self, v, q, k, g, beta):
        bounded = upstream_function("fla.ops.kda.gate", "naive_kda_lowerbound_gate")
        gate = bounded(g, None, lower_bound=-5.0, output_dtype=torch.float64)
        return upstream_function("fla.ops.kda.naive", "naive_recurrent_kda")(q, k, v, gate, beta)


class TestComba(OperatorTestCase):
    constructor = staticmethod(operators.comba)
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        return {**keys(length), "p": draw(2, length, 2, 3) / 2, "g": gates(2, length, 4), "beta": steps(2, length, 4)}

    def dense(self, q, k, p, g, beta):
        return replacing(q, k, g.exp()[..., None].expand(*g.shape, q.shape[-1]), beta, p)

    def upstream(self, v, q, k, p, g, beta):
        q, k, p = (x.repeat_interleave(2, 2) for x in (q, k, p))
        return upstream_function("fla.ops.comba.naive", "naive_recurrent_comba")(q, k, v, p, beta, g)


class TestGDN2(OperatorTestCase):
    constructor = staticmethod(operators.gdn2)
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        return {**keys(length), "g": gates(2, length, 4, 3), "b": torch.rand(2, length, 4, 3).double()}

    def dense(self, q, k, g, b):
        erased = b * k.repeat_interleave(g.shape[2] // k.shape[2], 2)
        return replacing(q, k, g.exp(), torch.ones_like(g[..., 0]), erased)

    def upstream(self, v, q, k, g, b):
        q, k = (x.repeat_interleave(2, 2) for x in (q, k))
        return upstream_function("fla.ops.gdn2.naive", "naive_recurrent_gdn2")(q, k, v, g, b, torch.ones_like(v))


class TestDPLR(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.dplr_delta_rule)
    value_layout = "[B, H, T, V]"
    allows_minus_inf = ("gk",)
    decays = ("gk",)

    def make_inputs(self, length):
        a = normalize(draw(2, length, 2, 3), dim=-1)
        b = -a * torch.rand(2, length, 2, 3).double()
        return {**keys(length), "a": a, "b": b, "gk": gates(2, length, 2, 3)}

    def dense(self, q, k, a, b, gk):
        A = torch.diag_embed(gk.exp()) + b[..., :, None] * a[..., None, :]
        return control(A, k, q * q.shape[-1] ** -0.5)

    def upstream(self, v, q, k, a, b, gk):
        naive = upstream_function("fla.ops.generalized_delta_rule.dplr.naive", "dplr_recurrence")
        return naive(head_first(q), head_first(k), v, *(head_first(x) for x in (a, b, gk)))


class TestIPLR(OperatorTestCase):
    constructor = staticmethod(operators.iplr_delta_rule)
    value_layout = "[B, H, T, V]"

    def make_inputs(self, length):
        inputs = TestDPLR().make_inputs(length)
        return {name: inputs[name] for name in ("q", "k", "a", "b")}

    def dense(self, q, k, a, b):
        return TestDPLR().dense(q, k, a, b, torch.zeros_like(q))

    def upstream(self, v, q, k, a, b):
        naive = upstream_function("fla.ops.generalized_delta_rule.iplr.naive", "iplr_recurrence")
        return naive(head_first(q), head_first(k), v, head_first(a), head_first(b))


class TestRWKV7(OperatorTestCase):
    constructor = staticmethod(operators.rwkv7)
    value_layout = "[B, H, T, V]"
    allows_minus_inf = ("w",)
    decays = ("w",)

    def make_inputs(self, length):
        inputs = TestDPLR().make_inputs(length)
        return {"r": inputs["q"], "w": inputs["gk"], **{name: inputs[name] for name in ("k", "a", "b")}}

    def dense(self, r, w, k, a, b):
        return TestDPLR().dense(r, k, a, b, w) * r.shape[-1] ** 0.5

    def upstream(self, v, r, w, k, a, b):
        naive = upstream_function("fla.ops.generalized_delta_rule.dplr.naive", "dplr_recurrence")
        # it has a scale of its own, K ** -0.5
        r = r * r.shape[-1] ** 0.5
        return naive(head_first(r), head_first(k), v, *(head_first(x) for x in (a, b, w)))


def preconditioned(k, g_atk, beta_atk, center, x=1.5, eps=1e-6):
    """The written keys, token by token."""
    used, out = torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        used = used * g_atk[:, t].exp()[..., None] + beta_atk[:, t, :, None] * k[:, t] ** 2
        r = (used + eps).log() - center
        out.append(k[:, t] * x ** (-r / (1 + r.abs())))
    return torch.stack(out, 1)


class TestPrecondGatedDeltaRule(OperatorTestCase):
    """Of keys that are unit vectors: upstream's reference makes them so, without what its kernels add to the norm."""

    constructor = staticmethod(operators.precond_gated_delta_rule)
    allows_minus_inf = ("g", "g_atk")
    decays = ("g",)
    options = {"use_qk_l2norm_in_kernel": False}

    def make_inputs(self, length):
        atk = {"g_atk": gates(2, length, 2), "beta_atk": torch.rand(2, length, 2).double()}
        q = normalize(draw(2, length, 2, 3), dim=-1)
        return {**keys(length), "q": q, **atk, "g": gates(2, length, 4), "beta": steps(2, length, 4) / 2}

    def dense(self, q, k, g_atk, beta_atk, g, beta):
        written = preconditioned(k, g_atk, beta_atk, -0.2)
        return replacing(q, written, g.exp()[..., None].expand(*g.shape, q.shape[-1]), beta, k)

    def upstream(self, v, q, k, g_atk, beta_atk, g, beta):
        naive = upstream_function("fla.ops.precond_gated_delta_rule.naive", "naive_recurrent_precond_gated_delta_rule")
        return naive(q, k, v, g_atk, g, beta_atk, beta)


class TestPrecondGatedDeltaRuleOfRawKeys(OperatorTestCase):
    constructor = staticmethod(operators.precond_gated_delta_rule)
    allows_minus_inf = ("g", "g_atk")
    decays = ("g",)

    def make_inputs(self, length):
        inputs = TestPrecondGatedDeltaRule().make_inputs(length)
        return {**inputs, "q": draw(2, length, 2, 3), "k": draw(2, length, 2, 3)}

    def dense(self, q, k, **rest):
        return TestPrecondGatedDeltaRule().dense(as_kernels_norm(q), as_kernels_norm(k), **rest)


class TestPrecondKDA(OperatorTestCase):
    constructor = staticmethod(operators.precond_kda)
    allows_minus_inf = ("g", "g_atk")
    decays = ("g",)
    options = {"x": 2.0}
    reads = {"log_atk_scale": (None, 0)}

    def make_inputs(self, length):
        atk = {"g_atk": gates(2, length, 2), "beta_atk": torch.rand(2, length, 2).double(), "log_atk_scale": draw(2)}
        return {**keys(length), **atk, "g": gates(2, length, 4, 3), "beta": steps(2, length, 4) / 2}

    def dense(self, q, k, g_atk, beta_atk, log_atk_scale, g, beta):
        written = preconditioned(k, g_atk, beta_atk, log_atk_scale[:, None], 2.0)
        return replacing(q, written, g.exp(), beta, k)

    def upstream(self, v, q, k, g_atk, beta_atk, log_atk_scale, g, beta):
        naive = upstream_function("fla.ops.precond_kda.naive", "naive_recurrent_precond_kda")
        q, k, g_atk, beta_atk = (x.repeat_interleave(2, 2) for x in (q, k, g_atk, beta_atk))
        center = log_atk_scale.repeat_interleave(2)
        return naive(q, k, v, g, g_atk, beta_atk, beta, x=2.0, log_atk_scale=center)


class TestMomentumDeltaRule(OperatorTestCase):
    constructor = staticmethod(operators.momentum_delta_rule)
    allows_minus_inf = ("log_alpha", "log_mu")
    state_size = 6

    def make_inputs(self, length):
        shape = (2, length, 2)
        rates = {"beta": torch.rand(shape).double(), "eta": torch.rand(shape).double()}
        p = normalize(draw(*shape, 3), dim=-1)
        return {**keys(length), "log_alpha": gates(*shape), "log_mu": gates(*shape), "p": p, **rates}

    def dense(self, q, k, log_alpha, log_mu, p, beta, eta):
        batch, length, heads, size = q.shape
        T = torch.zeros(batch, heads, length, length, dtype=torch.float64)
        for j in range(length):
            memory = velocity = torch.zeros(batch, heads, size, dtype=torch.float64)
            for t in range(j, length):
                error = float(t == j) - (p[:, t] * memory).sum(-1, keepdim=True)
                velocity = log_mu[:, t].exp()[..., None] * velocity - eta[:, t, :, None] * k[:, t] * error
                memory = log_alpha[:, t].exp()[..., None] * memory - beta[:, t, :, None] * velocity
                T[:, :, t, j] = (q[:, t] * memory).sum(-1) * size**-0.5
        return T

    def upstream(self, v, q, k, log_alpha, log_mu, p, beta, eta):
        naive = upstream_function("fla.ops.momentum_delta_rule.naive", "recurrent_momentum_delta_rule_ref")
        return naive(q, k, v, log_alpha, log_mu, p, beta, eta)


class TestGatedDeltaProduct(OperatorTestCase):
    """Two steps a token: `T` has two columns for each row."""

    speaks_for_its_kind = True
    constructor = staticmethod(operators.gated_delta_product)
    options = {"num_householder": 2}
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        k = normalize(draw(2, 2 * length, 2, 3), dim=-1)
        return {"q": draw(2, length, 2, 3), "k": k, "g": gates(2, length, 2), "beta": steps(2, 2 * length, 2)}

    def dense(self, q, k, g, beta):
        batch, length, heads, size = q.shape
        T = torch.zeros(batch, heads, length, 2 * length, dtype=torch.float64)
        for written in range(2 * length):
            state = torch.zeros(batch, heads, size, dtype=torch.float64)
            for step in range(written - written % 2, 2 * length):
                if step % 2 == 0:
                    state = g[:, step // 2].exp()[..., None] * state
                error = float(step == written) - (k[:, step] * state).sum(-1, keepdim=True)
                state = state + beta[:, step, :, None] * k[:, step] * error
                if step % 2:
                    T[:, :, step // 2, written] = (q[:, step // 2] * state).sum(-1) * size**-0.5
        return T


def test_delta_product_equals_upstream():
    """Upstream has a value a step, so that T comes from values of twice the length."""
    inputs = TestGatedDeltaProduct().inputs(7)
    naive = upstream_function("fla.ops.gated_delta_product.naive", "naive_recurrent_gated_delta_product")
    one_hot = torch.eye(14).double()[None, :, None].expand(2, 14, 2, 14)
    q, k, g, beta = (inputs[name] for name in ("q", "k", "g", "beta"))
    T = naive(q, k, one_hot, g, beta, 3**-0.5, num_householder=2)[0].transpose(1, 2)
    op = operators.gated_delta_product(**inputs, num_householder=2)
    assert_close("T", op.dense(), T, 0, 1e-12)
    no_decay = operators.gated_delta_product(q, k, beta=beta, num_householder=2)
    T = naive(q, k, one_hot, None, beta, 3**-0.5, num_householder=2)[0].transpose(1, 2)
    assert_close("T without decay", no_decay.dense(), T, 0, 1e-12)


def test_steps_of_a_delta_product_must_divide():
    inputs = TestGatedDeltaProduct().inputs(7)
    with pytest.raises(ValueError, match=r"^num_householder: expected a number that divides the 14 steps of k, got 3"):
        operators.gated_delta_product(**inputs, num_householder=3)


def test_tensors_and_flags_go_together():
    inputs = {**keys(4), "g": gates(2, 4, 2), "beta": steps(2, 4, 2)}
    by_channel = {**inputs, "g": gates(2, 4, 2, 3)}
    one = torch.zeros(2).double()
    for rule, given in ((operators.gated_delta_rule, inputs), (operators.kda, by_channel)):
        with pytest.raises(ValueError, match=r"^A_log: expected use_gate_in_kernel=True beside it, got False"):
            rule(**given, A_log=one)
        with pytest.raises(ValueError, match=r"^dt_bias: expected use_gate_in_kernel=True"):
            rule(**given, dt_bias=one)
        with pytest.raises(
            ValueError, match=r"^A_log: expected a tensor \[HV\] with use_gate_in_kernel=True, got None"
        ):
            rule(**given, use_gate_in_kernel=True)
        with pytest.raises(ValueError, match=r"^allow_neg_eigval: expected use_beta_sigmoid_in_kernel=True"):
            rule(**given, allow_neg_eigval=True)
        with pytest.raises(TypeError, match=r"^use_gate_in_kernel: expected a bool"):
            rule(**given, use_gate_in_kernel=1, A_log=one)
    with pytest.raises(ValueError, match=r"^lower_bound: expected use_gate_in_kernel=True"):
        operators.kda(**by_channel, lower_bound=-5.0)
    with pytest.raises(ValueError, match=r"^lower_bound: expected a negative number, got 1"):
        operators.kda(**by_channel, use_gate_in_kernel=True, lower_bound=1.0)


def test_value_heads_must_be_a_multiple_of_the_key_heads():
    with pytest.raises(ValueError, match=r"^q: expected a number of groups H that divides the 3 heads, got 2"):
        operators.gated_delta_rule(**keys(4), g=gates(2, 4, 3), beta=steps(2, 4, 3))


def test_infinities_that_a_gate_would_squash_are_bad_data():
    inputs = TestGatedDeltaRuleFromRawInputs().inputs(5)
    for name in ("g", "beta", "A_log", "dt_bias"):
        for value in (torch.inf, -torch.inf):
            spoilt = inputs[name].clone()
            spoilt[..., 0] = value
            op = operators.gated_delta_rule(**{**inputs, name: spoilt}, **TestGatedDeltaRuleFromRawInputs.options)
            assert op.finite(op.all_heads()).view(2, 4).tolist() == [[False, True, True, True]] * 2, name
