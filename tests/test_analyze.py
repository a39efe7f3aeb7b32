"""`ess_kernels.analyze`: one call from a model to the ESS of its mixers, and the traps on the way."""

import pytest
import torch
from captured import BATCH, LENGTH, ids, padding, patched, tiny

import ess_kernels as ek
from ess_kernels.analysis.completeness import SHORT

pytest.importorskip("transformers")


def attention_layers(model):
    return [f"model.layers.{i}.self_attn" for i in range(model.config.num_hidden_layers)]


def test_names_and_shapes_of_the_result():
    model = tiny("llama")
    found = ek.analyze(model, ids(), positions=[3, 20], atol=(1e-1, 1e-3))
    assert list(found.layers) == attention_layers(model)
    assert found.skipped == {}
    assert set(found.layers) <= {name for name, _ in model.named_modules()}
    for name, layer in found.layers.items():
        heads = model.config.num_attention_heads
        assert (layer.name, layer.mixer, layer.route, layer.state_size) == (name, "attention", "registry", None)
        assert (layer.check, layer.dtype, layer.length) == ("independent", "float32", LENGTH)
        assert layer.positions.tolist() == [3, 20]
        assert layer.entropy.shape == (BATCH, heads, 2)
        assert set(layer.tolerance) == {1e-1, 1e-3}
        assert all(counts.shape == (BATCH, heads, 2) for counts in layer.tolerance.values())
        assert layer.cap.tolist() == [[3, 4]] * BATCH
        assert layer.capture_error < 1e-6


def test_numbers_are_those_of_the_operator():
    """Queries and keys taken out of the model by hand, one SVD per position."""
    model, seen = tiny("llama"), {}
    attention = model.model.layers[0].self_attn
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
        for name, module in (("q", attention.q_proj), ("k", attention.k_proj))
    ]
    with torch.no_grad():
        model(input_ids=ids(), use_cache=False)
        cos, sin = model.model.rotary_emb(seen["q"], torch.arange(LENGTH)[None])
    for handle in handles:
        handle.remove()
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = (seen[name].view(BATCH, LENGTH, -1, attention.head_dim).transpose(1, 2) for name in "qk")
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    logits = attention.scaling * q.double() @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).double().mT
    T = torch.softmax(logits.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf), -1)
    layer = ek.analyze(model, ids()).layers["model.layers.0.self_attn"]
    for i in range(1, LENGTH):
        s = torch.linalg.svdvals(T[..., i:, :i])
        p = s / s.sum(-1, keepdim=True)
        entropy = (-(p * p.clamp_min(1e-300).log()).sum(-1)).exp()
        assert torch.allclose(layer.entropy[..., i - 1], entropy, rtol=1e-4)
        assert torch.equal(layer.tolerance[1e-3][..., i - 1], (s > 1e-3).sum(-1))


@pytest.mark.parametrize("name", ["qwen3_next", "llama"])
def test_the_model_is_left_as_it_was(name):
    model = tiny(name)
    with torch.no_grad(), ek.capture.torch_functions(model):
        plain = model(input_ids=ids(), use_cache=False).logits
    before, rng = patched(model), torch.get_rng_state()
    given = ids()
    ek.analyze(model, given)
    assert patched(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(given, ids())
    with torch.no_grad(), ek.capture.torch_functions(model):
        assert torch.equal(model(input_ids=ids(), use_cache=False).logits, plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_trimmed(attention, side):
    """A padded row has the numbers of its own sequence alone, whatever the attention makes of padding."""
    model, mask = tiny("llama", attention), padding(side)
    kept = mask[0].bool()
    padded = ek.analyze(model, ids(), mask)
    alone = ek.analyze(model, ids()[:1, kept])
    assert padded.skipped == {}
    for name, layer in padded.layers.items():
        assert layer.capture_error < 1e-6
        assert layer.valid[0].sum() == kept.sum() - 1
        assert layer.valid[1].all()
        own = layer.valid[0]
        assert (layer.entropy[0][:, ~own] == 0).all()
        # tokens of a padded batch stand elsewhere, and float32 rounds their rotations otherwise
        assert torch.allclose(layer.entropy[0][:, own], alone.layers[name].entropy[0], rtol=1e-3)
        assert torch.equal(layer.cap[0, own], alone.layers[name].cap[0])


@pytest.mark.parametrize(
    ("name", "reads_padding"),
    [
        ("mamba2", False),
        ("qwen3_next", False),
        ("recurrent_gemma", True),
        pytest.param("xlstm", True, marks=pytest.mark.thorough),
        pytest.param("lfm2", False, marks=pytest.mark.thorough),
        pytest.param("bloom", False, marks=pytest.mark.thorough),
    ],
)
def test_mixers_that_read_padding_say_so(name, reads_padding):
    found = ek.analyze(tiny(name), ids(), padding("left"), metrics=["entropy"])
    assert found.skipped == {}
    assert all(layer.capture_error < 1e-6 for layer in found.layers.values())
    assert any("padding" in note for note in found.notes) == reads_padding
    recurrent = next(iter(found.layers.values()))
    assert bool(recurrent.valid[0].all()) == reads_padding


@pytest.mark.parametrize("rows", [1, 2])
def test_packed_positions(rows):
    """Two sequences in a row, told by `position_ids`: nothing crosses from the first to the second."""
    packed = torch.cat([torch.arange(10), torch.arange(14)])[None].expand(rows, -1)
    found = ek.analyze(tiny("llama"), ids(rows), position_ids=packed)
    for layer in found.layers.values():
        assert layer.capture_error < 1e-6
        assert (layer.entropy[:, :, 9] == 0).all()
        assert (layer.entropy[:, :, :9] > 0).all()


def test_windows_and_chunks():
    """A window of 8, and chunks of 8: ranks of what reaches over a position are bounded by them."""
    for name in ("mistral", "llama4_text"):
        found = ek.analyze(tiny(name), ids(), metrics=["tolerance"], atol=0.0)
        assert max(layer.capture_error for layer in found.layers.values()) < 1e-6
        first = next(iter(found.layers.values()))
        assert first.tolerance[0.0].max() <= 8
    boundaries = first.tolerance[0.0][..., [7, 15]]
    assert (boundaries == 0).all()


def test_training_mode_and_dropout():
    model = tiny("gpt2", "eager")
    model.train()
    try:
        found = ek.analyze(model, ids())
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert any("eval mode" in note for note in found.notes)
    assert max(layer.capture_error for layer in found.layers.values()) < 1e-6
    model.train()
    calls = []
    try:
        with ek.capture.capturing(model, calls.append) as seen:
            model(input_ids=ids(), use_cache=False)
    finally:
        model.eval()
    assert calls == []
    assert all("dropout" in reason for reason in seen.refused.values())
    assert len(seen.refused) == model.config.n_layer


def test_checkpointing_records_every_mixer_once():
    """The backward pass runs every mixer again; those calls are none of the forward pass."""
    model, names = tiny("llama"), []
    model.train()
    model.gradient_checkpointing_enable()
    try:
        with ek.capture.capturing(model, lambda call: names.append(call.name)):
            model(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
    finally:
        model.gradient_checkpointing_disable()
        model.zero_grad()
        model.eval()
    assert names == attention_layers(model)


def test_compiled_models():
    """Compiled code hides its calls: the model inside is run instead."""
    from ess_kernels.testing.tiny_models import tiny_model

    plain = ek.analyze(tiny("llama"), ids())
    compiled = torch.compile(tiny_model("llama"), backend="eager")
    in_place = tiny_model("llama")
    in_place.compile(backend="eager")
    for model in (compiled, in_place):
        with torch.no_grad():
            model(input_ids=ids(), use_cache=False)
        found = ek.analyze(model, ids())
        assert list(found.layers) == list(plain.layers)
        for name, layer in found.layers.items():
            assert torch.equal(layer.entropy, plain.layers[name].entropy)
    assert in_place._compiled_call_impl is not None


def test_quantised_layers_are_no_mixers():
    from ess_kernels.testing.tiny_models import tiny_model

    model = torch.ao.quantization.quantize_dynamic(tiny_model("llama"), {torch.nn.Linear}, dtype=torch.qint8)
    found = ek.analyze(model, ids())
    assert list(found.layers) == attention_layers(model)
    assert found.skipped == {}
    assert max(layer.capture_error for layer in found.layers.values()) < 1e-6


@pytest.mark.parametrize("name", ["llama", pytest.param("mamba", marks=pytest.mark.thorough)])
def test_bfloat16(name):
    from ess_kernels.testing.tiny_models import tiny_model

    found = ek.analyze(tiny_model(name).bfloat16(), ids())
    assert found.skipped == {}
    assert all(1e-5 < layer.capture_error < 2e-2 for layer in found.layers.values())


def test_cross_attention_and_caches():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    model = T5ForConditionalGeneration(config).eval()
    found = ek.analyze(model, ids(length=17), decoder_input_ids=ids())
    assert list(found.layers) == [f"decoder.block.{i}.layer.0.SelfAttention" for i in range(2)]
    crossed = {name: reason for name, reason in found.skipped.items() if "EncDec" in name}
    assert set(crossed) == {f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(2)}
    assert all("cross-attention" in reason for reason in crossed.values())
    model = tiny("llama")
    with torch.no_grad():
        cache = model(input_ids=ids()[:, :10], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values: expected None"):
        ek.analyze(model, ids()[:, 10:], past_key_values=cache)
    with torch.no_grad(), ek.capture.capturing(model, lambda call: None) as seen:
        model(input_ids=ids()[:, 10:], past_key_values=cache)
    assert all("a cache" in reason for reason in seen.refused.values())
    assert len(seen.refused) == model.config.num_hidden_layers


def test_attention_over_depth_is_not_over_time():
    """Inkling-2 attends over its layers through the same registry: there the tokens stand where heads do."""
    found = ek.analyze(tiny("inkling2_text", "eager"), ids(), metrics=["entropy"])
    assert set(found.layers) == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    reasons = [reason for reason in found.skipped.values() if not reason.startswith(SHORT)]
    assert {reason.partition(":")[0] for reason in reasons} == {"attention over another axis than time"}


def test_compressed_keys_are_refused():
    found = ek.analyze(tiny("deepseek_v4"), ids(), metrics=["entropy"])
    assert len(found.layers) == 1
    assert all("compressed keys" in reason for reason in found.skipped.values())
    assert len(found.skipped) == 2


def test_a_mixer_that_no_seam_knows_is_named():
    class Unknown(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(128, 16)
            self.mixer = Unknown()
            self.head = torch.nn.Linear(16, 128)

        def forward(self, input_ids):
            x = self.embed(input_ids)
            q = k = x[:, None]
            y = torch.nn.functional.scaled_dot_product_attention(q, k, x[:, None], is_causal=True)[:, 0]
            return self.head(self.mixer(x) + y)

    found = ek.analyze(Model(), ids())
    assert list(found.layers) == [""]
    assert found.skipped == {"mixer": "unknown mixer: Unknown mixes over time, and no seam has seen how"}


def test_nothing_captured_is_an_error():
    model = torch.nn.Sequential(torch.nn.Embedding(128, 16), torch.nn.Linear(16, 128))
    with pytest.raises(ValueError, match="input_ids: Sequential takes no such input; it takes input"):
        ek.analyze(model, ids())

    class Tokenwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids):
            return self.inner(input_ids)

    with pytest.raises(RuntimeError, match="no mixer of Tokenwise was seen: no module of it"):
        ek.analyze(Tokenwise(), ids())


def test_layers_and_dry_run():
    model = tiny("qwen3_next")
    some = ek.analyze(model, ids(), layers="model.layers.1.*", metrics=["entropy"])
    assert list(some.layers) == ["model.layers.1.self_attn"]
    assert some.skipped == {}
    whole = ek.analyze(model, ids(), layers=["model.layers.0"], metrics=["entropy"])
    assert list(whole.layers) == ["model.layers.0.linear_attn"]
    plan = ek.analyze(model, ids(), dry_run=True)
    assert set(plan.layers) == {"model.layers.0.linear_attn", "model.layers.1.self_attn"}
    assert 0 < plan.seconds < 60
    assert "2 mixers" in str(plan)
    with pytest.raises(ValueError, match=r"layers: no module of the model is called 'h\.\*'"):
        ek.analyze(model, ids(), layers=["h.*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": None}, "input_ids: expected a tensor"),
        ({"input_ids": torch.zeros(2, 1, dtype=torch.int64)}, "input_ids: expected at least one row of 2 tokens"),
        ({"attention_mask": torch.ones(2, 5)}, "attention_mask: expected a tensor of integers"),
        ({"attention_mask": torch.ones(2, 5, dtype=torch.int64)}, r"attention_mask: expected \[B, L\] = \[2, 24\]"),
        ({"attention_mask": torch.zeros(2, 24, dtype=torch.int64)}, "attention_mask: expected one run of ones"),
        ({"metrics": ["rank"]}, "metrics: expected some of"),
        ({"positions": [24]}, "positions"),
        ({"atol": -1.0}, "atol"),
        ({"tokens": [["a"]]}, "tokens: expected 2 lists of 24 texts"),
        ({"layers": []}, "layers: expected names of modules"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ek.analyze(tiny("llama"), **{"input_ids": ids()} | arguments)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module"):
        ek.analyze("llama", ids())
