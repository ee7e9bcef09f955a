"""Configurations of well-known models by short name, for measuring a machine before downloading anything.

Sizes are those of the published `config.json` files; LongRoPE's factors, which do not change the cost, are ones.
"""

from __future__ import annotations

from typing import Any

from halfbyte.errors import UsageError

Config = dict[str, Any]


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, context: int) -> Config:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "dtype": "bfloat16",
    }


def _longrope(pairs: int) -> Config:
    ones = [1.0] * pairs
    return {
        "original_max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "longrope", "short_factor": ones, "long_factor": ones},
    }


def _llama3(factor: float) -> Config:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {"model_type": "llama", "rope_theta": 500_000.0, "rope_scaling": scaling}


_GEMMA3: Config = {"model_type": "gemma3_text", "head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6}

CATALOG: dict[str, Config] = {
    "phi-3.5-mini": {**_sizes(3072, 8192, 32, 32, 32, 32_064, 131_072), "model_type": "phi3", **_longrope(48)},
    "phi-4-mini": {
        **_sizes(3072, 8192, 32, 24, 8, 200_064, 131_072),
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
        **_longrope(48),
    },
    "phi-4": {**_sizes(5120, 17_920, 40, 40, 10, 100_352, 16_384), "model_type": "phi3", "rope_theta": 250_000.0},
    "gemma-3-1b": {**_sizes(1152, 6912, 26, 4, 1, 262_144, 32_768), **_GEMMA3, "sliding_window": 512},
    "gemma-3-4b": {
        **_sizes(2560, 10_240, 34, 8, 4, 262_208, 131_072),
        **_GEMMA3,
        "sliding_window": 1024,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "llama-3.2-1b": {**_sizes(2048, 8192, 16, 32, 8, 128_256, 131_072), **_llama3(32.0), "tie_word_embeddings": True},
    "llama-3.2-3b": {**_sizes(3072, 8192, 28, 24, 8, 128_256, 131_072), **_llama3(32.0), "tie_word_embeddings": True},
    "llama-3.1-8b": {**_sizes(4096, 14_336, 32, 32, 8, 128_256, 131_072), **_llama3(8.0)},
    "mistral-7b": {
        **_sizes(4096, 14_336, 32, 32, 8, 32_768, 32_768),
        "model_type": "mistral",
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
    },
}


def catalog_config(name: str) -> Config:
    """The configuration of the model called `name`, as `config.json` has it.

    Raises:
        UsageError: It is not in the catalog.
    """
    if name not in CATALOG:
        raise UsageError(f"{name!r} is not in the catalog.", f"It has {', '.join(CATALOG)}.")
    return CATALOG[name]
