"""Arguments of mixers that have no part in `T`. Any other that is not known makes the mathematics unknown."""

# what models hand down to every layer: bookkeeping of caches, outputs and positions, which are in the tensors already
HANDED_DOWN = {
    "position_ids",
    "position_embeddings",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "num_items_in_batch",
    "layer_idx",
    "logits_to_keep",
}

# of packed batches in flash attention: T is compared with what came out, as always
ATTENTION_IDLE = HANDED_DOWN | {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}

# how a function of a recurrence computes, and what it returns beside its output
FUNCTION_IDLE = ATTENTION_IDLE | {
    "attention_mask",
    "chunk_size",
    "output_final_state",
    "return_final_states",
    "return_final_state",
    "return_last_state",
    "return_state",
    "return_varlen_states",
    "use_mambapy",
    "use_associative_scan",
    "state_v_first",
    "transpose_state_layout",
    "cu_seqlens_cpu",
    "return_intermediate_states",
    "chunk_indices",
    "disable_recompute",
}
