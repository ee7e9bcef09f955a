"""GGUF files of Gemma 4 as llama.cpp's converter writes them: read by it and by Halfbyte, tokenizer and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from halfbyte.checkpoint.gguf.model import open_gguf
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.errors import InvalidModelError, UnsupportedModelError
from tests.models import llama_cpp
from tests.models.test_interchange import IDS, divergence, logits, small_tokenizer, spec_of
from tests.models.tiny import VOCABULARY, Tiny, tiny

EXACT = 1e-5
"""Divergence of two programs that compute in float32."""

NAMES = {
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "post_attention_norm",
    "pre_feedforward_layernorm.weight": "ffn_norm",
    "post_feedforward_layernorm.weight": "post_ffw_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "self_attn.q_norm.weight": "attn_q_norm",
    "self_attn.k_norm.weight": "attn_k_norm",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
    "per_layer_input_gate.weight": "inp_gate",
    "per_layer_projection.weight": "proj",
    "post_per_layer_input_norm.weight": "post_norm",
    "layer_scalar": "layer_output_scale",
}
WHOLE = {
    "embed_tokens.weight": "token_embd",
    "norm.weight": "output_norm",
    "embed_tokens_per_layer.weight": "per_layer_token_embd",
    "per_layer_model_projection.weight": "per_layer_model_proj",
    "per_layer_projection_norm.weight": "per_layer_proj_norm",
}
"""What gguf's tensor_mapping.py gives for them."""


def write_gemma4(target: Path, model: Tiny, **changed: Any) -> None:
    """A file of the architecture `gemma4`, by the gguf package."""
    config, writer = model.config, gguf.GGUFWriter(target, "gemma4")
    layers, shared, width = (config[key] for key in ("num_hidden_layers", "num_kv_shared_layers", "intermediate_size"))
    swa = [kind == "sliding_attention" for kind in config["layer_types"]]
    kv_heads = changed.get("kv_heads", [layer.mixer.spec.kv_heads for layer in model.spec.layers])
    heads = {layer.mixer.spec.window is None: layer.mixer.spec.head_dim for layer in model.spec.layers}
    double = config["use_double_wide_mlp"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length([width] * (layers - shared) + [2 * width] * shared if double else width)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(kv_heads if len(set(kv_heads)) > 1 else kv_heads[0])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"] or 0)
    writer.add_sliding_window_pattern(changed.get("pattern", swa))
    writer.add_key_length(heads[True])
    writer.add_value_length(heads[True])
    writer.add_key_length_swa(heads[False])
    writer.add_value_length_swa(heads[False])
    writer.add_rope_dimension_count(heads[True])
    writer.add_rope_dimension_count_swa(heads[False])
    writer.add_rope_freq_base(config["rope_parameters"]["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list([f"t{index}" for index in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t0 t1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values in model.tensors.items():
        _, _, layer, rest = name.split(".", 3) if name.startswith("model.layers.") else ("", "", "", "")
        known = f"blk.{layer}.{NAMES[rest]}" if rest else WHOLE[name.removeprefix("model.")]
        writer.add_tensor(f"{known}.weight", np.ascontiguousarray(values, np.float32))
    pairs = int(heads[True] * 0.25 / 2)
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * pairs + [1e30] * (heads[True] // 2 - pairs), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["gemma-4-e2b", "gemma-4-12b"])
def test_gemma4_is_read(tmp_path: Path, family: str) -> None:
    """Shared keys, inputs of layers and a wider MLP in one, values from the keys' matrix in the other."""
    model = tiny(family)
    write_gemma4(target := tmp_path / "tiny.gguf", model)
    checkpoint = open_gguf(target)
    assert np.abs(logits(checkpoint, spec_of(checkpoint), IDS) - model.logits(IDS)).max() < 1e-4


@pytest.mark.parametrize("family", ["gemma-4-e2b", "gemma-4-12b"])
def test_gemma4_agrees_with_llama_cpp(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    write_gemma4(target := tmp_path / "tiny.gguf", model)
    checkpoint = open_gguf(target)
    found = logits(checkpoint, spec_of(checkpoint), IDS)
    assert divergence(llama_cpp.logits(target, IDS), found) < EXACT


def test_a_pattern_of_another_length_is_refused(tmp_path: Path) -> None:
    write_gemma4(target := tmp_path / "tiny.gguf", tiny("gemma-4-12b"), pattern=[True, False])
    with pytest.raises(InvalidModelError, match=r"sliding_window_pattern is .*, expected a list of 3"):
        open_gguf(target)


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    write_gemma4(target := tmp_path / "tiny.gguf", tiny("gemma-4-12b"), kv_heads=[2, 1])
    with pytest.raises(InvalidModelError, match=r"head_count_kv.layers is \[2, 1\], expected a list of 3"):
        open_gguf(target)


def test_gemma4_is_not_written(tmp_path: Path) -> None:
    model = tiny("gemma-4-12b")
    with pytest.raises(UnsupportedModelError, match="can be read, but not written"):
        write_gguf(tmp_path / "tiny.gguf", model, model.spec, small_tokenizer(), kind="stored")
