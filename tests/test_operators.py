"""Every family against loops over its recurrence, and against the upstream functions that it is named after."""

import pytest
import torch
from loops import loop, qk
from torch.nn.functional import softplus

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function


class TestDense(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.dense)
    reads = {"T": (0, 1)}
    state_size = None

    def make_inputs(self, length):
        return {"T": torch.randn(2, 3, length, length).double()}

    def dense(self, T):
        return torch.stack([torch.stack([head.tril() for head in batch]) for batch in T])

    def test_bad_data_marks_its_heads_and_no_others(self):
        """Of a dense matrix only what lies below the diagonal counts."""
        for value in (torch.nan, torch.inf, -torch.inf):
            for row, column, counts in ((0, 0, False), (4, 4, False), (2, 7, False), (8, 0, True), (5, 4, True)):
                T = self.inputs(9)["T"]
                T[1, 2, row, column] = value
                op = operators.dense(T)
                assert op.finite(op.all_heads()).tolist() == [True] * 5 + [not counts]

    def test_empty_batch(self):
        op = operators.dense(torch.zeros(0, 3, 5, 5))
        assert op.dense().shape == (0, 3, 5, 5)
        assert op.finite(op.all_heads()).shape == (0,)

    def test_no_batch(self):
        T = torch.randn(5, 5)
        op = operators.dense(T)
        assert op.batch_shape == ()
        assert torch.equal(op.dense(), T.double().tril())


class TestLinearAttention(OperatorTestCase):
    constructor = staticmethod(operators.linear_attention)
    scales = ("q", "k")
    make_inputs = staticmethod(qk)

    def dense(self, q, k):
        return torch.einsum("bihn,bjhn->bhij", q, k).tril() * q.shape[-1] ** -0.5

    def upstream(self, v, q, k):
        return upstream_function("fla.ops.linear_attn.naive", "naive_recurrent_linear_attn")(q, k, v)


class TestNormalizedLinearAttention(OperatorTestCase):
    constructor = staticmethod(operators.linear_attention)
    options = {"normalize": True, "scale": 0.7}

    def make_inputs(self, length):
        return {name: x.abs() + 0.1 for name, x in qk(length).items()}

    def dense(self, q, k):
        T = 0.7 * torch.einsum("bihn,bjhn->bhij", q, k).tril()
        return T / (T.sum(-1, keepdim=True) + 1e-10)

    def upstream(self, v, q, k):
        naive = upstream_function("fla.ops.linear_attn.naive", "naive_recurrent_linear_attn")
        return naive(q, k, v, scale=0.7, normalize=True)


class TestGLA(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.gla)
    scales = ("q", "k")
    options = {"scale": 1.5}
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        return {**qk(length), "g": -torch.rand(2, length, 4, 3).double()}

    def dense(self, q, k, g):
        return 1.5 * loop(q, k, g.exp())

    def upstream(self, v, q, k, g):
        # it has no scale of its own but K^-1/2
        return upstream_function("fla.ops.gla.naive", "naive_recurrent_gla")(q * 1.5 * 3**0.5, k, v, g)


class TestSimpleGLA(OperatorTestCase):
    constructor = staticmethod(operators.simple_gla)
    scales = ("q", "k")
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        return {**qk(length), "g": -torch.rand(2, length, 4).double()}

    def dense(self, q, k, g):
        return 3**-0.5 * loop(q, k, g.exp()[..., None])

    def upstream(self, v, q, k, g):
        return upstream_function("fla.ops.simple_gla.naive", "naive_recurrent_simple_gla")(q, k, v, g)


class TestSimpleGLAFixed(OperatorTestCase):
    constructor = staticmethod(operators.simple_gla)
    scales = ("q", "k")
    reads = {"g_gamma": (None, 0)}
    allows_minus_inf = ("g_gamma",)
    decays = ("g_gamma",)

    def make_inputs(self, length):
        return {**qk(length), "g_gamma": -torch.rand(4).double()}

    def dense(self, q, k, g_gamma):
        return 3**-0.5 * loop(q, k, g_gamma.exp()[:, None].expand(q.shape))

    def upstream(self, v, q, k, g_gamma):
        return upstream_function("fla.ops.simple_gla.naive", "naive_parallel_simple_gla")(
            q, k, v, g_gamma.expand(q.shape[:3])
        )


class TestRetention(OperatorTestCase):
    constructor = staticmethod(operators.retention)
    scales = ("q", "k")
    value_layout = "[B, H, T, V]"
    make_inputs = staticmethod(qk)

    def dense(self, q, k):
        gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(4)], dtype=torch.float64)
        return 3**-0.5 * loop(q, k, gamma[:, None].expand(q.shape))

    def upstream(self, v, q, k):
        return upstream_function("fla.ops.retention.naive", "naive_retention")(q.transpose(1, 2), k.transpose(1, 2), v)


class TestWLA(OperatorTestCase):
    constructor = staticmethod(operators.wla)
    scales = ("q", "k")
    reads = {"g": (None, 0)}
    allows_minus_inf = ("g",)
    decays = ("g",)

    def make_inputs(self, length):
        return {**qk(length), "g": -torch.rand(4, 3).double()}

    def dense(self, q, k, g):
        return 3**-0.5 * loop(q, k, g.exp().expand(q.shape))


class TestGLAS6(OperatorTestCase):
    constructor = staticmethod(operators.gla_s6)
    scales = ("q", "k")
    options = {"alpha": 7}
    decays = ("dt",)

    def make_inputs(self, length):
        return {**qk(length), "dt": torch.rand(2, length, 4).double()}

    def dense(self, q, k, dt):
        decay = torch.stack([torch.exp(-n / 7 * dt) for n in (1, 2, 3)], -1)
        return 3**-0.5 * loop(q, k, decay)


class TestGLAS6ByChannel(TestGLAS6):
    other_sizes = ("dt",)

    def make_inputs(self, length):
        return {**qk(length), "dt": torch.rand(2, length, 4, 3).double()}

    def dense(self, q, k, dt):
        return 3**-0.5 * loop(q, k, torch.exp(-torch.tensor([1, 2, 3]).double() / 7 * dt))


class TestSSD(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.ssd)
    scales = ("B", "C")
    options = {"dt_softplus": True, "dt_limit": (0.5, 1.0)}
    decays = ("A",)
    reads = {"A": (None, 0), "dt_bias": (None, 0)}
    state_size = 3

    def make_inputs(self, length):
        return {
            "dt": torch.randn(2, length, 4).double(),
            "A": -torch.rand(4).double(),
            "B": torch.randn(2, length, 2, 3).double(),
            "C": torch.randn(2, length, 2, 3).double(),
            "dt_bias": torch.randn(4).double(),
        }

    def dense(self, dt, A, B, C, dt_bias):
        steps = softplus(dt + dt_bias).clamp(0.5, 1.0)
        B, C = B.repeat_interleave(2, 2), C.repeat_interleave(2, 2)
        return loop(C, B * steps[..., None], (A * steps).exp()[..., None])

    def upstream(self, v, dt, A, B, C, dt_bias):
        scan = upstream_function("transformers.models.mamba2.modeling_mamba2", "mamba2_chunk_scan")
        return scan(v, dt, A, B, C, chunk_size=4, dt_bias=dt_bias, dt_softplus=True, dt_limit=(0.5, 1.0))


class TestSSDBare(TestSSD):
    options = {}

    def make_inputs(self, length):
        inputs = super().make_inputs(length)
        inputs.pop("dt_bias")
        return inputs

    def dense(self, dt, A, B, C):
        B, C = B.repeat_interleave(2, 2), C.repeat_interleave(2, 2)
        return loop(C, B * dt[..., None], (A * dt).exp()[..., None])

    def upstream(self, v, dt, A, B, C):
        scan = upstream_function("transformers.models.mamba2.modeling_mamba2", "mamba2_chunk_scan")
        return scan(v, dt, A, B, C, chunk_size=4, dt_limit=(-torch.inf, torch.inf))


class TestSelectiveScan(OperatorTestCase):
    """`B` for all channels, `C` in groups."""

    speaks_for_its_kind = True
    constructor = staticmethod(operators.selective_scan)
    scales = ("B", "C")
    value_layout = "[B, D, T]"
    real_or_complex = ("A",)
    decays = ("A",)
    options = {"delta_softplus": True}
    reads = {"delta": (0, 1), "A": (None, 0), "B": (0, None), "C": (0, 1), "delta_bias": (None, 0)}
    state_size = 3

    def make_inputs(self, length):
        return {
            "delta": torch.randn(2, 4, length).double(),
            "A": -torch.rand(4, 3).double(),
            "B": torch.randn(2, 3, length).double(),
            "C": torch.randn(2, 2, 3, length).double(),
            "delta_bias": torch.randn(4).double(),
        }

    def dense(self, delta, A, B, C, delta_bias):
        steps = softplus(delta + delta_bias[:, None]).mT[..., None]
        B = B.mT[:, :, None].expand(-1, -1, 4, -1)
        C = C.repeat_interleave(2, 1).permute(0, 3, 1, 2)
        return loop(C, B * steps, (A * steps).exp())

    def upstream(self, v, delta, A, B, C, delta_bias):
        # it knows no groups: B is given to each channel's, C to the first's
        scan = upstream_function("transformers.models.mamba.modeling_mamba", "mamba_selective_scan")
        groups = [
            scan(v[:, d], delta[:, d], A[d], B, C[:, g], delta_bias=delta_bias[d], delta_softplus=True)
            for g, d in enumerate((slice(0, 2), slice(2, 4)))
        ]
        return torch.cat(groups, 1)


class TestSelectiveScanConstant(OperatorTestCase):
    """`B` and `C` the same at every step, steps as they are."""

    speaks_for_its_kind = True
    other_sizes = ("delta",)
    real_or_complex = ("A",)

    constructor = staticmethod(operators.selective_scan)
    scales = ("B", "C")
    decays = ("A",)
    reads = {"delta": (0, 1), "A": (None, 0), "B": (None, 0), "C": (None, 0)}
    state_size = 3

    def make_inputs(self, length):
        constants = {name: torch.randn(4, 3).double() for name in "BC"}
        return {"delta": torch.rand(2, 4, length).double(), "A": -torch.rand(4, 3).double(), **constants}

    def dense(self, delta, A, B, C):
        steps = delta.mT[..., None]
        return loop(C.expand(2, steps.shape[1], -1, -1), B * steps, (A * steps).exp())


def control_loop(A, B, C):
    """`C_i A_{i-1} ... A_{j+1} B_j` from `[*batch, L, n, n]` and `[*batch, L, n]`."""
    length = B.shape[-2]
    T = B.new_zeros(*B.shape[:-2], length, length)
    for j in range(length):
        state = B[..., j, :]
        for i in range(j + 1, length):
            T[..., i, j] = (C[..., i, :] * state).sum(-1)
            state = (A[..., i, :, :] @ state[..., None])[..., 0]
    return T


class TestDiagonalRecurrence(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.recurrence)
    scales = ("B", "C")
    real_or_complex = ("A", "B", "C")
    decays = ("A",)
    options = {"diagonal": True}
    reads = dict.fromkeys("ABC", (0, 1))

    def make_inputs(self, length):
        return {name: torch.randn(2, 3, length, 4).double() for name in "ABC"}

    def dense(self, A, B, C):
        return control_loop(A.diag_embed(), B, C)


class TestDenseRecurrence(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.recurrence)
    scales = ("B", "C")
    decays = ("A",)
    options = {"diagonal": False}
    reads = dict.fromkeys("ABC", (0,))

    def make_inputs(self, length):
        return {
            "A": torch.randn(2, length, 4, 4).double() / 2,
            "B": torch.randn(2, length, 4).double(),
            "C": torch.randn(2, length, 4).double(),
        }

    def dense(self, A, B, C):
        return control_loop(A, B, C)


class TestConstantRecurrence(OperatorTestCase):
    constructor = staticmethod(operators.recurrence)
    scales = ("B", "C")
    decays = ("A",)
    options = {"diagonal": False, "length": 9}
    has_rows = False
    reads = dict.fromkeys("ABC", (0,))
    lengths = (9,)

    def make_inputs(self, length):
        return {
            "A": torch.randn(2, 4, 4).double() / 2,
            "B": torch.randn(2, 4).double(),
            "C": torch.randn(2, 4).double(),
        }

    def dense(self, A, B, C):
        powers = [B]
        for _ in range(8):
            powers.append((A @ powers[-1][..., None])[..., 0])
        T = torch.zeros(2, 9, 9, dtype=torch.float64)
        for i in range(9):
            for j in range(i):
                T[:, i, j] = (C * powers[i - j - 1]).sum(-1)
        return T

    def test_no_batch(self):
        A, B, C = torch.randn(4, 4), torch.randn(4), torch.randn(4)
        op = operators.recurrence(A, B, C, diagonal=False, length=9)
        assert op.batch_shape == ()
        many = operators.recurrence(A[None], B[None], C[None], diagonal=False, length=9)
        assert_close("T", op.dense(), many.dense()[0])


def by_lag(taps, length):
    T = taps.new_zeros(*taps.shape[:-1], length, length)
    for i in range(length):
        for j in range(max(0, i - taps.shape[-1] + 1), i + 1):
            T[..., i, j] = taps[..., i - j]
    return T


class TestConvolution(OperatorTestCase):
    constructor = staticmethod(operators.convolution)
    scales = ("k",)
    value_layout = "[D, T]"
    lags, has_rows = ("k",), False
    reads = {"k": (0,)}
    state_size = None

    def make_inputs(self, length):
        return {"k": torch.randn(3, length).double()}

    def dense(self, k):
        return by_lag(k, k.shape[-1])

    def upstream(self, v, k):
        # it adds its input to the output
        return upstream_function("fla.modules.long_conv", "fft_conv")(v[None], k, None, gelu=False)[0] - v


class TestGatedConvolution(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.gated_convolution)
    scales = ("x0", "k", "x1")
    lags = ("k",)
    reads = {"x0": (0, 1), "k": (None, 0), "x1": (0, 1)}
    state_size = None

    def make_inputs(self, length):
        gates = {name: torch.randn(2, 3, length).double() for name in ("x0", "x1")}
        return {**gates, "k": torch.randn(3, length).double()}

    def dense(self, x0, k, x1):
        return x0.diag_embed() @ by_lag(k, k.shape[-1]) @ x1.diag_embed()


class TestShortConvolution(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.short_convolution)
    scales = ("weight",)
    value_layout = "[D, T]"
    has_rows = False
    options = {"length": 9}
    reads = {"weight": (0,)}
    lengths = (9,)
    state_size = 3

    def make_inputs(self, length):
        return {"weight": torch.randn(3, 4).double()}

    def dense(self, weight):
        return by_lag(weight.flip(-1), 9)

    def test_tokens_are_the_matrix_below_its_diagonal(self):
        """The engine reads the shift register, `dense` the Toeplitz matrix: both must be the same filter."""
        op = self.make_operator(self.inputs(9))
        tokens = op.tokens(op.all_heads())
        assert_close("T", control_loop(tokens.transition, tokens.write, tokens.read), op.dense().tril(-1))

    def upstream(self, v, weight):
        return upstream_function("transformers.models.mamba.modeling_mamba", "causal_conv1d_fn")(v[None], weight)[0]


class TestShortConvolutionLongerThanTheSequence(TestShortConvolution):
    state_size = 11

    def make_inputs(self, length):
        return {"weight": torch.randn(3, 12).double()}


class TestShortConvolutionOfOneTap(OperatorTestCase):
    constructor = staticmethod(operators.short_convolution)
    has_rows = False
    options = {"length": 9}
    reads = {"weight": (0,)}
    lengths = (9,)
    state_size = 0

    def make_inputs(self, length):
        return {"weight": torch.randn(3, 1).double()}

    def dense(self, weight):
        return by_lag(weight, 9)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_short_sequences_of_constant_families(length):
    taps = operators.short_convolution(torch.randn(3, 4), length)
    assert_close("convolution", taps.dense(), by_lag(taps.weight.double().flip(-1), length))
    constant = operators.recurrence(torch.ones(2), torch.ones(2), torch.ones(2), diagonal=True, length=length)
    assert_close("recurrence", constant.dense(), 2 * torch.ones(length, length).tril(-1))


def test_an_empty_sequence_is_an_empty_matrix():
    q = torch.zeros(2, 0, 4, 3)
    for op in (operators.gla(q, q, q), operators.dense(torch.zeros(2, 4, 0, 0)), operators.attention(q.mT.mT, q)):
        assert op.dense().shape == (*op.batch_shape, op.length, op.length)
        assert bool(op.finite(op.all_heads()).all())


# --- what fused kernels rely on ---------------------------------------------------------------------------------------


def test_shared_gates_and_groups_are_views():
    inputs = TestSSD().inputs(9)
    op = operators.ssd(**inputs)
    assert op.q is inputs["C"] and op.k is inputs["B"]
    assert op.g.shape == (2, 9, 4, 3) and op.g.stride(-1) == 0
    fixed = operators.wla(**TestWLA().inputs(9))
    assert fixed.g.shape == (2, 9, 4, 3) and fixed.g.stride()[:2] == (0, 0)
    scan = operators.selective_scan(**TestSelectiveScanConstant().inputs(9))
    assert scan.B.shape == (4, 3)


def test_constructors_compile_without_a_break():
    def build(q, k, g):
        gated = operators.gla(q, k, g)
        masked = operators.attention(q.transpose(1, 2), k.transpose(1, 2), window_size=2, softcap=2.0)
        scanned = operators.selective_scan(g[:, :, 0], g[0, :, 0], q[0, :, 0], k[0, :, 0], delta_softplus=True)
        return gated.q * gated.scale + masked.k.transpose(1, 2), scanned.delta

    inputs = TestGLA().inputs(9)
    got = torch.compile(build, fullgraph=True, backend="eager")(**inputs)
    for name, x, y in zip(("gated", "scanned"), got, build(**inputs)):
        assert_close(name, x, y)
