"""Operators made of others: weighted sums, and `T` by a function of rows."""

import pytest
import torch
from loops import gates, randn
from rows import decays, heads_first, repeated, row_by_row, softmax, tokens_first

import ess_kernels as ek
from ess_kernels import operators
from ess_kernels.operators import packing
from ess_kernels.testing import OperatorTestCase, assert_close
from ess_kernels.testing.upstream import float64_for_float32


def differential(q, k, w):
    """One softmax less another, which is sharper."""
    return operators.sum_of(operators.attention(q, k), operators.attention(q, k, scale=2.0), weights=(1.0, w))


class TestDifferentialAttention(OperatorTestCase):
    constructor = staticmethod(differential)
    reads = {"q": (0, 1), "k": (0, 1), "w": (None, 0)}
    state_size = None

    def make_inputs(self, length):
        return {**heads_first(length), "w": -torch.rand(4).double()}

    def dense(self, q, k, w):
        def row(b, h, i):
            scores = repeated(k, 4, 1)[b, h, : i + 1] @ q[b, h, i]
            return softmax(scores / 3**0.5) + w.expand(4)[h] * softmax(2 * scores)

        return row_by_row((2, 4), q.shape[2], row)


def test_differential_attention_is_that_of_diffllama():
    modeling = pytest.importorskip("transformers.models.diffllama.modeling_diffllama")
    config = modeling.DiffLlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_dropout=0.0
    )
    config._attn_implementation = "eager"
    layer = modeling.DiffLlamaAttention(config, layer_idx=3).double().eval()
    q, k = heads_first(8, size=8).values()
    one_hot = torch.eye(8).double().repeat(1, 2).expand(2, 8, 16)  # both halves of the values are the same
    for name, projected in (("q_proj", q), ("k_proj", k), ("v_proj", one_hot.unflatten(-1, (2, 8)).transpose(1, 2))):
        setattr(layer, name, Given(projected.transpose(1, 2).flatten(2)))
    layer.groupnorm = layer.o_proj = torch.nn.Identity()
    hidden = torch.full((8, 8), -torch.inf).double().triu(1)[None, None]
    no_rotation = torch.ones(2, 8, 8).double(), torch.zeros(2, 8, 8).double()
    with float64_for_float32(), torch.no_grad():
        output = layer(randn(2, 8, 32), no_rotation, hidden)[0]
        lam = (layer.lambda_q1 * layer.lambda_k1).sum().exp() - (layer.lambda_q2 * layer.lambda_k2).sum().exp()
        lam = lam + layer.lambda_init
    found = output.unflatten(-1, (2, 16))[..., :8].transpose(1, 2) / (1 - layer.lambda_init)
    halves = zip(q.chunk(2, 1), k.chunk(2, 1))
    op = operators.sum_of(*(operators.attention(*half) for half in halves), weights=(1.0, -lam))
    assert_close("T", op.dense(), found, 1e-12)


class Given(torch.nn.Module):
    """A projection whose outputs are known."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _):
        return self.output


def side_by_side(q, k, g, w):
    gla = operators.gla(q, k, g)
    return operators.sum_of(gla, operators.attention(q.transpose(1, 2), k.transpose(1, 2)), weights=[0.5, w])


class TestMixersSideBySide(OperatorTestCase):
    constructor = staticmethod(side_by_side)
    reads = {"w": (0, 1)}
    allows_minus_inf = ("g",)
    state_size = None

    def make_inputs(self, length):
        return {**tokens_first(length, kv=4), "g": gates(2, length, 4, 3), "w": randn(2, 4, length)}

    def dense(self, q, k, g, w):
        def row(b, h, i):
            channels = torch.stack([decays(g[b, :, h, n], i) for n in range(3)], -1).exp()
            keys, query = k[b, : i + 1, h], q[b, i, h] / 3**0.5
            share = w[b, h] if w.dim() == 2 else w[b, h, i]
            return 0.5 * (channels * keys) @ query + share * softmax(keys @ query)

        return row_by_row((2, 4), q.shape[1], row)


def two_decays(q, k, g, w):
    return operators.sum_of(operators.gla(q, k, g), operators.retention(q, k), weights=[w, 0.5])


class TestTwoDecays(OperatorTestCase):
    """A sum of diagonal recurrences is one."""

    constructor = staticmethod(two_decays)
    reads = {"w": (None, 0)}
    allows_minus_inf = ("g",)
    decays = ("g",)
    state_size = 6

    def make_inputs(self, length):
        return {**tokens_first(length, kv=4), "g": gates(2, length, 4, 3), "w": randn(4)}

    def dense(self, q, k, g, w):
        gla, retention = operators.gla(q, k, g).dense(), operators.retention(q, k).dense()
        return w.expand(4)[:, None, None] * gla + 0.5 * retention


def test_sums_of_recurrences_that_read_at_other_times():
    """Rows of T serve where states cannot stand side by side; where they can, the bonus of RWKV-6 is in T alone."""
    q, k = tokens_first(9, kv=4).values()
    gate, bonus = gates(2, 9, 4, 3), randn(4, 3)
    before = operators.rwkv6(q, k, gate, bonus)
    for ops in ((before, operators.gla(q, k, gate)), (before, before)):
        op = operators.sum_of(*ops, weights=(1.0, randn(2, 4, 9)))
        assert_close("T", op.dense(), ops[0].dense() + op.weights[1][..., None] * ops[1].dense(), 1e-12)
        assert isinstance(op, operators.StateSpace) == (ops[1] is before)
        by_rows = operators.sum_of(op, operators.dense(torch.zeros(2, 4, 9, 9)), weights=(1.0, 1.0))
        assert_close("T", by_rows.dense(), op.dense(), 1e-12)
        assert_close("counts", ek.tolerance_ess(op, 0.01), ek.tolerance_ess(op.dense(), 0.01), 0, 0)


def test_a_sum_of_any_operators_is_the_sum_of_their_matrices():
    torch.manual_seed(0)
    q, k = tokens_first(70, kv=4).values()
    gate, beta = gates(2, 70, 4, 3), 2 * torch.rand(2, 70, 4).double()
    ops = [
        operators.rwkv6(q, k, gate, randn(4, 3)),
        operators.delta_rule(q, k, beta, use_qk_l2norm_in_kernel=True),
        operators.dense(randn(2, 4, 70, 70)),
        operators.dynamic_short_convolution(randn(2, 4, 70, 3)),
        operators.recurrence(randn(2, 4, 70, 3, 3) / 3, randn(2, 4, 70, 3), randn(2, 4, 70, 3), diagonal=False),
    ]
    weights = [randn(()), randn(4), randn(2, 1, 70), 0.5, -2.0]
    op = operators.sum_of(*ops, weights=weights)
    each = [w if isinstance(w, float) else w[..., None] for w in (weights[0][None], weights[1][:, None], *weights[2:])]
    T = sum(w * part.dense() for w, part in zip(each, ops))
    assert_close("T", op.dense(), T, 1e-11, 1e-12)
    everything = op.dense_heads(op.all_heads())
    for start, stop in ((0, 10), (30, 40), (64, 70)):
        assert_close("rows", op.rows(op.all_heads(), start, stop), everything[:, start:stop, :stop], 1e-11)
    assert op.state_size is None
    finite = operators.sum_of(*ops[:2], weights=(1, 1))
    assert finite.state_size == 6
    assert (ek.tolerance_ess(finite, 0.0) <= 6).all()
    again = operators.sum_of(finite, ops[2], weights=(1.0, 0.5))
    assert_close("T", again.dense(), ops[0].dense() + ops[1].dense() + 0.5 * ops[2].dense(), 1e-11)


@pytest.mark.parametrize(
    "ops, weights, error, match",
    [
        ([], [], ValueError, "^ops: .*none"),
        ([0], [1.0], TypeError, "^ops: .*int at 0"),
        (["T", "longer"], [1, 1], ValueError, r"^ops: expected length 5 .* got length 6"),
        (["T", "blocks"], [1, 1], TypeError, "^ops: .*Blocked at 1"),
        (["T"], 1.0, TypeError, "^weights: .*float"),
        (["T"], [1.0, 2.0], ValueError, "^weights: expected 1 of them.* got 2"),
        (["T"], [float("nan")], ValueError, r"^weights\[0\]: .*nan"),
        (["T"], [torch.zeros(3)], ValueError, r"^weights\[0\]: .*\[3\]"),
        (["T"], [torch.zeros(2, 4)], ValueError, r"^weights\[0\]: .*\[2, 4\]"),
        (["T"], [torch.zeros(2).long()], TypeError, r"^weights\[0\]: .*int64"),
    ],
)
def test_sums_that_make_no_sense(ops, weights, error, match):
    known = {
        "T": operators.dense(randn(2, 5, 5)),
        "longer": operators.dense(randn(2, 6, 6)),
        "blocks": operators.dense(randn(2, 10, 10), block=2),
    }
    with pytest.raises(error, match=match):
        operators.sum_of(*(known.get(op, op) for op in ops), weights=weights)


def attention_by_tiles(q, k):
    attention = operators.attention(q, k)

    def rows(heads, start, stop):
        good = torch.where(attention.finite(heads), 1.0, torch.nan)
        return good[:, None, None] * attention.rows(heads, start, stop)

    return operators.tiles(rows, length=q.shape[2], batch_shape=q.shape[:2], device=q.device)


class TestTiles(OperatorTestCase):
    constructor = staticmethod(attention_by_tiles)
    reads = {"q": (0, 1), "k": (0, 1)}
    state_size = None
    make_inputs = staticmethod(heads_first)

    def dense(self, q, k):
        hidden = torch.ones(q.shape[2], q.shape[2]).triu(1).bool()
        return (q @ repeated(k, q.shape[1], 1).mT / 3**0.5).masked_fill(hidden, -torch.inf).softmax(-1)

    def test_an_operator_survives_packing(self):
        assert packing.pack(self.make_operator(self.inputs(9))) is None
        assert packing.pack(operators.sum_of(self.make_operator(self.inputs(9)), weights=[1.0])) is None

    def test_a_compiled_graph_says_that_it_cannot_hold_a_function(self):
        op = self.make_operator(self.inputs(9))
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: x + ek.entropy_ess(op), backend="eager")
        assert torch.equal(compiled(torch.ones(())), 1 + ek.entropy_ess(op))
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"only operators of ess_kernels\.operators|graph"):
            torch.compile(lambda x: x + ek.entropy_ess(op), backend="eager", fullgraph=True)(torch.ones(()))

    def test_a_gradient_of_the_entropy(self):
        inputs = {name: x.requires_grad_() for name, x in self.inputs(5).items()}
        found = torch.autograd.grad(ek.entropy_ess(self.make_operator(inputs)).sum(), inputs.values())
        wanted = torch.autograd.grad(ek.entropy_ess(operators.attention(**inputs)).sum(), inputs.values())
        for x, y in zip(found, wanted):
            assert_close("gradient", x, y, 1e-9)


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"rows": 3}, TypeError, "^rows: .*int"),
        ({"rows": lambda heads, start, stop: 3}, TypeError, "^rows.*int"),
        ({"rows": lambda heads, start, stop: torch.zeros(1, stop - start, stop).long()}, TypeError, "^rows.*int64"),
        ({"rows": lambda heads, start, stop: torch.zeros(5, 5)}, ValueError, r"^rows: .*\[5, 5\]"),
        ({"length": -1}, ValueError, "^length"),
        ({"batch_shape": 3}, TypeError, "^batch_shape"),
        ({"batch_shape": (2, 0.5)}, TypeError, "^batch_shape"),
        ({"device": "nowhere"}, ValueError, "^device"),
    ],
)
def test_tiles_that_make_no_sense(change, error, match):
    good = {"rows": lambda heads, start, stop: torch.zeros(len(heads), stop - start, stop), "length": 5}
    with pytest.raises(error, match=match):
        operators.tiles(**{**good, "batch_shape": (2,), "device": "cpu", **change})
