"""The tiny models of transformers' architectures: they run, every kind of layer is there, and no mixer is trivial."""

import pytest
import torch

from ess_kernels.capture.torch_functions import torch_functions
from ess_kernels.testing.tiny_models import (
    NOT_BUILT,
    CannotBuild,
    causal_lm_names,
    tiny_config,
    tiny_inputs,
    tiny_model,
)

CHANGED = 11


def logits(model, inputs):
    with torch.no_grad(), torch_functions(model):
        return model(**inputs, use_cache=False).logits


def with_another_token(inputs, where=CHANGED):
    ids = inputs["input_ids"].clone()
    ids[:, where] = (ids[:, where] + 40) % 120 + 3
    return inputs | {"input_ids": ids}


def class_names(model):
    return {type(module).__name__ for module in model.modules()}


@pytest.mark.parametrize(
    ("name", "mixers"),
    [
        ("llama", {"LlamaAttention"}),
        ("mamba", {"MambaMixer"}),
        ("bamba", {"BambaMixer", "BambaAttention"}),
        ("minimax", {"MiniMaxLightningAttention", "MiniMaxAttention"}),
        ("lfm2", {"Lfm2ShortConv", "Lfm2Attention"}),
        ("recurrent_gemma", {"RecurrentGemmaRglru", "RecurrentGemmaAttention"}),
    ],
)
def test_every_kind_of_mixer_is_there_and_mixes(name, mixers):
    model = tiny_model(name)
    assert mixers <= class_names(model)
    assert not model.training and sum(p.numel() for p in model.parameters()) < 1_000_000
    inputs = tiny_inputs(name, model)
    assert inputs["input_ids"].shape == (2, 24)
    before, after = logits(model, inputs), logits(model, with_another_token(inputs))
    assert before.dtype == torch.float32 and before.isfinite().all()
    change = (after - before).abs().amax((0, 2)) / before.abs().max()
    assert change[:CHANGED].max() < 1e-6, "a later token changed an earlier one"
    assert change[CHANGED + 1 :].max() > 1e-2, "a token changed no later one"


def test_windows_are_shorter_than_the_inputs():
    config = tiny_config("gemma3_text")
    assert config.layer_types == ["sliding_attention", "full_attention"] and config.sliding_window == 8


def test_a_part_of_a_configuration_is_made_small_too():
    model = tiny_model("llama4")
    assert type(model.config).__name__ == "Llama4TextConfig"
    assert model.config.layer_types == ["chunked_attention", "full_attention"]
    assert model.config.attention_chunk_size == 8


def test_the_seed_decides_the_weights_and_nothing_else_changes():
    state = torch.get_rng_state()
    one, same, other = (tiny_model("llama", seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


def test_inputs_have_the_sizes_that_were_asked_for():
    model = tiny_model("llama")
    ids = tiny_inputs("llama", model, batch=3, length=17, seed=5)["input_ids"]
    assert ids.shape == (3, 17) and ids.min() >= 3 and ids.max() < model.config.vocab_size
    assert torch.equal(ids, tiny_inputs("llama", model, batch=3, length=17, seed=5)["input_ids"])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_implementation_of_attention_can_be_chosen(implementation):
    assert tiny_model("llama", implementation).config._attn_implementation == implementation


def test_what_supports_no_other_implementation_is_eager():
    assert tiny_model("bloom", "sdpa").config._attn_implementation == "eager"


def test_a_name_that_is_not_there():
    with pytest.raises(ValueError, match="causal_lm_names"):
        tiny_model("no_such_model")


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_what_cannot_be_built_says_why(name):
    with pytest.raises(CannotBuild, match=NOT_BUILT[name]):
        tiny_model(name)


@pytest.mark.slow
def test_all_architectures_run_but_for_those_with_a_reason():
    failed = {}
    for name in causal_lm_names():
        try:
            assert_runs(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    assert set(failed) == set(NOT_BUILT) & set(causal_lm_names()), failed


def assert_runs(name):
    model, again = tiny_model(name), tiny_model(name)
    # fla registers its own classes for some names, if a model that was built before this one has imported it
    assert type(model).__module__.startswith("transformers.models."), type(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)), (
        "memory as it was"
    )
    inputs = tiny_inputs(name, model)
    before, after = logits(model, inputs), logits(model, with_another_token(inputs))
    assert before.isfinite().all()
    assert (after - before)[:, CHANGED + 1 :].abs().max() > 1e-4 * before.abs().max(), "a token changed no later one"
