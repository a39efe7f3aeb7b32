"""Softmax attention against `scaled_dot_product_attention`, transformers' eager attention and fla's."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ess_kernels import operators
from ess_kernels.testing import OperatorTestCase, assert_close, upstream_function

L = 9
# upstream's softmax is in float32
UPSTREAM = 1e-5


def softmax_loop(q, k, scale, keep, cap=None, sinks=None, bias=None):
    """Row by row over the columns that are kept, `keep [B, H, L, L]` bool."""
    batch, heads, length, _ = q.shape
    k = k.repeat_interleave(heads // k.shape[1], 1)
    T = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = [j for j in range(i + 1) if keep[b, h, i, j]]
                if not seen:
                    continue
                z = torch.stack([scale * (q[b, h, i] * k[b, h, j]).sum() for j in seen])
                if cap is not None:
                    z = cap * (z / cap).tanh()
                if bias is not None:
                    z = z + bias[b, h, i, seen]
                extra = [] if sinks is None else [sinks[h]]
                T[b, h, i, seen] = z.exp() / (z.exp().sum() + sum(s.exp() for s in extra))
    return T


def everything(q):
    return torch.ones(*q.shape[:3], q.shape[2], dtype=torch.bool)


def grouped(length, *, heads=4, kv=2, size=3):
    return {"q": torch.randn(2, heads, length, size).double(), "k": torch.randn(2, kv, length, size).double()}


def fla_attention(v, q, k):
    """fla's function, whose values have as many heads as its keys: each of two query heads of a group by itself."""
    naive = upstream_function("fla.ops.attn.naive", "naive_parallel_attn")
    k = k.transpose(1, 2)
    parts = [naive(q[:, n::2].transpose(1, 2), k, v[:, n::2].transpose(1, 2))[0] for n in range(2)]
    return torch.stack(parts, 3).flatten(2, 3).transpose(1, 2)


class TestAttention(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.attention)
    reads = {"q": (0, 1), "k": (0, 1)}
    state_size = None
    value_layout = "[B, H, T, V]"
    make_inputs = staticmethod(grouped)

    def dense(self, q, k):
        return softmax_loop(q, k, 3**-0.5, everything(q))

    def upstream(self, v, q, k):
        return fla_attention(v, q, k)


class TestCappedWindowWithSinks(OperatorTestCase):
    speaks_for_its_kind = True
    constructor = staticmethod(operators.attention)
    options = {"scale": 2.0, "window_size": 3, "softcap": 1.5}
    reads = {"q": (0, 1), "k": (0, 1), "sinks": (None, 0)}
    allows_minus_inf = ("sinks",)
    state_size = None

    def make_inputs(self, length):
        return {**grouped(length), "sinks": torch.randn(4).double()}

    def dense(self, q, k, sinks):
        keep = everything(q) & ~torch.ones(q.shape[2], q.shape[2]).bool().tril(-3)
        return softmax_loop(q, k, 2.0, keep, cap=1.5, sinks=sinks)


class TestAdditiveMask(OperatorTestCase):
    constructor = staticmethod(operators.attention)
    reads = {"q": (0, 1), "k": (0, 1), "attn_mask": (None, 0)}
    allows_minus_inf = ("attn_mask",)
    state_size = None

    def make_inputs(self, length):
        return {**grouped(length), "attn_mask": torch.randn(4, length, length).double()}

    def dense(self, q, k, attn_mask):
        bias = attn_mask.expand(2, -1, -1, -1)
        return softmax_loop(q, k, 3**-0.5, bias > -torch.inf, bias=bias)

    def test_wrong_dtypes_are_refused_by_name(self):
        with pytest.raises(TypeError, match=r"attn_mask.*int64"):
            operators.attention(**{**self.inputs(3), "attn_mask": torch.zeros(3, 3).long()})


@pytest.mark.parametrize("shape", [(L, L), (1, L), (4, 1, L), (2, 1, L, L), (2, 4, L, L), (1, 1, 1, 1), ()])
def test_bool_masks_of_every_broadcast_shape(shape):
    torch.manual_seed(len(shape))
    inputs = grouped(L)
    mask = torch.rand(shape) < 0.6
    keep = mask.expand(2, 4, L, L)
    T = operators.attention(**inputs, attn_mask=mask).dense()
    assert_close("T", T, softmax_loop(**inputs, scale=3**-0.5, keep=keep))


@pytest.mark.parametrize("masked", [False, True])
def test_against_sdpa(masked):
    torch.manual_seed(0)
    inputs = grouped(L)
    v = torch.eye(L).double().expand(2, 2, L, L)
    if masked:
        mask = torch.rand(2, 1, L, L) < 0.7
        mask |= torch.eye(L).bool()
        options = {"attn_mask": mask & torch.ones(L, L).bool().tril()}
    else:
        mask, options = None, {"is_causal": True}
    expected = scaled_dot_product_attention(inputs["q"], inputs["k"], v, enable_gqa=True, scale=0.4, **options)
    assert_close("T", operators.attention(**inputs, attn_mask=mask, scale=0.4).dense(), expected)


def eager(family, q, k, mask, **options):
    """transformers' eager attention with the identity as values: what it returns as weights must be its output too."""
    module = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    layer = SimpleNamespace(num_key_value_groups=2, training=False, **options.pop("layer", {}))
    v = torch.eye(L).expand(2, 2, L, L)
    output, weights = module.eager_attention_forward(layer, q, k, v, mask, **options)
    assert_close("output", output.transpose(1, 2), weights, UPSTREAM, UPSTREAM)
    return weights


def test_against_transformers():
    torch.manual_seed(1)
    q, k = (x.float() for x in grouped(L).values())
    causal = torch.full((L, L), torch.finfo(torch.float32).min).triu(1)[None, None]
    window = causal + torch.full((L, L), torch.finfo(torch.float32).min).tril(-4)
    sinks = torch.randn(4)
    llama = eager("llama", q, k, causal, scaling=0.5)
    assert_close("llama", operators.attention(q, k, scale=0.5).dense(), llama, UPSTREAM, UPSTREAM)
    gemma = eager("gemma2", q, k, window, scaling=0.5, softcap=2.0)
    op = operators.attention(q, k, scale=0.5, softcap=2.0, window_size=4)
    assert_close("gemma2", op.dense(), gemma, UPSTREAM, UPSTREAM)
    gpt_oss = eager("gpt_oss", q, k, causal, scaling=0.5, layer={"sinks": sinks})
    assert_close("gpt_oss", operators.attention(q, k, scale=0.5, sinks=sinks).dense(), gpt_oss, UPSTREAM, UPSTREAM)
    # the mask that transformers passes is itself a fair argument
    given = operators.attention(q, k, scale=0.5, attn_mask=causal)
    assert bool(given.finite(given.all_heads()).all())
    assert_close("mask", given.dense(), llama, UPSTREAM, UPSTREAM)


def test_against_fla():
    naive = pytest.importorskip("fla.ops.attn.naive").naive_parallel_attn
    torch.manual_seed(2)
    q, k = (x.float() for x in grouped(L).values())
    sinks = torch.randn(4)
    v = torch.eye(L)[None, :, None].expand(2, -1, 2, -1)
    o, _ = naive(q.transpose(1, 2), k.transpose(1, 2), v, window_size=3, sink_bias=sinks)
    op = operators.attention(q, k, window_size=3, sinks=sinks)
    assert_close("T", op.dense(), o.transpose(1, 2), UPSTREAM, UPSTREAM)


@pytest.mark.parametrize("additive", [False, True])
def test_fully_masked_rows_are_zero_and_so_is_their_gradient(additive):
    inputs = {name: x.requires_grad_() for name, x in grouped(L).items()}
    mask = torch.ones(L, L).bool()
    mask[3] = False
    if additive:
        mask = torch.zeros(L, L).masked_fill(~mask, -torch.inf)
    for sinks in (None, torch.zeros(4)):
        T = operators.attention(**inputs, attn_mask=mask, sinks=sinks).dense()
        assert bool((T[..., 3, :] == 0).all())
        gradients = torch.autograd.grad(T.square().sum(), list(inputs.values()))
        assert all(bool(x.isfinite().all()) for x in gradients)
        assert bool((gradients[0][:, :, 3] == 0).all())


def test_a_hidden_bad_key_still_marks_its_heads():
    for options in ({"window_size": 2}, {"attn_mask": torch.arange(L) > 0}, {"softcap": 1.0}):
        for value in (torch.nan, torch.inf):
            inputs = grouped(L)
            inputs["k"][1, 0, 0] = value
            op = operators.attention(**inputs, **options)
            assert op.finite(op.all_heads()).tolist() == [True] * 4 + [False, False, True, True]


def test_scores_that_overflow_mark_their_heads():
    inputs = grouped(L)
    inputs["q"][0, 1, 5] = 1e200
    inputs["k"][0, 0, 2] = 1e200
    # cap and softmax would make fair numbers of infinite scores
    for options in ({}, {"softcap": 5.0}):
        op = operators.attention(**inputs, **options)
        assert op.finite(op.all_heads()).tolist() == [True, False] + [True] * 6
    # the same numbers where they do not meet: row 1 does not see column 2
    inputs["q"][0, 1, 5] = 1
    inputs["q"][0, 1, 1] = 1e200
    op = operators.attention(**inputs)
    assert bool(op.finite(op.all_heads()).all())


def test_large_scores_do_not_overflow():
    inputs = {name: 1e3 * x for name, x in grouped(L).items()}
    T = operators.attention(**inputs).dense()
    assert_close("row sums", T.sum(-1), torch.ones(2, 4, L))


def test_a_window_as_long_as_the_sequence_changes_nothing():
    inputs = grouped(L)
    assert torch.equal(operators.attention(**inputs, window_size=L).dense(), operators.attention(**inputs).dense())
    alone = operators.attention(**inputs, window_size=1).dense()
    assert torch.equal(alone, torch.eye(L).double().expand_as(alone))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"is_causal": False}, ValueError, ["is_causal", "True", "False"]),
        ({"window_size": 0}, ValueError, ["window_size", "at least 1", "0"]),
        ({"window_size": 2.5}, TypeError, ["window_size", "integer", "float"]),
        ({"window_size": True}, TypeError, ["window_size", "integer", "bool"]),
        ({"softcap": 0.0}, ValueError, ["softcap", "positive", "0.0"]),
        ({"scale": torch.tensor(1.0)}, TypeError, ["scale", "number", "Tensor"]),
        ({"scale": float("inf")}, ValueError, ["scale", "finite", "inf"]),
        ({"sinks": torch.zeros(3)}, ValueError, ["sinks", "[H] = [4]", "[3]"]),
        ({"attn_mask": torch.zeros(5, L)}, ValueError, ["attn_mask", "[2, 4, 9, 9]", "[5, 9]"]),
        ({"attn_mask": torch.zeros(1, 2, 4, L, L)}, ValueError, ["attn_mask", "[2, 4, 9, 9]", "[1, 2, 4, 9, 9]"]),
        ({"k": torch.zeros(2, 3, L, 3)}, ValueError, ["k", "Hkv", "4 heads", "3"]),
        ({"k": torch.zeros(2, 2, L, 5)}, ValueError, ["k", "[2, 2, 9, 3]", "[2, 2, 9, 5]"]),
        ({"k": torch.zeros(2, 2, L)}, ValueError, ["k", "4 axes", "[2, 2, 9]"]),
        ({"q": torch.zeros(2, 4, L, 0), "k": torch.zeros(2, 2, L, 0)}, ValueError, ["q", "E", "at least 1", "0"]),
    ],
)
def test_wrong_arguments(change, error, words):
    with pytest.raises(error) as caught:
        operators.attention(**{**grouped(L), **change})
    assert all(word in str(caught.value) for word in words), caught.value
