"""Attention in models of torch alone: what its own functions show, without any library's help."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ess_kernels.capture import capturing, verify
from ess_kernels.capture.call import ATTRIBUTION_ONLY, INDEPENDENT
from ess_kernels.capture.one_hot import NotCausal

B, H, L, E, D = 2, 3, 13, 4, 5
LOWER = torch.ones(L, L).tril().bool()


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(heads=H, key_heads=H, dtype=torch.float32):
    shapes = ((heads, E), (key_heads, E), (key_heads, D))
    return [randn(B, h, L, n, seed=i, dtype=dtype) for i, (h, n) in enumerate(shapes)]


def weights_of(q, k):
    """What softmax attention's weights are, written once more."""
    scores = q.double() @ k.double().mT / E**0.5
    return scores.masked_fill(~LOWER, -torch.inf).softmax(-1)


def causal_softmax(q, k):
    return (q @ k.mT / E**0.5).masked_fill(~LOWER, -torch.inf).softmax(-1)


class Calling(nn.Module):
    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def captured(function, *args, shape=(B, L), attention_mask=None, model=None, **kwargs):
    """The calls that are seen when a model's attention calls the function, the operators, and what was refused."""
    model = Calling(lambda *args, **kwargs: model.attention(*args, **kwargs), attention=Calling(function))
    model.eval()
    found = []
    with torch.no_grad():
        plain = function(*args, **kwargs)
        seen = capturing(
            model, lambda call: found.append((call, verify(call))), attention_mask=attention_mask, shape=shape
        )
        with seen as capture:
            output = model(*args, **kwargs)
    assert torch.equal(output, plain)
    assert all((call.name, call.mixer, call.route) == ("attention", "attention", "torch") for call, _ in found)
    assert all(found_operator.capture_error <= 1e-6 for _, found_operator in found)
    return found, capture.refused


def only(found_and_refused):
    """The one call and its operator."""
    [(call, verified)], refused = found_and_refused
    assert refused == {}
    return call, verified


# --- scaled_dot_product_attention ------------------------------------------------------------------------------------

ADDED = torch.zeros(L, L).masked_fill(~LOWER, -torch.inf)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"attn_mask": LOWER},
        {"attn_mask": LOWER.expand(B, 1, L, L)},
        {"attn_mask": ADDED},
        {"attn_mask": ADDED.expand(1, H, L, L)},
        {"attn_mask": ADDED.masked_fill(ADDED.isinf(), torch.finfo(torch.float32).min)},
    ],
    ids=["is_causal", "bool", "bool by row", "float", "float by head", "large negative"],
)
def test_attention_of_torch(options):
    q, k, v = qkv()
    call, found = only(captured(lambda: functional.scaled_dot_product_attention(q, k, v, **options)))
    assert torch.allclose(found.operator.dense(), weights_of(q, k), rtol=0, atol=1e-6)
    assert (call.check, found.route) == (INDEPENDENT, "torch")
    assert call.one_hot is not None


def test_a_mask_that_adds_and_a_scale():
    q, k, v = qkv()
    bias = randn(H, L, L, seed=7)
    mask = bias + ADDED
    _, found = only(captured(lambda: functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3)))
    expected = (0.3 * q.double() @ k.double().mT + mask.double()).softmax(-1)
    assert torch.allclose(found.operator.dense(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key_heads", [1, 3])
def test_grouped_heads(key_heads):
    q, k, v = qkv(6, key_heads)
    attend = functional.scaled_dot_product_attention
    call, found = only(captured(lambda: attend(q, k, v, is_causal=True, enable_gqa=True)))
    assert found.operator.batch_shape == (B, 6)
    assert call.values.shape[1] == key_heads
    expected = weights_of(q, k.repeat_interleave(6 // key_heads, 1))
    assert torch.allclose(found.operator.dense(), expected, rtol=0, atol=1e-6)


def test_arguments_by_name():
    q, k, v = qkv()
    attend = functional.scaled_dot_product_attention
    only(captured(lambda: attend(query=q, key=k, value=v, is_causal=True)))


def test_padding():
    q, k, v = qkv()
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[0, :4] = False
    allowed = LOWER & mask[:, None, None, :]
    attend = functional.scaled_dot_product_attention
    _, found = only(captured(lambda: attend(q, k, v, allowed), attention_mask=mask))
    T = found.operator.dense()
    assert not T[0, :, :4].any()
    assert not T[0, :, :, :4].any()
    assert torch.equal(found.operator.valid.sum(1), mask.sum(1) - 1)
    assert found.remark == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_causal": False}, "bidirectional: no mask, and is_causal is False"),
        ({"dropout_p": 0.5}, "dropout of 0.5 in training"),
    ],
)
def test_attention_that_is_refused(change, reason):
    q, k, v = qkv()
    found = []
    model = Calling(lambda: functional.scaled_dot_product_attention(q, k, v, **{"is_causal": True} | change))
    with torch.no_grad(), capturing(model, found.append, shape=(B, L)) as seen:
        model()
    assert found == []
    assert reason in seen.refused[""]


def test_a_mask_that_lets_the_future_in():
    q, k, v = qkv()
    mask = LOWER | torch.eye(L).bool().roll(1, 1)
    model, calls = Calling(lambda: functional.scaled_dot_product_attention(q, k, v, mask)), []
    with torch.no_grad(), capturing(model, calls.append, shape=(B, L)):
        model()
    with pytest.raises(NotCausal, match="not causal"):
        verify(calls[0])


@pytest.mark.parametrize(
    ("queries", "keys", "reason"),
    [
        ((B, H, L, E), (B, H, 7, E), "7 keys for 13 queries: cross-attention"),
        ((B, H, 7, E), (B, H, 7, E), "7 queries where the sequence has 13 tokens"),
        ((B, L, 7, E), (B, L, 7, E), "attention over another axis than time"),
    ],
)
def test_attention_over_something_else(queries, keys, reason):
    q, k, v = randn(*queries), randn(*keys), randn(*keys)
    found, refused = captured(lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert found == []
    assert list(refused) == ["attention"]
    assert reason in refused["attention"]


# --- a softmax and a product -----------------------------------------------------------------------------------------


PRODUCTS = {
    "matmul": lambda w, v: torch.matmul(w, v),
    "operator": lambda w, v: w @ v,
    "method": lambda w, v: w.matmul(v),
    "by name": lambda w, v: torch.matmul(w, other=v),
    "einsum": lambda w, v: torch.einsum("bhij,bhjd->bhid", w, v),
    "einsum, time first": lambda w, v: torch.einsum("bhij,bjhd->bihd", w, v.transpose(1, 2)),
    "einsum, time before the batch": lambda w, v: torch.einsum("b h i j, j b h d -> i b h d", w, v.permute(2, 0, 1, 3)),
    "einsum, values first": lambda w, v: torch.einsum("bhjd,bhij->bhid", v, w),
    "einsum of a list": lambda w, v: torch.einsum("bhij,bhjd->bhid", [w, v]),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_softmax_and_a_product(product):
    q, k, v = qkv()
    call, found = only(captured(lambda: product(causal_softmax(q, k), v)))
    assert torch.allclose(found.operator.dense(), weights_of(q, k), rtol=0, atol=1e-6)
    assert found.operator.batch_shape == (B, H)
    assert (call.check, call.one_hot) == (ATTRIBUTION_ONLY, None)


BATCHED_PRODUCTS = {
    "bmm": lambda w, v: torch.bmm(w.flatten(0, 1), v.flatten(0, 1)),
    "bmm method": lambda w, v: w.view(-1, L, L).bmm(v.reshape(-1, L, D)),
    "bmm by name": lambda w, v: torch.bmm(input=w.squeeze(0), mat2=v.squeeze(0)),
    "matmul": lambda w, v: w.view(-1, L, L) @ v.flatten(0, 1),
    "einsum": lambda w, v: torch.einsum("bij,bjd->bid", w.flatten(0, 1), v.flatten(0, 1)),
}


@pytest.mark.parametrize("product", BATCHED_PRODUCTS.values(), ids=BATCHED_PRODUCTS)
@pytest.mark.parametrize("shape", [(1, L), None])
def test_batch_and_heads_in_one_axis(product, shape):
    """Of one row, or of rows that nobody knows, it is that of heads."""
    q, k, v = (x[:1] for x in qkv())
    _, found = only(captured(lambda: product(causal_softmax(q, k), v), shape=shape))
    assert found.operator.batch_shape == (1, H)
    assert torch.allclose(found.operator.dense(), weights_of(q, k), rtol=0, atol=1e-6)


SOFTMAXES = {
    "functional": lambda s: functional.softmax(s, dim=-1),
    "torch": lambda s: torch.softmax(s, -1),
    "method": lambda s: s.softmax(-1),
    "special": lambda s: torch.special.softmax(s, -1),
    "module": nn.Softmax(-1),
    "in float64": lambda s: functional.softmax(s, -1, dtype=torch.float64).type_as(s),
}


@pytest.mark.parametrize("softmax", SOFTMAXES.values(), ids=SOFTMAXES)
def test_every_softmax(softmax):
    q, k, v = qkv()
    only(captured(lambda: softmax((q @ k.mT).masked_fill(~LOWER, -torch.inf)) @ v))


def zeroed_in_place(w):
    w.masked_fill_(~LOWER, 0)
    return w


BETWEEN = {
    "dropout": lambda w: functional.dropout(w, 0.5, training=False),
    "dropout module": nn.Dropout(0.5).eval(),
    "masked_fill": lambda w: w.masked_fill(~LOWER, 0),
    "masked_fill in place": zeroed_in_place,
    "times a mask": lambda w: w * LOWER,
    "a mask times it": lambda w: LOWER.float() * w,
    "twice": lambda w: 2.0 * w,
    "where": lambda w: torch.where(LOWER, w, 0.0),
    "where of tensors": lambda w: torch.where(LOWER, w, torch.zeros(())),
    "renormalised": lambda w: w / w.sum(-1, keepdim=True),
    "another type": lambda w: w.to(torch.float64).float(),
    "another shape": lambda w: w.reshape(B * H, L, L).view(B, H, L, L),
    "a slice": lambda w: w[..., :L],
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_is_done_to_weights_before_the_product(between):
    """`T` is what the values are multiplied with in the end."""
    q, k, v = qkv()

    _, found = only(captured(lambda: between(causal_softmax(q, k)) @ v))
    weights = weights_of(q, k)
    expected = 2 * weights if between is BETWEEN["twice"] else weights
    assert torch.allclose(found.operator.dense(), expected, rtol=0, atol=1e-6)


def test_weights_that_are_masked_after_the_softmax():
    """A mask after the softmax makes it causal; without one it is refused."""
    q, k, v = qkv()
    scores = q @ k.mT / E**0.5
    _, found = only(captured(lambda: scores.softmax(-1).masked_fill(~LOWER, 0) @ v))
    expected = scores.double().softmax(-1).tril()
    assert torch.allclose(found.operator.dense(), expected, rtol=0, atol=1e-6)
    with pytest.raises(NotCausal, match=r"not causal: T has entries above its diagonal, up to 0\.\d+"):
        captured(lambda: scores.softmax(-1) @ v)


def test_a_softmax_used_twice():
    q, k, v = qkv()

    def attend():
        weights = causal_softmax(q, k)
        return weights @ v + weights @ (2 * v)

    found, refused = captured(attend)
    assert refused == {}
    assert len(found) == 2
    assert torch.equal(found[0][1].operator.dense(), found[1][1].operator.dense())
    assert torch.equal(found[1][0].values, 2 * v)


def test_low_precision():
    q, k, v = qkv(dtype=torch.bfloat16)
    calls = []
    for function in (
        lambda: causal_softmax(q, k) @ v,
        lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    ):
        model = Calling(function)
        with torch.no_grad(), capturing(model, calls.append, shape=(B, L)):
            model()
    assert all(verify(call).capture_error <= 2e-2 for call in calls)
    assert len(calls) == 2


def test_more_axes_are_heads():
    q, k, v = qkv()
    parts = [x[:, :, None] for x in (q, k, v)]
    _, found = only(captured(lambda: causal_softmax(*parts[:2]) @ parts[2]))
    assert found.operator.batch_shape == (B, H)


# --- modules of torch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_of_torch(need_weights, batch_first):
    """Its functions are called inside of one function of torch."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(H * E, H, batch_first=batch_first).eval()
    x = randn(1, L, H * E) if batch_first else randn(L, 1, H * E)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    options = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights, "average_attn_weights": False}
    model, found = nn.ModuleDict({"attention": attention}), []
    model.forward = lambda: attention(x, x, x, **options)
    with torch.no_grad():
        plain = model()[0]
        with capturing(model, lambda call: found.append((call.name, verify(call))), shape=(1, L)) as seen:
            output = model()[0]
        expected = attention(x, x, x, **options | {"need_weights": True})[1]
    assert torch.allclose(output, plain, rtol=0, atol=1e-6)
    assert seen.refused == {}
    [(name, verified)] = found
    assert name == "attention"
    assert verified.capture_error <= 1e-6
    assert torch.allclose(verified.operator.dense(), expected.double(), rtol=0, atol=1e-6)


def test_a_transformer_of_torch():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(H * E, H, dim_feedforward=8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x, mask, names = randn(B, L, H * E), nn.Transformer.generate_square_subsequent_mask(L), []
    with torch.no_grad():
        plain = model(x, mask=mask, is_causal=True)
        with capturing(model, lambda call: names.append((call.name, verify(call).capture_error)), shape=(B, L)):
            output = model(x, mask=mask, is_causal=True)
    assert torch.allclose(output, plain, rtol=0, atol=1e-5)
    assert [name for name, _ in names] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert max(error for _, error in names) <= 1e-6


# --- what is no attention over time ----------------------------------------------------------------------------------


def routed(x, experts):
    """A mixture of experts: weights of every token for what four experts make of it."""
    weights = (x @ randn(x.shape[-1], 4, seed=3)).softmax(-1)
    return weights, torch.stack([x @ expert for expert in experts], -2)


OTHERS = {
    "experts, einsum": lambda w, y: torch.einsum("ble,bled->bld", w, y),
    "experts, matmul": lambda w, y: (w[..., None, :] @ y)[..., 0, :],
    "experts, sum": lambda w, y: (w[..., None] * y).sum(-2),
    "a table of channels": lambda w, y: w @ randn(4, D),
    "tokens in one axis": lambda w, y: w.flatten(0, 1) @ randn(4, D),
    "gates, then a product": lambda w, y: (w * y[..., 0, :4]) @ randn(4, D),
    "top two": lambda w, y: w.topk(2, -1).values @ randn(2, D),
    "not used": lambda w, y: y.sum(-2),
}


@pytest.mark.parametrize("combine", OTHERS.values(), ids=OTHERS)
def test_a_softmax_over_channels_is_no_attention(combine):
    x = randn(B, L, D)
    experts = [randn(D, D, seed=i) for i in range(4)]
    assert captured(lambda: combine(*routed(x, experts))) == ([], {})


def test_attention_beside_a_router():
    q, k, v = qkv()

    def attend():
        y = causal_softmax(q, k) @ v
        return y * (y @ randn(D, 1)).softmax(-1)

    only(captured(attend))


@pytest.mark.parametrize("product", [PRODUCTS["matmul"], PRODUCTS["einsum"]])
def test_cross_attention_is_refused_with_the_reason(product):
    q, k, v = randn(B, H, L, E), randn(B, H, 7, E), randn(B, H, 7, D)
    found, refused = captured(lambda: product((q @ k.mT).softmax(-1), v))
    assert found == []
    assert refused == {"attention": "a softmax of shape [2, 3, 13, 7]: expected [B, H, L, L]"}


def test_a_softmax_over_another_axis_is_refused_with_the_reason():
    """Attention of channels to channels, as square as that of tokens to tokens."""
    q, k, v = randn(B, H, E, L), randn(B, H, E, L), randn(B, H, E, L)
    found, refused = captured(lambda: (q @ k.mT).softmax(-1) @ v)
    assert found == []
    assert refused == {"attention": "a softmax over 4 where the sequence has 13 tokens"}


def test_a_call_of_unexpected_form_is_a_reason():
    q, k, v = qkv()
    found, refused = captured(lambda: torch.einsum("bhij,bjd->bhid", causal_softmax(q, k), v[:, 0]))
    assert found == []
    assert "a softmax in einsum('bhij,bjd->bhid'): expected a product over its last axis" in refused["attention"]


def test_weights_are_forgotten_with_their_tensors():
    """Another tensor at the same place in memory is not taken for them."""
    q, k, v = qkv()

    def attend():
        for _ in range(20):
            (q @ k.mT).softmax(-1)
            y = (q @ k.mT).tril() @ v
        return y

    assert captured(attend) == ([], {})


def test_the_mode_ends_with_the_block():
    q, k, v = qkv()
    model, calls = Calling(lambda: causal_softmax(q, k) @ v), []
    with torch.no_grad():
        with capturing(model, calls.append, shape=(B, L)):
            model()
        model()
        functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert len(calls) == 1
