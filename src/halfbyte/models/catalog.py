"""The models that Halfbyte is measured on, by short name: where they are, and their shapes without their weights.

LongRoPE's factors, which come with a checkpoint and change no shape and no cost, stand in as simple series.
"""

from __future__ import annotations

from typing import Any

from halfbyte.errors import UsageError
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec

_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _sizes(
    model_type: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, *,
    tied: bool, context: int = 131_072, eps: float = 1e-5, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "tie_word_embeddings": tied, "max_position_embeddings": context, "rms_norm_eps": eps, **more,
    }  # fmt: skip


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * pairs,
        "long_factor": [1.0 + 0.5 * i for i in range(pairs)],
    }  # fmt: skip


def _llama(factor: float) -> dict[str, Any]:
    return {"rope_parameters": {**_LLAMA3, "factor": factor, "rope_theta": 500_000.0}}


def _gemma(factor: float | None) -> dict[str, Any]:
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": factor}} if factor else {}
    return {
        "head_dim": 256,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": 256,
        "dtype": "bfloat16",
        **scaling,
    }


def _gemma4(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, period: int = 6, **more: Any
) -> dict[str, Any]:
    """Gemma 4's text part; every `period`-th layer sees everything."""
    return _sizes(
        "gemma4_text", hidden, intermediate, layers, heads, kv_heads, 262_144, tied=True, eps=1e-6, head_dim=256,
        global_head_dim=512, vocab_size_per_layer_input=262_144, final_logit_softcapping=30.0, dtype="bfloat16",
        layer_types=["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)],
        **{"sliding_window": 512, **more},
    )  # fmt: skip


def _qwen2(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    return _sizes(
        "qwen2", hidden, intermediate, layers, heads, 2, 151_936, tied=True, context=32_768, eps=1e-6, rope_theta=1e6,
        use_sliding_window=False, sliding_window=32_768, max_window_layers=21,
    )  # fmt: skip


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = True) -> dict[str, Any]:
    return _sizes(
        "qwen3", hidden, intermediate, layers, heads, 8, 151_936, tied=tied, context=40_960, eps=1e-6, rope_theta=1e6,
        head_dim=128,
    )  # fmt: skip


CATALOG: dict[str, dict[str, Any]] = {
    "phi-3.5-mini": _sizes(
        "phi3", 3072, 8192, 32, 32, 32, 32_064, tied=False, original_max_position_embeddings=4096,
        rope_scaling=_longrope(48)
    ),
    "phi-4-mini": _sizes(
        "phi3", 3072, 8192, 32, 24, 8, 200_064, tied=True, original_max_position_embeddings=4096,
        partial_rotary_factor=0.75, rope_scaling=_longrope(48),
    ),
    "phi-4": _sizes("phi3", 5120, 17920, 40, 40, 10, 100_352, tied=False, context=16_384, rope_theta=250_000.0),
    "gemma-3-1b": _sizes(
        "gemma3_text", 1152, 6912, 26, 4, 1, 262_144, tied=True, context=32_768, eps=1e-6, sliding_window=512,
        **_gemma(None)
    ),
    "gemma-3-4b": _sizes("gemma3_text", 2560, 10_240, 34, 8, 4, 262_208, tied=True, eps=1e-6, sliding_window=1024,
        **_gemma(8.0)),
    "llama-3.2-1b": _sizes("llama", 2048, 8192, 16, 32, 8, 128_256, tied=True, head_dim=64, **_llama(32.0)),
    "llama-3.2-3b": _sizes("llama", 3072, 8192, 28, 24, 8, 128_256, tied=True, head_dim=128, **_llama(32.0)),
    "llama-3.1-8b": _sizes("llama", 4096, 14_336, 32, 32, 8, 128_256, tied=False, **_llama(8.0)),
    "mistral-7b-v0.3": _sizes("mistral", 4096, 14_336, 32, 32, 8, 32_768, tied=False, context=32_768, rope_theta=1e6,
        sliding_window=None),
    "qwen-2.5-0.5b": _qwen2(896, 4864, 24, 14),
    "qwen-2.5-1.5b": _qwen2(1536, 8960, 28, 12),
    "qwen-2.5-3b": _qwen2(2048, 11_008, 36, 16),
    "qwen-3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen-3-1.7b": _qwen3(2048, 6144, 28, 16),
    "qwen-3-4b": _qwen3(2560, 9728, 36, 32),
    "qwen-3-8b": _qwen3(4096, 12_288, 36, 32, tied=False),
    "qwen-3.5-4b": _sizes(
        "qwen3_5_text", 2560, 9216, 32, 16, 4, 248_320, tied=True, context=262_144, eps=1e-6, head_dim=256,
        rope_theta=1e7, partial_rotary_factor=0.25, linear_num_key_heads=16, linear_num_value_heads=32,
    ),
    "lfm-2-1.2b": {
        "model_type": "lfm2", "hidden_size": 2048, "intermediate_size": 12_288, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65_536, "max_position_embeddings": 128_000,
        "norm_eps": 1e-5, "rope_theta": 1e6, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    },
    "gemma-2-2b": _sizes(
        "gemma2", 2304, 9216, 26, 8, 4, 256_000, tied=True, context=8192, eps=1e-6, head_dim=256, sliding_window=4096,
        query_pre_attn_scalar=256, dtype="bfloat16",
    ),
    "gemma-4-e2b": _gemma4(1536, 6144, 35, 8, 1, period=5, num_kv_shared_layers=20, use_double_wide_mlp=True),
    "gemma-4-e4b": _gemma4(2560, 10_240, 42, 8, 2, num_kv_shared_layers=18),
    "gemma-4-31b": _gemma4(
        5376, 21_504, 60, 32, 16, context=262_144, sliding_window=1024, hidden_size_per_layer_input=0,
        attention_k_eq_v=True, num_global_key_value_heads=4,
    ),
    "smollm-3-3b": _sizes("smollm3", 2048, 11_008, 36, 16, 4, 128_256, tied=True, context=65_536, eps=1e-6,
        rope_theta=5e6),
    "olmo-2-1b": _sizes("olmo2", 2048, 8192, 16, 16, 16, 100_352, tied=False, context=4096, eps=1e-6,
        rope_theta=500_000.0),
    "olmo-3-7b": _sizes(
        "olmo3", 4096, 11_008, 32, 32, 32, 100_278, tied=False, context=65_536, eps=1e-6, sliding_window=4096,
        rope_theta=500_000.0,
        rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192},
    ),
    "granite-3.3-2b": _sizes(
        "granite", 2048, 8192, 40, 32, 8, 49_159, tied=True, rope_theta=1e7, embedding_multiplier=12.0,
        residual_multiplier=0.22, attention_multiplier=0.015625, logits_scaling=8.0,
    ),
    "ministral-3-3b": _sizes("ministral3", 3072, 9216, 26, 32, 8, 131_072, tied=True, context=262_144, head_dim=128),
    "ministral-3-8b": _sizes("ministral3", 4096, 14_336, 34, 32, 8, 131_072, tied=False, context=262_144, head_dim=128),
}  # fmt: skip


HUB_IDS = {
    "phi-3.5-mini": "microsoft/Phi-3.5-mini-instruct",
    "phi-4-mini": "microsoft/Phi-4-mini-instruct",
    "phi-4": "microsoft/phi-4",
    "gemma-3-1b": "google/gemma-3-1b-it",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "mistral-7b-v0.3": "mistralai/Mistral-7B-Instruct-v0.3",
    "qwen-2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen-2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen-2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen-3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen-3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen-3-4b": "Qwen/Qwen3-4B",
    "qwen-3-8b": "Qwen/Qwen3-8B",
    "qwen-3.5-4b": "Qwen/Qwen3.5-4B",
    "lfm-2-1.2b": "LiquidAI/LFM2-1.2B",
    "gemma-2-2b": "google/gemma-2-2b-it",
    "gemma-4-e2b": "google/gemma-4-E2B-it",
    "gemma-4-e4b": "google/gemma-4-E4B-it",
    "gemma-4-31b": "google/gemma-4-31B-it",
    "smollm-3-3b": "HuggingFaceTB/SmolLM3-3B",
    "olmo-2-1b": "allenai/OLMo-2-0425-1B-Instruct",
    "olmo-3-7b": "allenai/Olmo-3-7B-Instruct",
    "granite-3.3-2b": "ibm-granite/granite-3.3-2b-instruct",
    "ministral-3-3b": "mistralai/Ministral-3-3B-Instruct-2512-BF16",
    "ministral-3-8b": "mistralai/Ministral-3-8B-Instruct-2512-BF16",
}
"""Where each model of the catalog is on the Hugging Face hub, as it answers instructions."""


def resembling(name: str) -> list[str]:
    """The short names that `name` may mean, if any: `llama3.2:1b` means one, `llama3.2` and `llama3.2:latest` two."""
    whole, family = _plain(name), _plain(name.partition(":")[0])
    if exact := [known for known in HUB_IDS if _plain(known) in (whole, family)]:
        return exact
    return [known for known in HUB_IDS if len(family) >= _TELLING and _plain(known).startswith(family)]


_TELLING = 4
"""Characters that a name must have to be told by its beginning: `phi4`, `qwen`."""


def _plain(name: str) -> str:
    """A name without what is written differently: its case, hyphens, dots and colons."""
    return "".join(c for c in name.lower() if c.isalnum())


def catalog_config(name: str, *, layers: int | None = None) -> dict[str, Any]:
    """The configuration of a model of the catalog as its `config.json` has it, with its first layers only if asked.

    Raises:
        UsageError: It has no such model.
    """
    if name not in CATALOG:
        raise UsageError(f"there is no model {name!r} in the catalog.", f"It has {', '.join(CATALOG)}.")
    config = CATALOG[name]
    if layers is None:
        return config
    left_out = config["num_hidden_layers"] - layers
    cut = {"num_hidden_layers": layers}
    if "layer_types" in config:
        cut["layer_types"] = config["layer_types"][:layers]
    if "num_kv_shared_layers" in config:
        cut["num_kv_shared_layers"] = max(0, config["num_kv_shared_layers"] - left_out)
    return {**config, **cut}


def catalog_spec(name: str, *, layers: int | None = None) -> ModelSpec:
    """The spec of a model of the catalog; arguments and errors as for `catalog_config`."""
    config = catalog_config(name, layers=layers)
    names = ["model.layers.0.self_attn.qkv_proj.weight"] if config["model_type"] == "phi3" else []
    return build_spec(config, {}, names)
