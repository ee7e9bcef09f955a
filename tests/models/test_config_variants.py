"""Configurations that mean something else than they seem to: folders loaded as transformers' AutoModel loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from halfbyte.checkpoint import Checkpoint, open_checkpoint
from halfbyte.errors import HalfbyteError, UnsupportedModelError
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import make_plan
from halfbyte.reference.executor import ReferenceExecutor
from tests.models.tiny import feed

IDS = np.random.default_rng(3).integers(3, 90, 40).tolist()
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA = {**SIZES, "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
PAIRS = {"short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [2 + 0.3 * i for i in range(8)]}
LINEAR = {"type": "linear", "factor": 4.0}
MIXED = ["full_attention", "sliding_attention", "full_attention"]


def save(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tensors_for(config: dict[str, Any], names: Any = ()) -> dict[str, torch.Tensor]:
    """Random weights for what the configuration asks for, and for other names with their shapes."""
    shapes = build_spec(config, {}, ["model.embed_tokens.weight", "lm_head.weight", *names]).shapes | dict(names or {})
    torch.manual_seed(5)
    made = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        made[name] = torch.randn(shape) * scale + (
            1.0 if len(shape) == 1 and "gemma" not in config["model_type"] else 0
        )
    return made


def opened(folder: Path) -> tuple[Checkpoint, ModelSpec]:
    checkpoint = open_checkpoint(folder)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    return checkpoint, spec


def logits_of(folder: Path, ids: list[int]) -> np.ndarray:
    checkpoint, spec = opened(folder)
    plan = make_plan(spec, checkpoint.format, rows=len(ids), tokens=len(ids), kv_dtype="f32", context=64)
    switched = spec.rope_switch is not None and len(ids) > spec.rope_switch
    return feed(ReferenceExecutor(plan, checkpoint), ids, rope_set=int(switched))


def logits_of_transformers(folder: Path, ids: list[int]) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor([ids]), use_cache=False).logits[0])


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


LLAMA, MISTRAL, PHI, QWEN = ({**SIZES, "model_type": kind} for kind in ("llama", "mistral", "phi3", "qwen2"))
VARIANTS = {
    "a Llama without an epsilon": without(LLAMA, "rms_norm_eps"),
    "a Phi-3 without an epsilon": without(PHI, "rms_norm_eps"),
    "rope_scaling beside rope_parameters": {
        **LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "rope_scaling": LINEAR,
    },
    "rope_scaling beside rope_parameters, and a base beside both": {
        **QWEN, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "rope_scaling": LINEAR,
        "rope_theta": 700.0,
    },
    "an empty rope_scaling beside rope_parameters": {
        **LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}, "rope_scaling": {},
    },
    "Gemma's global layers scaled beside rope_parameters": {
        **GEMMA, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_parameters": {"full_attention": {"rope_theta": 900.0}, "sliding_attention": {"rope_theta": 30.0}},
    },
    "LongRoPE whose two original lengths differ": {
        **PHI, "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 64, **PAIRS},
    },
    "LongRoPE whose two original lengths differ the other way": {
        **PHI, "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 32, **PAIRS},
    },
    "Phi-3's older name of LongRoPE": {
        **PHI, "original_max_position_embeddings": 24,
        "rope_scaling": {"type": "su", "original_max_position_embeddings": 24, **PAIRS},
    },
    "Llama 3's frequencies with the original length left out": {
        **LLAMA,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
    "Llama 3's frequencies with the original length beside them": {
        **LLAMA, "original_max_position_embeddings": 48,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "a partial rotary factor that Llama does not have": {**LLAMA, "partial_rotary_factor": 0.5},
    "a partial rotary factor inside that Mistral does not have": {
        **MISTRAL, "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "a Mistral with windows on some layers": {**MISTRAL, "head_dim": 16, "sliding_window": 8, "layer_types": MIXED},
    "a Mistral with a window everywhere": {**MISTRAL, "sliding_window": 8},
    "a Qwen2 with a window that it does not use": {**QWEN, "sliding_window": 8, "max_window_layers": 0},
    "a Qwen2 with windows from a layer on": {
        **QWEN, "sliding_window": 8, "max_window_layers": 1, "use_sliding_window": True,
    },
    "a Qwen2 with windows on the layers it names": {
        **QWEN, "sliding_window": 8, "max_window_layers": 3, "use_sliding_window": True, "layer_types": MIXED,
    },
    "a Mistral with the first version's key-value heads": {
        **without(MISTRAL, "num_key_value_heads"), "num_attention_heads": 16, "sliding_window": None,
    },
    "a Gemma without a kind for each layer": {**GEMMA, "sliding_window_pattern": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_configuration_means_what_it_means_to_transformers(tmp_path: Path, name: str) -> None:
    config = VARIANTS[name]
    stacked = {
        f"model.layers.{i}.{part}_proj.weight": shape
        for i in range(3)
        for part, shape in (("self_attn.qkv", (128, 64)), ("mlp.gate_up", (144, 64)))
    }
    folder = save(tmp_path / "m", config, tensors_for(config, stacked if config["model_type"] == "phi3" else ()))
    expected = logits_of_transformers(folder, IDS)
    assert np.abs(expected).max() > 0.5
    assert np.abs(logits_of(folder, IDS) - expected).max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen2"])
@pytest.mark.parametrize("said", [True, None])
def test_an_output_matrix_that_differs_from_the_tied_table_is_used(
    tmp_path: Path, kind: str, said: bool | None
) -> None:
    """Gemma's table is its output matrix unless the configuration says no; Llama's and Qwen's only if it says yes."""
    config = {**(GEMMA if kind == "gemma3_text" else LLAMA), "model_type": kind, "tie_word_embeddings": True}
    config = config if said else without(config, "tie_word_embeddings")
    folder = save(tmp_path / "m", config, tensors_for(config))
    assert np.abs(logits_of(folder, IDS) - logits_of_transformers(folder, IDS)).max() < 1e-4
    checkpoint, spec = opened(folder)
    assert (spec.embed, spec.lm_head) == ("model.embed_tokens.weight", "lm_head.weight")
    tied = said or kind == "gemma3_text"
    note = (
        "config.json says that lm_head.weight is model.embed_tokens.weight, but the two differ: lm_head.weight is used."
    )
    assert checkpoint.notes == ((note,) if tied else ())


def test_a_copy_of_the_tied_table_takes_no_second_place(tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    tensors = tensors_for(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    checkpoint, spec = opened(save(tmp_path / "m", config, tensors))
    assert spec.lm_head == spec.embed
    assert "lm_head.weight" not in checkpoint.shapes
    assert checkpoint.notes == ()


def test_an_output_matrix_alone_is_the_tied_table_too(tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    tensors = tensors_for(config)
    del tensors["model.embed_tokens.weight"]
    folder = save(tmp_path / "m", config, tensors)
    assert np.abs(logits_of(folder, IDS) - logits_of_transformers(folder, IDS)).max() < 1e-4


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({**GEMMA, "rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "rope_type"),
        ({**MISTRAL, "attention_bias": True}, "attention_bias"),
        ({**PHI, "mlp_bias": True}, "mlp_bias"),
        ({**LLAMA, "rope_interleaved": True}, "rope_interleaved"),
        ({**LLAMA, "residual_multiplier": 0.22}, "residual_multiplier"),
        ({**LLAMA, "sliding_window": 16}, "sliding_window"),
        ({**LLAMA, "layer_types": MIXED}, "layer_types"),
        ({**LLAMA, "no_rope_layers": [1, 0, 1]}, "no_rope_layers"),
        ({**LLAMA, "rope_scaling": {**LINEAR, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({**LLAMA, "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
        ({**PHI, "rope_scaling": {"type": "longrope", **PAIRS, "long_mscale": 1.2}}, "long_mscale"),
        ({**PHI, "full_attn_mod": 2}, "full_attn_mod"),
        ({**MISTRAL, "num_experts_per_tok": 2}, "num_experts_per_tok"),
        ({**QWEN, "use_qk_norm": True}, "use_qk_norm"),
        ({**QWEN, "dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config"),
        ({"model_type": "gemma3", "text_config": {"laurel_rank": 64}}, "laurel_rank"),
        ({**LLAMA, "is_causal": False}, "is_causal"),
    ],
)  # fmt: skip
def test_what_may_change_the_answer_and_is_not_known_is_refused_by_name(config: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        build_spec(config, {}, [])


HARMLESS: dict[str, Any] = {
    "_name_or_path": "org/name", "architectures": ["LlamaForCausalLM"], "auto_map": {"AutoConfig": "c.C"},
    "attention_dropout": 0.1, "cache_implementation": "hybrid", "dtype": "bfloat16", "embd_pdrop": 0.0,
    "hidden_dropout": 0.1, "id2label": {"0": "LABEL_0"}, "initializer_range": 0.02, "layer_norm_eps_unused": None,
    "output_attentions": False, "pretraining_tp": 1, "return_dict": True, "sep_token_id": 4, "temperature": 0.6,
    "torch_dtype": "bfloat16", "transformers.js_config": {"dtype": "q4"}, "transformers_version": "4.51.0",
    "unsloth_fixed": True, "unsloth_version": "2025.1", "use_cache": True, "use_mrope": False,
}  # fmt: skip


@pytest.mark.parametrize("config", [LLAMA, MISTRAL, PHI, QWEN, GEMMA], ids=lambda config: config["model_type"])
def test_what_changes_nothing_is_passed_over(config: dict[str, Any]) -> None:
    assert build_spec({**config, **HARMLESS, "quantization_config": {"bits": 4}}, {}, []) == build_spec(config, {}, [])


KINDS = {
    "llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig, "phi3": transformers.Phi3Config,
    "qwen2": transformers.Qwen2Config, "gemma3_text": transformers.Gemma3TextConfig,
    "gemma3": transformers.Gemma3Config, "gemma2": transformers.Gemma2Config,
    "gemma4_text": transformers.Gemma4TextConfig, "gemma4": transformers.Gemma4Config,
    "qwen3": transformers.Qwen3Config, "qwen3_5_text": transformers.Qwen3_5TextConfig,
    "qwen3_5": transformers.Qwen3_5Config, "lfm2": transformers.Lfm2Config, "granite": transformers.GraniteConfig,
    "olmo2": transformers.Olmo2Config, "olmo3": transformers.Olmo3Config, "smollm3": transformers.SmolLM3Config,
    "ministral3": transformers.Ministral3Config, "mistral3": transformers.Mistral3Config,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_transformers_writes_is_known(tmp_path: Path, kind: str) -> None:
    KINDS[kind]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    build_spec(config, {}, [])
    build_spec(KINDS[kind]().to_dict(), {}, [])


def test_a_value_of_the_wrong_kind_is_a_sentence_in_every_place() -> None:
    for key in ("rope_parameters", "rope_scaling", "layer_types", "use_sliding_window", "max_window_layers"):
        for value in (3, "x", [1], {"a": 1}, True):
            try:
                build_spec({**QWEN, key: value}, {}, [])
            except HalfbyteError as error:
                assert "\n" not in error.message  # noqa: PT017  (some values are valid)
