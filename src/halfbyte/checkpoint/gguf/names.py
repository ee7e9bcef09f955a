"""GGUF's names of what is no weight: factors of the rotary embedding; and keys of metadata, by what they may change."""

from __future__ import annotations

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"
ROPE_TENSORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)

HARMLESS = frozenset(
    {
        "attention.layer_norm_epsilon", "decoder_start_token_id", "embedding_length_out", "pooling_type",
        "rope.scaling.finetuned", "tensor_data_layout", "vocab_size",
        # Of YaRN, which a file asks for by rope.scaling.type.
        "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier",
        "rope.scaling.yarn_ext_factor",
        # Of mixtures of experts, which a file is by expert_count.
        "expert_used_count", "expert_feed_forward_length",
    }
)  # fmt: skip
"""Keys of an architecture's metadata, without its name, that change nothing in a dense model's logits."""
