"""The sizes of tiny models, by the names that transformers' configurations give them; `tiny_models.py` applies them.

None is 24, the usual length of the inputs, so that no other axis can be taken for the time. Windows and chunks are
shorter than 24, so that they matter.
"""

from __future__ import annotations

_NAMES_BY_SIZE = {
    256: """max_position_embeddings n_positions n_ctx max_seq_len seq_length max_sequence_length max_seq_length
        context_length max_source_positions max_target_positions model_max_length""",
    128: """vocab_size n_vocab decoder_vocab_size vocab_size_per_layer_input audio_vocab_size unpadded_vocab_size
        codebook_size pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab""",
    64: """hidden_size n_embd d_model dim intermediate_size ffn_dim d_ff dff n_inner ffn_hidden_size lru_width emb_dim
        embedding_size dim_ff conv_dim block_dim block_ff_dim attention_hidden_size hidden_dim decoder_ffn_dim
        encoder_ffn_dim shared_expert_intermediate_size shared_experts_intermediate_size hidden_size_per_layer_input
        embed_dim word_embed_proj_dim intermediate_size_mlp input_embedding_size output_embedding_size d_inner
        feed_forward_size embedding_dim input_size cross_attention_hidden_size router_hidden_size ple_embed_dim
        pronunciation_embed_dim shape_embed_dim hidden_size_global backbone_hidden_size decoder_start_hidden_size""",
    32: """moe_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size index_head_dim
        dense_intermediate_size expert_ffn_hidden_size""",
    16: """head_dim global_head_dim qk_head_dim v_head_dim q_lora_rank kv_lora_rank linear_key_head_dim linear_head_dim
        linear_value_head_dim mamba_d_head mamba_headdim mamba_head_dim attention_head_dim attention_head_size d_head
        kv_channels o_lora_rank d_kv dim_head key_dim qkv_dim swa_head_dim num_buckets relative_max_distance
        position_bias_num_buckets num_mel_bins hc_lowrank rel_extent adapter_rank laurel_rank keep_window_size""",
    8: """qk_rope_head_dim qk_nope_head_dim rotary_dim state_size mamba_d_state ssm_state_size mamba_state_dim
        mamba_n_heads mamba_num_heads n_mamba_heads sliding_window window_size attention_window attention_window_size
        attention_chunk_size chunk_size mamba_chunk_size sliding_window_size local_attention block_size index_topk
        local_attn_chunk_length lsh_attn_chunk_length local_attention_window_len
        d_rel loop_gate_rank gated_norm_rank""",
    4: """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads
        num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads num_experts num_local_experts
        n_routed_experts moe_num_experts index_n_heads time_step_rank mamba_dt_rank linear_num_value_heads
        linear_num_heads conv_kernel mamba_d_conv conv_kernel_size num_attention_groups zero_expert_num index_block_size
        prompt_length""",
    3: "index_topk_blocks",
    2: """num_experts_per_tok num_experts_per_token moe_topk moe_k top_k num_hidden_layers n_layer n_layers num_layers
        num_blocks decoder_layers num_decoder_layers encoder_layers num_encoder_layers linear_num_key_heads
        num_layers_per_stack experts_per_token moe_top_k num_codebooks num_expert_group o_groups""",
    1: """n_group topk_group n_shared_experts num_shared_experts moe_layer_start_index num_nextn_predict_layers
        num_mtp_layers mtp_num_layers first_k_dense_replace num_dense_layers num_random_blocks""",
}
SIZES: dict[str, int] = {name: size for size, names in _NAMES_BY_SIZE.items() for name in names.split()}

# Sizes that are given even where the default configuration has none: a window, for example, so that there is one.
ALWAYS_GIVEN = frozenset(("sliding_window", "head_dim", "num_experts_per_tok", "n_routed_experts", "n_shared_experts"))

# Numbers of key heads become 4, the number of query heads, if they were equal; else 1, if they were 1; else 2.
_KEY_HEADS = """num_key_value_heads num_kv_heads multi_query_group_num num_global_key_value_heads num_query_groups
    swa_num_key_value_heads kv_n_heads"""
KEY_HEADS = frozenset(_KEY_HEADS.split())

# Numbers of groups of heads that share what enters and leaves a state become 1, if they were 1, else 2.
STATE_GROUPS = frozenset(("mamba_n_groups", "n_groups", "mamba_ngroups", "mamba_num_groups"))

# Standard deviations of random weights. 1 / sqrt(64) leaves the size of a vector as it is, so that scores differ and
# attention is far from uniform; with the usual 0.02 it would be uniform in a model as narrow as this.
WEIGHT_WIDTHS = frozenset(("initializer_range", "init_std"))
WEIGHT_WIDTH = 0.125

# What configurations call the number of layers.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
