"""Models of transformers: every mixer is seen, its operator gives what it passed on, and the model stays as it is."""

import pytest
import torch
from captured import BATCH, LENGTH, ids, patched, tiny

import ess_kernels as ek
from ess_kernels.capture.one_hot import read_off

pytest.importorskip("transformers")

# architecture, attention, and the kinds of its mixers with their routes
QUICK = [
    ("llama", "sdpa", {("attention", "registry")}),
    ("llama", "eager", {("attention", "registry")}),
    ("mamba2", "sdpa", {("mamba2", "global")}),
    ("qwen3_next", "sdpa", {("gated_delta_rule", "global"), ("attention", "registry")}),
    ("recurrent_gemma", "sdpa", {("rg_lru", "module"), ("attention", "registry")}),
    ("bloom", "eager", {("attention", "torch")}),
]
OTHERS = [
    ("gemma2", "eager", {("attention", "registry")}),  # soft cap and window
    ("gpt_oss", "eager", {("attention", "registry")}),  # sinks
    ("mistral", "sdpa", {("attention", "registry")}),  # window
    ("deepseek_v3", "sdpa", {("attention", "registry")}),  # latent attention, values of another width than keys
    ("diffllama", "eager", {("attention", "registry")}),  # two calls a layer
    ("inkling_text", "eager", {("attention", "registry")}),  # position_bias
    ("inkling2_text", "eager", {("attention", "registry, one-hot")}),  # sinks of every row: unknown mathematics
    ("falcon", "sdpa", {("attention", "torch")}),
    ("gpt_neo", "eager", {("attention", "torch")}),
    ("xlnet", "eager", {("attention", "torch")}),  # an einsum
    ("mamba", "sdpa", {("mamba", "global")}),
    ("falcon_mamba", "sdpa", {("mamba", "global")}),
    ("jamba", "sdpa", {("mamba", "global"), ("attention", "registry")}),
    ("zamba2", "sdpa", {("mamba2", "global"), ("attention", "registry")}),
    ("kimi_linear", "sdpa", {("kda", "global"), ("attention", "registry")}),
    ("rwkv", "sdpa", {("rwkv4", "global")}),
    ("xlstm", "sdpa", {("mlstm", "module")}),
    ("lfm2", "sdpa", {("short_convolution", "module"), ("attention", "registry")}),
    ("minimax", "sdpa", {("lightning_attention", "module"), ("attention", "registry")}),
]
FAMILIES = QUICK + [pytest.param(*case, marks=pytest.mark.thorough) for case in OTHERS]


def run(model, **inputs):
    with torch.no_grad(), ek.capture.torch_functions(model):
        return model(input_ids=ids(), use_cache=False, **inputs).logits


@pytest.mark.parametrize(("name", "attention", "kinds"), FAMILIES)
def test_every_mixer_is_captured_and_verified(name, attention, kinds):
    model = tiny(name, attention)
    plain = run(model)
    before = patched(model)
    found, compared = set(), 0

    def receive(call):
        nonlocal compared
        verified = ek.capture.verify(call)
        assert verified.capture_error <= 1e-6
        assert verified.operator.length == LENGTH
        assert verified.operator.batch_shape[0] == BATCH
        found.add((call.mixer, verified.route))
        if call.one_hot is not None:
            compared += 1
            probe = read_off(call).double()
            difference = (verified.operator.dense() - probe).tril(-1).abs().max() / probe.abs().max()
            assert difference <= 1e-6

    # some models make one axis of batch and heads
    with torch.no_grad():
        both, first = ({"input_ids": x, "use_cache": False} for x in (ids(), ids()[:1]))
        order = ek.capture.rows_first(model, both, first, BATCH)
    with torch.no_grad(), ek.capture.capturing(model, receive, shape=(BATCH, LENGTH), batch_first=order):
        captured = model(input_ids=ids(), use_cache=False).logits
    assert torch.equal(plain, captured)
    assert found == kinds
    assert compared or name in ("bloom", "gpt_neo", "xlnet", "lfm2", "minimax")
    assert patched(model) == before


@pytest.mark.parametrize("name", ["llama", "mamba2", "recurrent_gemma", "bloom"])
def test_an_exception_leaves_the_model_as_it_was(name):
    model = tiny(name)
    before, plain = patched(model), run(model)

    class Stop(Exception):
        pass

    def receive(call):
        raise Stop

    with pytest.raises(Stop), torch.no_grad(), ek.capture.capturing(model, receive):
        model(input_ids=ids(), use_cache=False)
    assert patched(model) == before
    # and one in the model itself, after some mixers have run
    *_, last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    handle = last.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(Stop()))
    calls = []
    with pytest.raises(Stop), torch.no_grad(), ek.capture.capturing(model, calls.append):
        model(input_ids=ids(), use_cache=False)
    handle.remove()
    assert calls
    assert patched(model) == before
    assert torch.equal(run(model), plain)


def test_calls_do_not_nest_and_do_not_outlive():
    """A call made while another is examined is not captured: one record a layer, also with all seams at once."""
    model, names = tiny("llama"), []

    def receive(call):
        names.append(call.name)
        model.model.layers[0].self_attn.o_proj(torch.zeros(1, 64))
        call.one_hot(call.values)

    with torch.no_grad(), ek.capture.capturing(model, receive):
        model(input_ids=ids(), use_cache=False)
    assert names == [f"model.layers.{i}.self_attn" for i in range(len(model.model.layers))]


def test_seams_by_name():
    model, names = tiny("llama"), []
    for seam in ("registry", "torch"):
        with torch.no_grad(), ek.capture.capturing(model, lambda call: names.append(call.route), seams=(seam,)):
            model(input_ids=ids(), use_cache=False)
        assert set(names) == {seam}
        names.clear()
    unknown = ek.capture.capturing(model, print, seams=("hooks",))
    with pytest.raises(ValueError, match=r"seams: expected some of registry.*'hooks'"), unknown:
        pass


def test_a_registered_attention_function_is_seen():
    """Whatever a user registers is wrapped where it is looked up; its unknown argument is not dropped."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def halved(module, query, key, value, attention_mask, scaling=None, half=None, **kwargs):
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output * half, weights

    AttentionInterface.register("halved", lambda *args, **kwargs: halved(*args, half=0.5, **kwargs))
    model = tiny("llama")
    original = model.config._attn_implementation
    errors = []
    try:
        model.config._attn_implementation = "halved"
        with torch.no_grad(), ek.capture.capturing(model, lambda call: errors.append(ek.capture.verify(call))):
            model(input_ids=ids(), use_cache=False)
    finally:
        model.config._attn_implementation = original
        AttentionInterface._global_mapping.pop("halved", None)
    # softmax attention is twice as large as what came out, so that T was read off
    assert [found.route for found in errors] == ["registry, one-hot"] * len(errors)
    assert all(found.capture_error < 1e-6 and "unverified" in found.remark for found in errors)
    assert torch.allclose(errors[0].operator.dense().sum(-1), torch.tensor(0.5, dtype=torch.float64))
