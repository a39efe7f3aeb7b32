"""A script that `test_capture_older` runs with an older transformers: captures tiny models and writes what it found.

python older_transformers.py RESULTS.json [NAME ...]
"""

import itertools
import json
import sys
import warnings

import torch
import transformers

from ess_kernels.capture import capturing, rows_first, torch_functions, verify

VOCABULARY, HIDDEN = 64, 32
SHAPE = (2, 20)
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
MAMBA = {"state_size": 4, "expand": 2, "time_step_rank": 3}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": "auto", "mamba_n_groups": 2, "mamba_d_state": 4, "mamba_chunk_size": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}

# by name: the configuration's class, what it is given, and how many mixers of each kind there are
MODELS = {
    "llama": ("Llama", HEADS, {"attention": 2}),
    "mistral": ("Mistral", HEADS | {"sliding_window": 6}, {"attention": 2}),
    "gpt2": ("GPT2", {"n_embd": HIDDEN, "n_head": 4, "n_layer": 2}, {"attention": 2}),
    "gemma2": ("Gemma2", HEADS | {"head_dim": 8, "sliding_window": 6}, {"attention": 2}),
    "gpt_neox": ("GPTNeoX", HEADS, {"attention": 2}),
    "bloom": ("Bloom", {"n_head": 4, "n_layer": 2}, {"attention": 2}),
    "mamba": ("Mamba", MAMBA, {"mamba": 2}),
    "falcon_mamba": ("FalconMamba", MAMBA, {"mamba": 2}),
    "jamba": (
        "Jamba",
        HEADS
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
        {"mamba": 1, "attention": 1},
    ),
    "zamba": (
        "Zamba",
        HEADS
        | {"mamba_d_state": 4, "n_mamba_heads": 2, "use_mamba_kernels": False, "mamba_dt_rank": 3}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4},
        {"mamba": 4, "attention": 1},
    ),
    "mamba2": (
        "Mamba2",
        {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
        {"mamba2": 2},
    ),
    "bamba": ("Bamba", HEADS | MAMBA2 | {"attn_layer_indices": [1]}, {"mamba2": 1, "attention": 1}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        HEADS
        | MAMBA2
        | {"layer_types": ["mamba", "attention"], "num_local_experts": 2, "shared_intermediate_size": 16},
        {"mamba2": 1, "attention": 1},
    ),
    "falcon_h1": (
        "FalconH1",
        HEADS | MAMBA2 | {"mamba_d_ssm": 64, "mamba_d_head": 8, "head_dim": 8},
        {"mamba2": 2, "attention": 2},
    ),
    "zamba2": (
        "Zamba2",
        HEADS
        | {"mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "mamba_d_state": 4, "chunk_size": 8}
        | {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "num_mem_blocks": 1},
        {"mamba2": 2, "attention": 1},
    ),
    "qwen3_next": (
        "Qwen3Next",
        HEADS | LINEAR | MOE | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
        {"gated_delta_rule": 1, "attention": 1},
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        HEADS | {"lru_width": HIDDEN, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
        {"rg_lru": 1, "attention": 1},
    ),
    "lfm2": (
        "Lfm2",
        HEADS | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        {"short_convolution": 1, "attention": 1},
    ),
    "minimax": (
        "MiniMax",
        HEADS | {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "head_dim": 8},
        {"lightning_attention": 1, "attention": 1},
    ),
    "rwkv": ("Rwkv", {"attention_hidden_size": HIDDEN}, {"rwkv4": 2}),
    "xlstm": ("xLSTM", {"num_heads": 4, "num_blocks": 2}, {"mlstm": 2}),
}


def build(name, attention):
    kind, options, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**COMMON | options)
    config._attn_implementation = attention
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.float().eval()


def measure(name, attention, padding):
    model = build(name, attention)
    tokens = torch.randint(3, VOCABULARY, SHAPE)
    mask = torch.ones(SHAPE, dtype=torch.long)
    mask[0, :padding] = 0
    given = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
    calls = []

    def receive(call):
        found = verify(call)
        calls.append((call.name, call.mixer, found.route, found.capture_error, found.remark))

    with torch.no_grad(), torch_functions(model):
        before = model(**given).logits
        # Bloom makes one axis of batch and heads
        first = {name: x[:1] if isinstance(x, torch.Tensor) else x for name, x in given.items()}
        order = rows_first(model, given, first, SHAPE[0])
        padded = mask if padding else None
        with capturing(model, receive, shape=SHAPE, attention_mask=padded, batch_first=order) as capture:
            during = model(**given).logits
        after = model(**given).logits
    return {
        "calls": calls,
        "refused": capture.refused,
        "same": torch.equal(before, during) and torch.equal(before, after),
        "expected": MODELS[name][2],
    }


def main(path, names):
    results = {}
    for name in names or MODELS:
        implementations = ("eager", "sdpa") if name in ("llama", "mistral", "gpt2") else ("eager",)
        for attention, padding in itertools.product(implementations, (0, 3)):
            key = f"{name} {attention}{' padded' * bool(padding)}"
            try:
                results[key] = measure(name, attention, padding)
            except Exception as error:
                results[key] = {"error": f"{type(error).__name__}: {error}"}
    with open(path, "w") as file:
        json.dump({"transformers": transformers.__version__, "results": results}, file)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    main(sys.argv[1], sys.argv[2:])
