"""What single architectures of transformers need to become tiny besides the sizes, and which have no tiny model."""

from __future__ import annotations

from typing import Any, NamedTuple


class Particular(NamedTuple):
    """Values of a configuration that come before all others, and why they are needed.

    A dictionary under the name of an inner configuration holds values of that one.
    """

    reason: str
    values: dict[str, Any]


def _layers(*kinds: str, **more: Any) -> dict[str, Any]:
    """Values for one layer of each of these kinds, in this order, and further values."""
    return {"layer_types": list(kinds), "num_hidden_layers": len(kinds)} | more


_DECODER = Particular("an encoder unless told otherwise", {"is_decoder": True})
_ENCODERS = """bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta
    roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl"""

_WITH_WINDOW = Particular("the default has full attention only", _layers("full_attention", "sliding_attention"))
_TEXT_WITH_WINDOW = Particular(_WITH_WINDOW.reason, {"text_config": _WITH_WINDOW.values})
_WINDOWED = "dots1 laguna mellum qwen2 qwen2_moe qwen3 smollm3"

_SHARED_KEYS = Particular(
    "the last layers read keys and values of earlier layers of the same kind",
    _layers(*["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2),
)

_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_NO_ATTENTION = "the default has no attention"
_SHARED_WEIGHTS = "hybrid layers share weights, which takes two of them"
_DENSE_THEN_EXPERTS = ["dense", "sparse", "sparse"]
_DENSE = "the default has experts in all layers"

PARTICULARS: dict[str, Particular] = {
    **dict.fromkeys(_ENCODERS.split(), _DECODER),
    **dict.fromkeys(_WINDOWED.split(), _WITH_WINDOW),
    **dict.fromkeys(("got_ocr2", "moss_transcribe_diarize"), _TEXT_WITH_WINDOW),
    "bamba": Particular(_NO_ATTENTION, {"attn_layer_indices": [1]}),
    "cohere_compass_text": Particular(
        "the default has full attention only, and no rotary positions for it",
        _layers(
            "full_attention",
            "sliding_attention",
            rope_parameters={"full_attention": dict(_ROTARY), "sliding_attention": dict(_ROTARY)},
        ),
    ),
    "dbrx": Particular(
        "attention looks for a rotary base in its own part, and for a limit to clamp at",
        {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    ),
    "deepseek_v4": Particular(
        "the default lacks plain windows, and compresses 128 tokens into one",
        _layers(
            "sliding_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            mlp_layer_types=["hash_moe", "moe", "moe"],
            compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        ),
    ),
    "doge": Particular(
        "without windows, so that the choice of the keys to keep matters",
        {"sliding_window": None, "keep_window_size": 8},
    ),
    "dory": Particular(
        "its layers stand in three sections",
        _layers(
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            n_input_layers=1,
            n_recurrent_layers=1,
            n_output_layers=1,
        ),
    ),
    "dots3_note": Particular(
        "layers with windows have sizes of their own",
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 16,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 16,
            "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 16,
        },
    ),
    "falcon_h1": Particular("its state's width is a product of two sizes", {"mamba_d_ssm": 128, "mamba_d_head": 16}),
    "gemma3n_text": Particular(
        _SHARED_KEYS.reason,
        _SHARED_KEYS.values | {"intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0]},
    ),
    "gemma4": Particular(_SHARED_KEYS.reason, {"text_config": _SHARED_KEYS.values}),
    "gemma4_text": _SHARED_KEYS,
    "glm_moe_dsa": Particular(
        "the default has no layer that attends to the tokens which another layer selected",
        _layers(
            *["indexed_attention"] * 3,
            indexer_types=["full", "full", "shared"],
            mlp_layer_types=_DENSE_THEN_EXPERTS,
        ),
    ),
    "gpt_neo": Particular("one layer of each kind", {"attention_types": [[["global", "local"], 1]], "num_layers": 2}),
    "granitemoehybrid": Particular(_NO_ATTENTION, _layers("linear_attention", "full_attention", mamba_d_head=16)),
    "inkling2_loop_text": Particular(
        "the default repeats layers that a small model lacks",
        {"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1, "loop_layer_index_end": 2},
    ),
    "inkling2_text": Particular("attention over the depth for every layer", {"n_layers_per_attn_res_block": 1}),
    "jamba": Particular("the default begins with four Mamba layers", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "lfm2": Particular("the default has no convolution", _layers("conv", "full_attention", "conv")),
    "lfm2_moe": Particular("the default does not say what its layers are", _layers("conv", "full_attention", "conv")),
    "llama4": Particular(_DENSE, {"moe_layers": [1]}),
    "llama4_text": Particular(_DENSE, {"moe_layers": [1]}),
    "longcat_flash": Particular("rotary positions have the width of these heads", {"head_dim": 8}),
    "mamba2": Particular("heads times their width must be twice the hidden size", {"num_heads": 8}),
    "minimax_m3_vl_text": Particular(
        "the default has full attention only",
        _layers("full_attention", "minimax_m3_sparse", mlp_layer_types=["dense", "sparse"]),
    ),
    "musicgen": Particular("its random weights have a width of another name", {"initializer_factor": 0.125}),
    "musicgen_melody": Particular("its random weights have a width of another name", {"initializer_factor": 0.125}),
    "nemotron": Particular("the default does not say how many key heads there are", {"num_key_value_heads": 2}),
    "qwen4_exp": Particular(
        "the default has neither an indexer nor embeddings of n-grams",
        {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
            "ple_layer_ids": [1],
            "heads_per_ngram": 4,
            "ngram_vocab_size_base": 100,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 2,
        },
    ),
    "recurrent_gemma": Particular("its third layer is the first with attention", {"num_hidden_layers": 3}),
    "reformer": Particular(
        "an encoder unless told otherwise; learns its positions on a grid that has one length; hashes at random",
        {"is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_embds": False, "hash_seed": 0},
    ),
    "xlm": Particular("sees the future unless told otherwise", {"causal": True}),
    "xlnet": Particular("sees the future unless told otherwise", {"attn_type": "uni"}),
    "xmod": Particular(
        "an encoder unless told otherwise, with an adapter for each language",
        {"is_decoder": True, "default_language": "en_XX"},
    ),
    "zamba": Particular(
        _SHARED_WEIGHTS,
        {
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
            "num_hidden_layers": 3,
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "n_mamba_heads": 2,
        },
    ),
    "zamba2": Particular(
        _SHARED_WEIGHTS,
        {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    ),
    "zaya": Particular("the default has no windows", _layers("hybrid", "hybrid_sliding")),
}
PARTICULARS |= {"dots3_note_text": PARTICULARS["dots3_note"], "qwen4_exp_text": PARTICULARS["qwen4_exp"]}

# Architectures that have no tiny model, and why.
_OF_ANOTHER = "has no keys and values of its own: it attends to those of another model"
NOT_BUILT: dict[str, str] = {
    "gemma3n": "sees images with the package timm; gemma3n_text is the same language model",
    "gemma4_assistant": _OF_ANOTHER,
    "gemma4_unified_assistant": _OF_ANOTHER,
}
